-- Rates and slots: `Limits` of `mqcore.tasks.transitions.limits`, function by function and under the
-- same names, where the reasons are given.
--
-- `l:KEY` has what is stored of a rate or of slots. `w:KEY` is the line of those that wait for a slot:
-- a sorted set by the time since when they do.

local EARLY, ROUNDED, STEP, UNUSED = 0.05, 0.0001, 0.000001, 2
local KEPT = 3600 -- seconds that a rate is stored after it has no meaning any more

local limits = {}
local values, untils, lines = {}, {}, {} -- what they are to be, by key; false removes

local function limit_of(key)
  if values[key] == nil then
    return call('GET', KEYS[1] .. 'l:' .. key)
  end
  return values[key]
end

local function put_limit(key, value, until_time)
  values[key], untils[key] = value, until_time
end

-- What changes in a line: since when a task waits, false for one that leaves.
local function line_of(key)
  lines[key] = lines[key] or {}
  return lines[key]
end

local function first_waiter(key)
  local changed, count, first, since = line_of(key), 0, nil, nil
  local function take(task, time)
    local is_before = not first or tonumber(time) < tonumber(since)
      or tonumber(time) == tonumber(since) and task < first
    if is_before then
      first, since = task, time
    end
  end

  for task, time in pairs(changed) do
    count = count + 1
    if time then
      take(task, time)
    end
  end
  local found = call('ZRANGE', KEYS[1] .. 'w:' .. key, 0, count, 'WITHSCORES')
  for place = 1, #found, 2 do
    if changed[found[place]] == nil then
      take(found[place], found[place + 1])
    end
  end
  return first, since
end

local function commit_limits()
  for key, value in pairs(values) do
    local name = KEYS[1] .. 'l:' .. key
    if not value then
      call('DEL', name)
    elseif untils[key] then
      call('SET', name, value, 'EX', format('%d', math.ceil(untils[key] - now) + KEPT))
    else
      call('SET', name, value)
    end
  end
  for key, changed in pairs(lines) do
    for task, since in pairs(changed) do
      if since then
        call('ZADD', KEYS[1] .. 'w:' .. key, since, task)
      else
        call('ZREM', KEYS[1] .. 'w:' .. key, task)
      end
    end
  end
end

-- Rates

-- Returns nil where a task may start, or the time at which it may.
function limits.turn(node, rate)
  local interval, tolerance = rate.interval, (rate.burst - 1) * rate.interval
  local bucket = cjson.decode(limit_of(rate.key) or '["0","0"]')
  local next_turn, used = tonumber(bucket[1]), tonumber(bucket[2])
  local turn = tonumber(node.turn)
  if turn > now + EARLY then
    return turn
  end

  local function put()
    put_limit(rate.key, cjson.encode({ text(next_turn), text(used) }), next_turn)
  end

  if turn > 0 and used - tolerance <= math.max(now, turn) + ROUNDED then
    local is_late = now - turn >= interval
    used = math.max(used, is_late and now or turn) + interval
    next_turn = math.max(next_turn, used)
    node.turn = '0'
    put()
    return nil
  end

  if used + UNUSED < now then
    next_turn = math.min(next_turn, now)
  end
  next_turn = math.max(next_turn, used)
  turn = math.max(next_turn - tolerance, now)
  next_turn = math.max(next_turn, now) + interval
  local may_start = turn <= now
  if may_start then
    used = math.max(used, now) + interval
  end
  node.turn = may_start and '0' or text(turn)
  put()
  return not may_start and turn or nil
end

-- Slots: a list of holders, each of which is task, worker, and whether it keeps its slot. `last` is
-- the time since when the last one in the line waits.

local function slots_of(key)
  local stored = limit_of(key)
  local found = cjson.decode(stored or '[0,[],"0"]')
  return { count = found[1], held = found[2], last = found[3] }
end

local function put_slots(key, slots)
  put_limit(key, slots.held[1] and cjson.encode({ slots.count, slots.held, slots.last }) or false)
end

local function place_of(slots, task)
  for place, holder in ipairs(slots.held) do
    if holder[1] == task then
      return place
    end
  end
  return nil
end

local function wake(key, task, since)
  local node = get(task)
  if not node or not LIVE[node.state] or node.slot ~= key then
    return false
  end
  put_entry(format('%s:%d:w%.0f', task, node.run, since * 1000000), task, node.run)
  return true
end

local function line_key(node)
  return 'unique:' .. node.unique
end

function limits.line_up(node)
  local key = line_key(node)
  local slots = slots_of(key)
  node.slot, slots.last = key, text(math.max(now, tonumber(slots.last) + STEP))
  line_of(key)[node.id] = slots.last
  put_limit(key, cjson.encode({ 0, {}, slots.last }), tonumber(slots.last))
end

function limits.hand_over(node)
  if holder_of(node.unique) ~= node.id then
    return
  end
  unclaim(node.unique, node.id)
  local key = line_key(node)
  local task, since = first_waiter(key)
  while task do
    line_of(key)[task] = false
    if wake(key, task, since) then
      claims[node.unique] = task
      return
    end
    task, since = first_waiter(key)
  end
end

local function fill(slots, key, present)
  while #slots.held < slots.count do
    local task, since = first_waiter(key)
    if not task then
      return
    end
    line_of(key)[task] = false
    if present and task == present.id then
      push(slots.held, { task, '', false })
    else
      push(slots.held, wake(key, task, since) and { task, '', false } or nil)
    end
  end
end

function limits.enter(node, limit, worker)
  local slots, held = slots_of(limit.key), {}
  slots.count = limit.count
  for _, holder in ipairs(slots.held) do
    local keeps = holder[3] or not limit.takes_over or holder[2] == '' or holder[1] == node.id or is_alive(holder[2])
    push(held, keeps and holder or nil)
  end
  slots.held = held
  fill(slots, limit.key, node)

  local place = place_of(slots, node.id)
  if not place and #held < slots.count then
    place = #held + 1
  end
  if place then
    held[place] = { node.id, worker, limit.keeps }
  elseif node.slot ~= limit.key or node.state == 'running' then
    slots.last = text(math.max(now, tonumber(slots.last) + STEP))
    line_of(limit.key)[node.id] = slots.last
  end
  node.slot = limit.key
  put_slots(limit.key, slots)
  return place ~= nil
end

-- `between`: the task leaves only for the time between two attempts.
function limits.leave(node, between)
  local key = node.slot
  if key == '' then
    return
  end
  local slots = slots_of(key)
  local place = place_of(slots, node.id)
  if between and place and slots.held[place][3] then
    slots.held[place][2] = ''
  else
    node.slot = ''
    line_of(key)[node.id] = false
    if place then
      table.remove(slots.held, place)
    end
    fill(slots, key)
  end
  put_slots(key, slots)
end
