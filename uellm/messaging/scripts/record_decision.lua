-- Appends an entry to a model's flight recorder and drops the oldest ones, so that count and bytes stay bounded, whoever
-- wrote them. Field b of an entry is the bytes of all entries ever written, this one included.
-- KEYS: owner epoch, decisions
-- ARGV: epoch, number of the entry under it, record, bytes kept, entries kept, time to live in ms
-- Returns false if fenced, 1, or 0 if it is there already
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local written = #ARGV[3]
if newest then
  local epoch, number = string.match(newest[1], '(%d+)-(%d+)')
  if tonumber(epoch) > tonumber(ARGV[1]) then return 0 end
  if epoch == ARGV[1] and tonumber(number) >= tonumber(ARGV[2]) then return 0 end
  written = written + tonumber(newest[2][4])
end
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[5], ARGV[1] .. '-' .. ARGV[2],
  'd', ARGV[3], 'b', string.format('%.0f', written))
local length = redis.call('XLEN', KEYS[2])
while length > 1 do
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1][2]
  if written - tonumber(oldest[4]) + #oldest[2] <= tonumber(ARGV[4]) then break end
  length = length - redis.call('XTRIM', KEYS[2], 'MAXLEN', length - 1)
end
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return 1
