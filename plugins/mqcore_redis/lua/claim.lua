#!lua flags=allow-oom
-- Leases up to `limit` ready messages, the highest priority first, no more than fit into BYTES (but
-- one).
-- ARGV: born (or nothing), limit, lease, token, and 1 where this is the consumer's last call.
-- Answer: -1 when the queue is missing or another of the same name; else born, now, microseconds
-- until a claim may get something (0: at once, -1: when somebody stores it), rows.
local queue = open(1)
if not queue or (ARGV[1] ~= '' and ARGV[1] ~= queue.born) then
  return -1
end
local limit, lease, token, is_last = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5] == '1'
local ends, falls_due = tick(queue)
local is_more = take_in(queue, limit, token)

-- one more than it may take, to see whether it leaves any
local found = call('ZRANGE', queue.r, 0, limit, 'WITHSCORES')
local entries, places, size = {}, {}, 0
for index = 1, math.min(#found, 2 * limit), 2 do
  size = size + (#found > 2 and call('HSTRLEN', queue.m, found[index]) or 0)
  if size > BYTES and #entries > 0 then
    break
  end
  entries[#entries + 1] = found[index]
  places[#places + 1] = format('%.0f', tonumber(found[index + 1]) - level_of(found[index]) * LEVEL)
end
each('ZREM', queue.r, entries)
local rows = hand_out(queue, entries, places, lease, token)
is_more = is_more or #found > 2 * #entries
if #rows > 0 then
  ends = math.min(ends or now + lease, now + lease)
end

if #rows > 0 or is_last then -- a consumer that ends may have been woken
  if is_more or (falls_due and falls_due - now < SOON) then
    wake(queue)
  else
    call('UNLINK', queue.w) -- there is nothing to wake a consumer for
  end
end
-- an idle claim writes nothing, unless the queue would expire
if queue.role == 'temporary' and (#rows > 0 or call('TTL', queue.q) < 0.9 * IDLE) then
  keep(queue, 1)
end
local soonest = is_more and 0 or -1
if not is_more and (ends or falls_due) then
  soonest = math.max(math.min(ends or math.huge, falls_due or math.huge) - now, 0)
end
return { queue.born, format('%.0f', now), soonest, rows }
