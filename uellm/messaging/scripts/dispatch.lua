-- Begins an attempt for each row of a batch and hands out the payloads.
-- KEYS: owner epoch, then record and events of each row
-- ARGV: epoch, running state, then expected attempts and batched event of each row
-- Returns false if fenced, else per row {"ok", payload} | {"gone"} | {"cancelled"} | {"stale", attempts}
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local rows = {}
for row = 1, (#KEYS - 1) / 2 do
  local record, events = KEYS[2 * row], KEYS[2 * row + 1]
  local expected, event = ARGV[2 * row + 1], ARGV[2 * row + 2]
  local known = redis.call('HMGET', record, 'attempts', 'outcome', 'cancel', 'payload')
  if not known[1] or known[2] then
    rows[row] = {'gone'}
  elseif known[3] then
    rows[row] = {'cancelled'}
  elseif known[1] ~= expected then
    rows[row] = {'stale', known[1]}
  else
    redis.call('HSET', record, 'attempts', expected + 1, 'state', ARGV[2])
    redis.call('XADD', events, '*', 'e', event)
    rows[row] = {'ok', known[4]}
  end
end
return rows
