#!lua flags=no-writes
-- Finds the nodes for which `recover` seems to be necessary.
-- ARGV: the time; the time before which a task is late, how many to look at, how many of the late
-- ones to leave out because an earlier call has looked at them.
-- Answer: how many were looked at, and the suspects.
local before, count, start = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local found = {}
if start == 0 then
  found = call('ZRANGEBYSCORE', KEY.unsealed, '-inf', '(' .. now_text, 'LIMIT', 0, count)
end
local late = call('ZRANGEBYSCORE', KEY.late, '-inf', '(' .. before, 'LIMIT', start, count)
for _, id in ipairs(late) do
  local node = get(id)
  if node and is_live(node) and not (node.state == 'running' and is_alive(node.worker)) then
    found[#found + 1] = id
  end
end
return { #late, found }
