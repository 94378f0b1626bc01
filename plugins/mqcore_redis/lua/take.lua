#!lua flags=allow-oom
-- Leases chosen entries that are ready or delayed.
-- ARGV: lease, token, entries.
-- Answer: -1 when the queue is missing, else now, rows, and how many of the entries it has read:
-- not all, where the answer would exceed BYTES.
local queue = open(1)
if not queue then
  return -1
end
tick(queue)
local names = {}
for index = 3, #ARGV do
  names[index - 2] = ARGV[index]
end
local entries, places, seen = pick(queue, names, #names)
return { format('%.0f', now), hand_out(queue, entries, places, tonumber(ARGV[1]), ARGV[2]), seen }
