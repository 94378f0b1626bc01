#!lua flags=allow-oom
-- Extends claims; with a lease of 0 it only looks.
-- ARGV: lease, receipts.
-- Answer: for each the microseconds that are left of it, 0 when it is lost.
local queue = open(1)
local lease, receipts, left, leases = tonumber(ARGV[1]), {}, {}, {}
for index = 2, #ARGV do
  receipts[index - 1] = ARGV[index]
end
local ends = queue and ask('ZMSCORE', queue.l, receipts) or {}
for index, receipt in ipairs(receipts) do
  left[index] = math.max((tonumber(ends[index] or 0) or 0) - now, 0)
  if left[index] > 0 and lease > 0 then
    left[index] = lease
    leases[#leases + 1], leases[#leases + 2] = now + lease, receipt
  end
end
if queue then
  each('ZADD', queue.l, leases)
end
return left
