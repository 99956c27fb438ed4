-- Renews or (with time to live 0) gives up a lease. A lease that ran out, but that nobody took, can still be renewed:
-- the epoch tells.
-- KEYS: owner, owner epoch
-- ARGV: replica id, epoch, time to live in ms
-- Returns 1, or 0 if somebody else holds it or did
local holder = redis.call('GET', KEYS[1])
if redis.call('GET', KEYS[2]) ~= ARGV[2] or (holder and holder ~= ARGV[1]) then return 0 end
if ARGV[3] == '0' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3]) end
return 1
