#!lua flags=allow-oom
-- Notes that handlers start with these claims.
-- ARGV: receipts.
-- Answer: for each 1, or 0 when it is lost.
local queue = open(1)
local ends, noted = queue and #ARGV > 0 and ask('ZMSCORE', queue.l, ARGV) or {}, {}
for index, receipt in ipairs(ARGV) do
  noted[index] = (tonumber(ends[index] or 0) or 0) > now and 1 or 0
  if noted[index] == 1 then
    local entry = receipt:match('|([^|]+)$')
    local taken, started = history(queue, entry)
    call('HSET', queue.a, entry, taken .. (started == '*' and '*' or '+'))
  end
end
return noted
