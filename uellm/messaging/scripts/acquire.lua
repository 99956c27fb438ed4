-- Takes a model's lease if nobody holds it. The new epoch is larger than any before, even if Redis lost some:
-- it is at least the server's clock in milliseconds.
-- KEYS: owner, owner epoch
-- ARGV: replica id, time to live in ms
-- Returns {1, epoch} | {0, holder}
local holder = redis.call('GET', KEYS[1])
if holder then return {0, holder} end
local now = redis.call('TIME')
local clock = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local epoch = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, clock)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], string.format('%.0f', epoch))
return {1, string.format('%.0f', epoch)}
