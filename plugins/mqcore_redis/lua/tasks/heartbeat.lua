#!lua flags=allow-oom
-- Stores a heartbeat. ARGV: the time; the worker, its ttl, what it says of itself.
-- Answer: the tasks it runs that are to be cancelled.
local head = cjson.encode({ at = now_text, ttl = ARGV[3] })
call('HSET', KEY.beats, ARGV[2], head .. '\n' .. ARGV[4])

local found, asked = {}, call('HGETALL', KEY.asked)
for place = 1, #asked, 2 do
  if asked[place + 1] == ARGV[2] then
    found[#found + 1] = asked[place]
  end
end
return found
