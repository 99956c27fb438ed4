-- Writes each query's one outcome, ends its event stream, takes it off the queue, and keeps what it taught.
-- KEYS: owner epoch, queue, depth, observations, then record and events of each row
-- ARGV: epoch, group, time to live in ms, observations kept, then of each row:
--       entry id, attempts, state, outcome, last event or "", observation or ""
-- Returns false if fenced, else per row "ok" | "finished" | "stale" | "gone"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local answers = {}
for row = 1, (#KEYS - 4) / 2 do
  local record, events = KEYS[2 * row + 3], KEYS[2 * row + 4]
  local at = 6 * row - 2
  local entry, attempts, state, outcome, event, observation =
    ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]
  local known = redis.call('HMGET', record, 'attempts', 'outcome')
  if not known[1] then
    answers[row] = 'gone'
  elseif known[2] then
    answers[row] = 'finished'
  elseif known[1] ~= attempts then
    answers[row] = 'stale'
  else
    redis.call('HSET', record, 'outcome', outcome, 'state', state)
    redis.call('HDEL', record, 'payload')
    if event ~= '' then redis.call('XADD', events, '*', 'e', event) end
    redis.call('XADD', events, '*', 'outcome', '')
    redis.call('PEXPIRE', record, ARGV[3])
    redis.call('PEXPIRE', events, ARGV[3])
    if observation ~= '' then
      redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[4], '*', 'o', observation)
    end
    redis.call('DECR', KEYS[3])
    answers[row] = 'ok'
  end
  if answers[row] ~= 'stale' then
    redis.call('XACK', KEYS[2], ARGV[2], entry)
    redis.call('XDEL', KEYS[2], entry)
  end
end
return answers
