-- Writes what a model's owner knows of the cost of its deployments.
-- KEYS: owner epoch, cost
-- ARGV: epoch, time to live in ms, fields at most, then of each deployment: name, state
-- Returns false if fenced, else 1
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
-- Fields of deployments that are long gone; the owner writes those that serve again.
if redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[3]) then redis.call('DEL', KEYS[2]) end
for at = 4, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
