#!lua flags=allow-oom
-- Leases up to `limit` ready messages, the highest priority first, no more than fit into BYTES (but
-- one).
-- ARGV: born (or nothing), limit, lease, token, and 1 where this is the consumer's last call.
-- Answer: -1 when the queue is missing or another of the same name; else born, now, microseconds
-- until time changes something (-1: never), rows.
local queue = open(1)
if not queue or (ARGV[1] ~= '' and ARGV[1] ~= queue.born) then
  return -1
end
local limit, token, is_last = tonumber(ARGV[2]), ARGV[4], ARGV[5] == '1'
tick(queue)
take_in(queue, limit, token)

local entries, places, size = {}, {}, 0
if limit > 0 then
  local found = call('ZRANGE', queue.r, 0, limit - 1, 'WITHSCORES')
  for index = 1, #found, 2 do
    size = size + call('HSTRLEN', queue.m, found[index])
    if size > BYTES and #entries > 0 then
      break
    end
    entries[#entries + 1] = found[index]
    local place = tonumber(found[index + 1]) - level_of(found[index]) * LEVEL
    places[#places + 1] = format('%.0f', place)
  end
  each('ZREM', queue.r, entries)
end
local rows = hand_out(queue, entries, places, tonumber(ARGV[3]), token)

local soonest = -1
for _, kind in ipairs({ 'd', 'l' }) do
  local first = call('ZRANGE', queue[kind], 0, 0, 'WITHSCORES')
  if first[1] and (soonest < 0 or tonumber(first[2]) - now < soonest) then
    soonest = math.max(tonumber(first[2]) - now, 0)
  end
end
if #rows > 0 or is_last then -- a consumer that ends may have been woken
  if something_to_do(queue) then
    wake(queue)
  else
    call('UNLINK', queue.w) -- there is nothing to wake a consumer for
  end
end
-- an idle claim writes nothing, unless the queue would expire
if queue.role == 'temporary' and (#rows > 0 or call('TTL', queue.q) < 0.9 * IDLE) then
  keep(queue, 1)
end
return { queue.born, format('%.0f', now), soonest, rows }
