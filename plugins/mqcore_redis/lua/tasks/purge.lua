#!lua flags=allow-oom
-- Removes trees that ended before a time and in which nothing is open.
-- ARGV: the time; the time before which they ended, how many to look at, how many to leave out
-- because an earlier call has kept them.
-- Answer: how many were looked at, how many were removed.
local count, start, removed = tonumber(ARGV[3]), tonumber(ARGV[4]), 0
local roots = call('ZRANGEBYSCORE', KEY.ended, '-inf', '(' .. ARGV[2], 'LIMIT', start, count)
for _, root in ipairs(roots) do
  if (tonumber(call('HGET', tree(root), 'open')) or 0) == 0 then
    call('UNLINK', tree(root))
    call('ZREM', KEY.ended, root)
    removed = removed + 1
  end
end
return { #roots, removed }
