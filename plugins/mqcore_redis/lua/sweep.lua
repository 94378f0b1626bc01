#!lua flags=allow-oom
-- Leases expired messages wherever they stand, the earliest first. ARGV: lease, token, limit, how many to pass over.
-- Answer: -1 when the queue is missing, else now, rows, and how many to pass over when it goes on: -1 when all have been seen.
local queue = open(1)
if not queue then
  return -1
end
tick(queue)
local from, limit = tonumber(ARGV[4]), tonumber(ARGV[3])
local expired = call('ZRANGEBYSCORE', queue.x, '-inf', now, 'LIMIT', from, STEP)
local entries, places, seen = pick(queue, expired, limit) -- what is leased is its owner's to bury
local rows = hand_out(queue, entries, places, tonumber(ARGV[1]), ARGV[2])
return { format('%.0f', now), rows, seen < STEP and seen == #expired and -1 or from + seen }
