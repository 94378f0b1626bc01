#!lua flags=allow-oom
-- Removes a queue and its quarantine.
-- ARGV: if_empty.
-- Answer: -1 missing, 0 it holds messages, 1 gone. Its consumers notice it at their next claim, a
-- second later at most.
local queue, members = family()
if not queue then
  return -1
end
for _, member in ipairs(members) do
  tick(member)
  local held = call('LLEN', member['in'])
  for _, kind in ipairs({ 'r', 'd', 'l' }) do
    held = held + call('ZCARD', member[kind])
  end
  if ARGV[1] == '1' and held > 0 then
    return 0
  end
end
for _, member in ipairs(members) do
  for _, name in ipairs(NAMES) do
    call('UNLINK', member[name])
  end
end
return 1
