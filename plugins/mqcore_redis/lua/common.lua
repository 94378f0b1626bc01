-- What every script begins with: the clock, the keys of a queue, and the steps between its sets.
--
--   put --> d (delayed) --due--> r (ready) --claim--> l (leased) --settle--> gone
--                                   ^                    |
--                                   +------ release -----+   (also when the lease ends: a takeover)
--
-- A message is one *entry*: two digits of level (10 - priority), fifteen of its number. Numbers
-- follow the server's clock, so they grow over all queues. The score in r is level and *place*; the
-- place is the number, or of a delayed one what the number of its due time would be. A lease is a
-- member `token|place|entry` of l: the receipt, which knows the old place. Times are whole
-- microseconds of the server's clock: exact in a double, as are the scores.

local call, format, floor = redis.call, string.format, math.floor
local LEVEL = 800000000000000 -- above any place until the year 2118; 11 levels stay below 2^53
local EPOCH, RATE = 1577836800000000, 0.256 -- places count from 2020, 256 in a millisecond
-- An idle consumer claims once a second. What falls due before that must wake it.
local SOON = 1500000
local STEP = 1000 -- entries that `tick` may change in one call
-- Bytes of records that a call may read or write, or one larger record; as in `batches.py`.
local BYTES = 1048576
local IDLE = 3600 -- seconds that a temporary queue stays without a consumer
local NAMES = { 'q', 'r', 'm', 'd', 'l', 'x', 'a', 'w', 'in', 'i0', 'i1' }

local time = call('TIME')
local now = time[1] * 1000000 + time[2]

-- Calls with as many values as there are: `unpack` raises at about 8,000.
local function each(command, key, values)
  for first = 1, #values, 4000 do
    call(command, key, unpack(values, first, math.min(first + 3999, #values)))
  end
end

local function ask(command, key, values)
  if #values > 0 and #values <= 4000 then
    return call(command, key, unpack(values))
  end
  local answers = {}
  for first = 1, #values, 4000 do
    local part = call(command, key, unpack(values, first, math.min(first + 3999, #values)))
    for _, answer in ipairs(part) do
      answers[#answers + 1] = answer
    end
  end
  return answers
end

local function place_at(moment)
  return math.max(floor((moment - EPOCH) * RATE), 1)
end

local function level_of(entry)
  return tonumber(entry:sub(1, 2))
end

-- Forgets what `flush` was to store.
local function clear(queue)
  queue.records, queue.places, queue.delays, queue.expiries, queue.names = {}, {}, {}, {}, {}
  queue.stored, queue.wake = 0, false
  return queue
end

-- The queue whose eleven keys are the `position`th of KEYS; nil when it was never declared.
local function open(position)
  local queue = clear({})
  for index, name in ipairs(NAMES) do
    queue[name] = KEYS[(position - 1) * #NAMES + index]
  end
  local found = call('HMGET', queue.q, 'born', 'name', 'role', 'ttl', 'max_length', 'overflow',
    'dead_letter', 'retention', 'last', 'bucket', 'since', 'published')
  if not found[1] then
    return nil
  end
  queue.born, queue.name, queue.role = found[1], found[2], found[3]
  queue.ttl, queue.max_length, queue.overflow = tonumber(found[4]), tonumber(found[5]), found[6]
  queue.dead_letter, queue.retention = found[7] or '', tonumber(found[8])
  queue.last, queue.bucket = tonumber(found[9] or 0), tonumber(found[10] or 0)
  queue.since, queue.published = tonumber(found[11] or 0), tonumber(found[12] or 0)
  return queue
end

-- A queue, and together with its quarantine if there is one.
local function family()
  local queue, again = open(1), open(2)
  return queue, { queue, again and again.role == 'quarantine' and again or nil }
end

-- One token on w wakes one idle consumer. One is enough, because a consumer that leaves something
-- behind wakes the next.
local function wake(queue)
  if call('LLEN', queue.w) == 0 then
    call('RPUSH', queue.w, 1)
  end
end

-- Whether a consumer that claims now gets something, or has to set its timer.
local function something_to_do(queue)
  if call('ZCARD', queue.r) > 0 or call('LLEN', queue['in']) > 0 then
    return true
  end
  local due = call('ZRANGE', queue.d, 0, 0, 'WITHSCORES')
  return due[1] and tonumber(due[2]) - now < SOON
end

-- The keys of a temporary queue expire. `from`: the number of the first one.
local function keep(queue, from)
  if queue.role == 'temporary' then
    for index = from, #NAMES do
      call('EXPIRE', queue[NAMES[index]], IDLE)
    end
  end
end

-- What `a` has of an entry that was handed out before: its takeovers; then `+` when its holder has
-- noted the start of a handler, or `*` when a lost holder had.
local function history(queue, entry)
  local taken, started = (call('HGET', queue.a, entry) or '0'):match('^(%d+)(.?)$')
  return tonumber(taken) or 0, started or ''
end

-- Ends leases: their entries go back to their old places, or to the rest of their delays. `how`: R
-- they were released; L their owner is lost, which is one more takeover; U they were not handed
-- out, so their marks stay.
local function give_back(queue, receipts, how)
  local places, delays = {}, {}
  for _, receipt in ipairs(receipts) do
    local place, entry = receipt:match('^[^|]+|([^|]+)|(.+)$')
    if place:sub(1, 1) == 'd' then
      delays[#delays + 1], delays[#delays + 2] = place:sub(2), entry
    else
      places[#places + 1], places[#places + 2] = level_of(entry) * LEVEL + tonumber(place), entry
    end
    local taken, started = history(queue, entry)
    if how == 'R' then
      call('HSET', queue.a, entry, taken .. (started == '*' and '*' or ''))
    elseif how == 'L' then
      call('HSET', queue.a, entry, (taken + 1) .. (started ~= '' and '*' or ''))
    end
  end
  each('ZREM', queue.l, receipts)
  each('ZADD', queue.r, places)
  each('ZADD', queue.d, delays)
end

local function forget(queue, entries)
  for _, kind in ipairs({ 'm', 'a' }) do
    each('HDEL', queue[kind], entries)
  end
  each('ZREM', queue.x, entries)
end

-- As many of these entries, from the first, as it takes to come above `bytes`; and how many bytes
-- they are.
local function up_to(queue, entries, bytes)
  local found, size = {}, 0
  for index, entry in ipairs(entries) do
    if size > bytes then
      break
    end
    found[index], size = entry, size + call('HSTRLEN', queue.m, entry)
  end
  return found, size
end

-- Removes old dead letters: places say when they were stored. It removes more than any call stores.
local function retain(queue)
  local oldest, count, bytes = place_at(now - queue.retention), STEP, 8 * BYTES
  for level = 0, 10 do
    local first = level * LEVEL
    local range = { queue.r, first, first + oldest, 'LIMIT', 0, count }
    local old = count > 0 and call('ZRANGEBYSCORE', unpack(range)) or {}
    local gone, size = up_to(queue, old, bytes)
    each('ZREM', queue.r, gone)
    forget(queue, gone)
    count, bytes = count - #gone, bytes - size
  end
end

-- The least score of a sorted set; nil when it is empty.
local function least(key)
  return tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
end

-- Applies the time: leases end, delays fall due in their order, old dead letters are removed.
-- Returns when the next lease ends, and when the next delay.
local function tick(queue)
  local ends, falls_due = least(queue.l), least(queue.d)
  if ends and ends <= now then
    local ended = call('ZRANGEBYSCORE', queue.l, '-inf', now, 'LIMIT', 0, STEP)
    give_back(queue, ended, 'L')
    keep(queue, 2)
    ends, falls_due = least(queue.l), least(queue.d)
  end
  if falls_due and falls_due <= now then
    local due = call('ZRANGEBYSCORE', queue.d, '-inf', now, 'WITHSCORES', 'LIMIT', 0, STEP)
    local places, gone = {}, {}
    for index = 1, #due, 2 do
      local place = place_at(tonumber(due[index + 1]))
      places[index], places[index + 1] = level_of(due[index]) * LEVEL + place, due[index]
      gone[#gone + 1] = due[index]
    end
    each('ZREM', queue.d, gone)
    each('ZADD', queue.r, places)
    keep(queue, 2)
    falls_due = least(queue.d)
  end
  if queue.retention then
    retain(queue)
  end
  return ends, falls_due
end

-- Names of stored copies (G1): two buckets, so that each is known for one to two windows. The value
-- of a name with a hop is the number that it was stored under: by it a Move distinguishes its own
-- successor from an older copy. A Move that is done in one step leaves no number: its source is
-- removed with it, so that the Move is not repeated, and another copy of the same id may come.
local function remembered(queue, window, size, names)
  local age = now - queue.since
  local current, other = queue.bucket == 0 and 'i0' or 'i1', queue.bucket == 0 and 'i1' or 'i0'
  if age >= window or call('HLEN', queue[current]) >= size then
    call('UNLINK', queue[other])
    if age >= 2 * window then
      call('UNLINK', queue[current])
    end
    queue.bucket, queue.since, queue.has_turned = 1 - queue.bucket, now, true
  end
  local known = {}
  for _, bucket in ipairs({ 'i0', 'i1' }) do
    for index, value in ipairs(ask('HMGET', queue[bucket], names)) do
      if value and (known[names[index]] or '') <= value then
        known[names[index]] = value
      end
    end
  end
  return known
end

-- How a copy is to be stored, as the driver writes it: priority, delay, ttl, expiry, whether it was
-- moved, and the number after which a name counts.
local function store_options(text)
  if text == '5,,,,,' then -- nearly always
    return { priority = 5, delay = 0 }
  end
  local pattern = '^(%d*),(%d*),(%d*),(%d*),(%d*),(%d*)$'
  local priority, delay, ttl, expires, moved, since = text:match(pattern)
  return {
    priority = tonumber(priority) or 5,
    delay = tonumber(delay) or 0,
    ttl = tonumber(ttl),
    expires = tonumber(expires),
    moved = moved == '1',
    since = tonumber(since),
  }
end

-- Notes a copy to be stored by `flush`. One that expires during its delay falls due at its expiry,
-- so that core dead-letters it.
local function put(queue, want, record, known, name)
  local number = math.max(queue.last + 1, place_at(now), (want.since or 0) + 1)
  local entry = format('%02d%015.0f', 10 - want.priority, number)
  local expires = want.expires
  if want.ttl then
    expires = now + want.ttl
  end
  if queue.ttl and not want.moved then
    expires = math.min(expires or now + queue.ttl, now + queue.ttl)
  end
  queue.last, queue.stored = number, queue.stored + 1
  table.insert(queue.records, entry)
  table.insert(queue.records, record)
  if expires then
    table.insert(queue.expiries, expires)
    table.insert(queue.expiries, entry)
  end
  if want.delay > 0 then
    local due = math.min(now + want.delay, expires or now + want.delay)
    queue.wake = queue.wake or due - now < SOON
    table.insert(queue.delays, due)
    table.insert(queue.delays, entry)
  else
    queue.wake = true
    table.insert(queue.places, (10 - want.priority) * LEVEL + number)
    table.insert(queue.places, entry)
  end
  if name then
    known[name] = want.moved and not want.one_step and format('%015.0f', number) or ''
    table.insert(queue.names, name)
    table.insert(queue.names, known[name])
  end
end

local function flush(queue)
  if queue.stored == 0 then
    return
  end
  each('HSET', queue.m, queue.records)
  each('ZADD', queue.r, queue.places)
  each('ZADD', queue.d, queue.delays)
  each('ZADD', queue.x, queue.expiries)
  each('HSET', queue.bucket == 0 and queue.i0 or queue.i1, queue.names)
  queue.published = queue.published + queue.stored
  call('HSET', queue.q, 'last', format('%.0f', queue.last),
    'published', format('%.0f', queue.published))
  if queue.has_turned then
    call('HSET', queue.q, 'bucket', queue.bucket, 'since', format('%.0f', queue.since))
    queue.has_turned = false
  end
  if queue.wake then
    wake(queue)
  end
  keep(queue, 2)
  clear(queue)
end

-- Takes in up to `limit` messages of plain clients, as first attempts; a token makes their ids. It
-- is read a second time to be handed out, so half of what a call may carry is enough. Returns
-- whether it has left any.
local function take_in(queue, limit, token)
  local size = 0
  for index = 1, limit do
    if size >= BYTES / 2 then
      break
    end
    local body = call('LPOP', queue['in'])
    if not body then
      flush(queue)
      return false
    end
    size = size + #body
    put(queue, { priority = 5, delay = 0 }, format('{"id":"%s-%d"}\n', token, index) .. body)
  end
  flush(queue)
  return call('LLEN', queue['in']) > 0
end

-- Leases what has been taken out of r and d: pairs of entry and place. A row for each: receipt,
-- record, expiry, takeovers (empty: it was never handed out).
local function hand_out(queue, entries, places, lease, token)
  local rows, leases = {}, {}
  if #entries == 0 then
    return rows
  end
  local records, marks = ask('HMGET', queue.m, entries), ask('HMGET', queue.a, entries)
  local expiries = ask('ZMSCORE', queue.x, entries)
  for index, entry in ipairs(entries) do
    if records[index] then
      local receipt = token .. '|' .. places[index] .. '|' .. entry
      leases[#leases + 1], leases[#leases + 2] = now + lease, receipt
      local expires, taken = expiries[index] or '', marks[index] or ''
      for _, value in ipairs({ receipt, records[index], expires, taken }) do
        rows[#rows + 1] = value
      end
    end
  end
  each('ZADD', queue.l, leases)
  return rows
end

-- Takes entries out of r and d, up to `limit` of them and BYTES. What is leased or gone is skipped.
-- Returns them, their places for the lease, and how many of `store_options` have been looked at.
local function pick(queue, names, limit)
  local entries, places, size, seen = {}, {}, 0, 0
  for _, entry in ipairs(names) do
    local ready = call('ZSCORE', queue.r, entry)
    local score = ready or call('ZSCORE', queue.d, entry)
    if score then
      size = size + call('HSTRLEN', queue.m, entry)
      if #entries >= limit or (size > BYTES and #entries > 0) then
        break
      end
      call('ZREM', ready and queue.r or queue.d, entry)
      entries[#entries + 1] = entry
      places[#entries] = ready and format('%.0f', tonumber(score) - level_of(entry) * LEVEL)
        or format('d%.0f', tonumber(score))
    end
    seen = seen + 1
  end
  return entries, places, seen
end
