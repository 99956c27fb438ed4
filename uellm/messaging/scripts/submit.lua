-- Writes a query's record and its queue entry together, once.
-- KEYS: record, queue, depth, events, the tenant's queries, its outcomes
-- ARGV: body hash, payload, profile, queue entry, admitted event, depth limit, queued state, query id, outcomes kept,
--       name of the queue
-- Returns {"created", entry id, depth} | {"exists", entry id, profile} | {"conflict"} | {"full", depth}
local body = redis.call('HGET', KEYS[1], 'body_hash')
if body then
  if body ~= ARGV[1] then return {'conflict'} end
  local known = redis.call('HMGET', KEYS[1], 'entry_id', 'profile')
  return {'exists', known[1], known[2]}
end
local depth = tonumber(redis.call('GET', KEYS[3]) or '0')
if depth >= tonumber(ARGV[6]) then return {'full', depth} end
local id = redis.call('XADD', KEYS[2], '*', 'q', ARGV[4])
-- Those that wait or run and those in the outcomes fit; the bound is for what a lost record left behind.
local list = {'XADD', KEYS[5], 'MAXLEN', '~', ARGV[6] + ARGV[9], id, 'q', ARGV[8]}
if redis.pcall(unpack(list)).err then
  -- Another shard of the queue has given this id, or a later one of the same millisecond, to the same tenant.
  redis.call('XDEL', KEYS[2], id)
  local stream = redis.call('XINFO', 'STREAM', KEYS[5])
  for at = 1, #stream, 2 do
    if stream[at] == 'last-generated-id' then id = stream[at + 1] end
  end
  local time, number = string.match(id, '(%d+)-(%d+)')
  id = time .. '-' .. string.format('%.0f', number + 1)
  redis.call('XADD', KEYS[2], id, 'q', ARGV[4])
  list[6] = id
  redis.call(unpack(list))
end
redis.call('HSET', KEYS[1], 'body_hash', ARGV[1], 'payload', ARGV[2], 'profile', ARGV[3],
  'queue', ARGV[10], 'entry_id', id, 'state', ARGV[7], 'attempts', 0)
redis.call('XADD', KEYS[4], '*', 'e', ARGV[5])
if redis.call('PERSIST', KEYS[5]) == 1 then redis.call('PERSIST', KEYS[6]) end
return {'created', id, redis.call('INCR', KEYS[3])}
