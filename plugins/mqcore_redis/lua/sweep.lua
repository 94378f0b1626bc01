#!lua flags=allow-oom
-- Leases expired messages at any place, the earliest first.
-- ARGV: lease, token, limit, how many to skip.
-- Answer: -1 when the queue is missing, else now, rows, and how many the next call must skip, -1
-- when there are no more.
local queue = open(1)
if not queue then
  return -1
end
tick(queue)
local from, limit = tonumber(ARGV[4]), tonumber(ARGV[3])
local expired = call('ZRANGEBYSCORE', queue.x, '-inf', now, 'LIMIT', from, STEP)
-- the owner of a leased one dead-letters it
local entries, places, seen = pick(queue, expired, limit)
local rows = hand_out(queue, entries, places, tonumber(ARGV[1]), ARGV[2])
return { format('%.0f', now), rows, seen < STEP and seen == #expired and -1 or from + seen }
