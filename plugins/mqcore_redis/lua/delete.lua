#!lua flags=allow-oom
-- Removes a queue and its quarantine. ARGV: if_empty, if_unused. Answer: -1 missing, 0 a condition is not met, 1 gone.
local queue, members = family()
if not queue then
  return -1
end
for _, member in ipairs(members) do
  tick(member)
  local held = call('ZCARD', member.r) + call('ZCARD', member.d) + call('ZCARD', member.l) + call('LLEN', member['in'])
  if ARGV[1] == '1' and held > 0 then
    return 0
  end
  if ARGV[2] == '1' and (call('ZCOUNT', member.c, now, '+inf') > 0 or call('ZCARD', member.l) > 0) then
    return 0
  end
end
for _, member in ipairs(members) do
  local waiting = math.min(call('ZCARD', member.c), STEP)
  for _, name in ipairs(NAMES) do
    call('UNLINK', member[name])
  end
  for _ = 1, waiting do -- a token for each consumer: all of them learn it now
    call('RPUSH', member.w, 1)
  end
  call('EXPIRE', member.w, 5)
end
return 1
