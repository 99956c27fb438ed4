-- Notes that a query is to end, and tells the owner of its queue.
-- KEYS: record, queue
-- ARGV: control message
-- Returns the query's state, or false if there is no such query
local known = redis.call('HMGET', KEYS[1], 'state', 'outcome', 'cancel')
if not known[1] then return false end
if not known[2] and not known[3] then
  redis.call('HSET', KEYS[1], 'cancel', 1)
  redis.call('XADD', KEYS[2], '*', 'c', ARGV[1])
end
return known[1]
