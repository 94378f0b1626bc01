#!lua flags=allow-oom
-- Removes what is not leased of a queue and its quarantine: all at once where nothing is leased,
-- else a part.
-- Answer: -1 when it is missing, else how many went, and how many are left.
local queue, members = family()
if not queue then
  return -1
end
local gone, left = 0, 0
for _, member in ipairs(members) do
  tick(member)
  gone = gone + call('LLEN', member['in'])
  call('UNLINK', member['in'])
  if call('ZCARD', member.l) == 0 then
    gone = gone + call('ZCARD', member.r) + call('ZCARD', member.d)
    call('UNLINK', member.r, member.d, member.m, member.a, member.x)
  else
    for _, kind in ipairs({ 'r', 'd' }) do
      local entries = up_to(member, call('ZRANGE', member[kind], 0, STEP - 1), 8 * BYTES)
      each('ZREM', member[kind], entries)
      forget(member, entries)
      gone, left = gone + #entries, left + call('ZCARD', member[kind])
    end
  end
end
return { gone, left }
