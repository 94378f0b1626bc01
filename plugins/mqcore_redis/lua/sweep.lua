#!lua flags=allow-oom
-- Leases expired messages wherever they stand, the earliest first. ARGV: lease, token, limit.
-- Answer: -1 when the queue is missing, else now and rows.
local queue = open(1)
if not queue then
  return -1
end
tick(queue)
local entries, places, limit, from = {}, {}, tonumber(ARGV[3]), 0
while #entries < limit do
  local expired = call('ZRANGEBYSCORE', queue.x, '-inf', now, 'LIMIT', from, limit)
  if #expired == 0 then
    break
  end
  from = from + #expired
  for _, entry in ipairs(expired) do
    local place = #entries < limit and pick(queue, entry) -- what is leased is its owner's to bury
    if place then
      entries[#entries + 1], places[#places + 1] = entry, place
    end
  end
end
return { format('%.0f', now), hand_out(queue, entries, places, tonumber(ARGV[1]), ARGV[2]) }
