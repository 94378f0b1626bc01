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
  local entries, m, a, x = {}, {}, {}, {} -- of what is leased, all that is kept beside r and d
  for index, receipt in ipairs(call('ZRANGE', member.l, 0, -1)) do
    entries[index] = receipt:match('|([^|]+)$')
  end
  local records, marks = ask('HMGET', member.m, entries), ask('HMGET', member.a, entries)
  for index, expires in ipairs(ask('ZMSCORE', member.x, entries)) do
    if records[index] then
      m[#m + 1], m[#m + 2] = entries[index], records[index]
    end
    if marks[index] then
      a[#a + 1], a[#a + 2] = entries[index], marks[index]
    end
    if expires then
      x[#x + 1], x[#x + 2] = expires, entries[index]
    end
  end
  call('UNLINK', member.r, member.d, member['in'], member.m, member.a, member.x)
  each('HSET', member.m, m)
  each('HSET', member.a, a)
  each('ZADD', member.x, x)
end
return gone
