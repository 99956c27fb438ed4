-- Writes what a model's observations taught, if it goes on from what is there: no observation counts twice.
-- KEYS: calibrator epoch, calibration
-- ARGV: epoch, last observation of the state that it goes on from ("" for none), its own last observation, state
-- Returns 1, 0 if another state is there, or false if fenced
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
if (redis.call('HGET', KEYS[2], 'last') or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], 'last', ARGV[3], 'state', ARGV[4])
return 1
