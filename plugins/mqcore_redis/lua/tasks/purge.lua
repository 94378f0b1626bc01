#!lua flags=allow-oom
-- Removes trees that ended before a time and in which nothing is open, and with the first page the
-- heartbeats whose time was over before it.
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
if start == 0 then
  local beats, before = call('HGETALL', KEY.beats), tonumber(ARGV[2])
  for place = 1, #beats, 2 do
    local head = cjson.decode(beats[place + 1]:match('^[^\n]*'))
    if tonumber(head.at) + tonumber(head.ttl) < before then
      call('HDEL', KEY.beats, beats[place])
    end
  end
end
return { #roots, removed }
