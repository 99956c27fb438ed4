-- Writes each query's one outcome, ends its event stream, takes it off the queue, and keeps what it taught and, if it
-- failed, its dead letter. What Redis knows of the query goes with them: profile, payload, queue entry.
-- KEYS: owner epoch, queue, depth, observations, dead letters, then of each row:
--       record, events, its tenant's queries, its tenant's outcomes
-- ARGV: epoch, group, time to live in ms, observations kept, dead letters kept, their time to live in ms,
--       outcomes kept, then of each row:
--       query id, entry id, attempts, state, outcome, last event or "", observation or "", dead letter or ""
-- Returns false if fenced, else per row "ok" | "finished" | "stale" | "gone"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local now = redis.call('TIME')
local oldest_kept = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[3]

-- By key of a tenant's outcomes: the key of its queries, the id of its last outcome or "", how many were added.
local tenants = {}

local function tenant(queries, outcomes)
  if not tenants[outcomes] then
    local last = redis.call('XREVRANGE', outcomes, '+', '-', 'COUNT', 1)[1]
    tenants[outcomes] = {queries = queries, last = last and last[1] or '', added = 0}
  end
  return tenants[outcomes]
end

-- Drops the outcomes that are too old or too many, some at a time; with them go their queries.
local function trim(queries, outcomes, added)
  for _ = 1, 4 * added do
    local oldest = redis.call('XRANGE', outcomes, '-', '+', 'COUNT', 1)[1]
    if not oldest then return end
    local young = tonumber(string.match(oldest[1], '^%d+')) >= oldest_kept
    if young and redis.call('XLEN', outcomes) <= tonumber(ARGV[7]) then return end
    redis.call('XDEL', queries, oldest[2][4])
    redis.call('XDEL', outcomes, oldest[1])
  end
end

-- While a query waits or runs, both stay; they expire together after the last outcome.
local function expire(queries, outcomes)
  local ended = redis.call('XLEN', queries) <= redis.call('XLEN', outcomes)
  for _, key in ipairs({queries, outcomes}) do
    if ended then redis.call('PEXPIRE', key, ARGV[3]) else redis.call('PERSIST', key) end
  end
end

local answers = {}
for row = 1, (#KEYS - 5) / 4 do
  local record, events, queries, outcomes = unpack(KEYS, 4 * row + 2, 4 * row + 5)
  local id, entry, attempts, state, outcome, event, observation, letter = unpack(ARGV, 8 * row, 8 * row + 7)
  local known = redis.call('HMGET', record, 'attempts', 'outcome', 'profile')
  if not known[1] then
    answers[row] = 'gone'
    redis.call('XDEL', queries, entry)
    tenant(queries, outcomes)
  elseif known[2] then
    answers[row] = 'finished'
  elseif known[1] ~= attempts then
    answers[row] = 'stale'
  else
    if letter ~= '' then
      local payload = redis.call('HGET', record, 'payload') or ''
      local queued = redis.call('XRANGE', KEYS[2], entry, entry)[1]
      redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[5], '*',
        'd', letter, 'r', payload, 'q', queued and queued[2][2] or '')
      redis.call('PEXPIRE', KEYS[5], ARGV[6])
    end
    redis.call('HSET', record, 'outcome', outcome, 'state', state)
    redis.call('HDEL', record, 'payload')
    if event ~= '' then redis.call('XADD', events, '*', 'e', event) end
    redis.call('XADD', events, '*', 'outcome', '')
    redis.call('PEXPIRE', record, ARGV[3])
    redis.call('PEXPIRE', events, ARGV[3])
    if observation ~= '' then
      redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[4], '*', 'o', observation, 'p', known[3] or '')
    end
    redis.call('DECR', KEYS[3])
    local theirs = tenant(queries, outcomes)
    theirs.last = redis.call('XADD', outcomes, '*', 'q', id, 'a', entry, 'p', theirs.last)
    theirs.added = theirs.added + 1
    answers[row] = 'ok'
  end
  if answers[row] ~= 'stale' then
    redis.call('XACK', KEYS[2], ARGV[2], entry)
    redis.call('XDEL', KEYS[2], entry)
  end
end
for outcomes, theirs in pairs(tenants) do
  trim(theirs.queries, outcomes, theirs.added)
  expire(theirs.queries, outcomes)
end
return answers
