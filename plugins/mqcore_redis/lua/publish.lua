#!lua
-- Stores a batch in one queue: the queue's keys, and those of its dead-letter queue where an
-- overflow goes there.
-- ARGV: window, size, name of the dead-letter queue whose keys were sent; for each message its
-- name, store options, record.
-- Answer: -1 when the queue is missing; the name of the dead-letter queue whose keys it needs, and
-- nothing was done; else for each message 1 stored, 2 known already, 0 full.
local queue = open(1)
if not queue then
  return -1
end
local overflows = queue.max_length and queue.overflow == 'dead_letter'
if overflows and queue.dead_letter ~= '' and queue.dead_letter ~= ARGV[3] then
  return queue.dead_letter
end
local letters = overflows and queue.dead_letter ~= '' and open(2) or nil
local ready = 0
if queue.max_length or queue.retention then
  tick(queue)
  ready = call('ZCARD', queue.r)
end

local names = {}
for index = 4, #ARGV, 3 do
  names[#names + 1] = ARGV[index]
end
local known = remembered(queue, tonumber(ARGV[1]), tonumber(ARGV[2]), names)
local outcomes, bounded = {}, false
for index = 4, #ARGV, 3 do
  local name, want = ARGV[index], store_options(ARGV[index + 1])
  local counts = not want.moved and want.delay == 0 and queue.max_length
  local outcome = 1
  if known[name] and not (want.since and (tonumber(known[name]) or 0) <= want.since) then
    outcome = 2
  elseif counts and not overflows and ready >= queue.max_length then
    outcome = 0
  else
    put(queue, want, ARGV[index + 2], known, name)
    bounded = bounded or counts
    ready = ready + (want.delay == 0 and 1 or 0)
  end
  outcomes[#outcomes + 1] = outcome
end
local stored = queue.stored
flush(queue)

-- Evicts the oldest of the lowest priority: their records go to the dead-letter queue, unchanged
-- behind a line with the reason. Returns how many, and how many bytes.
local function evict(count, bytes)
  local lowest = call('ZREVRANGE', queue.r, 0, 0)
  local floor_of = level_of(lowest[1]) * LEVEL
  local oldest = call('ZRANGEBYSCORE', queue.r, floor_of, floor_of + LEVEL - 1, 'LIMIT', 0, count)
  local entries, size = up_to(queue, oldest, bytes)
  local records = letters and ask('HMGET', queue.m, entries)
  each('ZREM', queue.r, entries)
  forget(queue, entries)
  if letters then
    local note = '!' .. cjson.encode({ queue = queue.name, at = format('%.0f', now) }) .. '\n'
    for index, entry in ipairs(entries) do
      if records[index] then
        local want = { priority = 10 - level_of(entry), delay = 0, moved = true }
        put(letters, want, note .. records[index])
      end
    end
    flush(letters)
  else
    call('HINCRBY', queue.q, 'dropped', #entries)
  end
  return #entries, size
end

if bounded and overflows then
  -- As many messages as this call has added, however large, in parts of BYTES: so the bound is not
  -- passed by publishing. And more, up to STEP and BYTES, that were moved in beyond the bound:
  -- those are evicted by later calls.
  local over, bytes = math.min(call('ZCARD', queue.r) - queue.max_length, STEP), BYTES
  while over > 0 and (bytes >= 0 or stored > 0) do
    local more = bytes >= 0
    local count, size = evict(more and over or math.min(over, stored), more and bytes or BYTES)
    over, bytes, stored = over - count, bytes - size, stored - count
  end
  if letters and letters.retention then
    retain(letters)
  end
end
return outcomes
