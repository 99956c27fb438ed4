-- Appends one event to each query, if the attempt that produced it is the current one.
-- KEYS: owner epoch, then record and events of each row
-- ARGV: epoch, then attempt and event of each row
-- Returns false if fenced, else per row the event's id, or "" where the attempt is over
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local ids = {}
for row = 1, (#KEYS - 1) / 2 do
  local record, events = KEYS[2 * row], KEYS[2 * row + 1]
  local known = redis.call('HMGET', record, 'attempts', 'outcome')
  if known[1] == ARGV[2 * row] and not known[2] then
    ids[row] = redis.call('XADD', events, '*', 'e', ARGV[2 * row + 1])
  else
    ids[row] = ''
  end
end
return ids
