#!lua flags=allow-oom
-- Removes all that is not leased of a queue and its quarantine. Answer: -1 when it is missing, else how many went.
local queue, members = family()
if not queue then
  return -1
end
local gone = 0
for _, member in ipairs(members) do
  tick(member)
  gone = gone + call('ZCARD', member.r) + call('ZCARD', member.d) + call('LLEN', member['in'])
  local entries, kept = {}, { m = {}, a = {}, x = {} }
  for index, receipt in ipairs(call('ZRANGE', member.l, 0, -1)) do
    entries[index] = receipt:match('|([^|]+)$')
  end
  local records, marks = ask('HMGET', member.m, entries), ask('HMGET', member.a, entries)
  for index, expires in ipairs(ask('ZMSCORE', member.x, entries)) do
    for kind, value in pairs({ m = records[index], a = marks[index], x = expires }) do
      if value then
        local first, second = entries[index], value
        if kind == 'x' then
          first, second = second, first
        end
        table.insert(kept[kind], first)
        table.insert(kept[kind], second)
      end
    end
  end
  call('UNLINK', member.r, member.d, member['in'], member.m, member.a, member.x)
  each('HSET', member.m, kept.m)
  each('HSET', member.a, kept.a)
  each('ZADD', member.x, kept.x)
end
return gone
