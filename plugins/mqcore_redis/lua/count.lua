#!lua flags=allow-oom
-- Counts a queue together with its quarantine.
-- Answer: -1 when it is missing, else JSON: the fields of `QueueCounts`, and those of its
-- `QueueSpec`, times in microseconds.
local queue, members = family()
if not queue then
  return -1
end
local ready, leased, delayed = call('LLEN', queue['in']), 0, 0
for _, member in ipairs(members) do
  tick(member)
  local due = call('ZCOUNT', member.d, '-inf', now)
  ready = ready + call('ZCARD', member.r) + due
  leased = leased + call('ZCARD', member.l)
  delayed = delayed + call('ZCARD', member.d) - due
end
local totals = call('HMGET', queue.q, 'published', 'settled')
return cjson.encode({
  ready = ready,
  leased = leased,
  delayed = delayed,
  published = tonumber(totals[1] or 0),
  settled = tonumber(totals[2] or 0),
  role = queue.role,
  dead_letter = queue.dead_letter ~= '' and queue.dead_letter or nil,
  ttl = queue.ttl,
  max_length = queue.max_length,
  overflow = queue.overflow,
  retention = queue.retention,
})
