#!lua flags=allow-oom
-- Changes settings of a queue.
-- KEYS: its q alone.
-- ARGV: names of fields and their values, empty for none.
-- Answer: -1 when the queue is missing. What it holds stays as it is.
if call('EXISTS', KEYS[1]) == 0 then
  return -1
end
for index = 1, #ARGV, 2 do
  if ARGV[index + 1] == '' then
    call('HDEL', KEYS[1], ARGV[index])
  else
    call('HSET', KEYS[1], ARGV[index], ARGV[index + 1])
  end
end
return 0
