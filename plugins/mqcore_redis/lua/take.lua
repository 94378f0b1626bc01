#!lua flags=allow-oom
-- Leases chosen entries that are ready or delayed. ARGV: lease, token, entries.
-- Answer: -1 when the queue is missing, else now and rows.
local queue = open(1)
if not queue then
  return -1
end
tick(queue)
local entries, places = {}, {}
for index = 3, #ARGV do
  local place = pick(queue, ARGV[index])
  if place then
    entries[#entries + 1], places[#places + 1] = ARGV[index], place
  end
end
return { format('%.0f', now), hand_out(queue, entries, places, tonumber(ARGV[1]), ARGV[2]) }
