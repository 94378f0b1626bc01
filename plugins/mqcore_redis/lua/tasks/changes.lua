-- The changes: `Transitions` of `mqcore.tasks.transitions.apply`, function by function and under
-- the same names, where the reasons are given. Each reads its words from ARGV and returns its
-- outcome: a word, or a list that begins with it.

local SEAL_WITHIN = 60
local place = 2

local function take()
  place = place + 1
  return ARGV[place]
end

local function take_number()
  return tonumber(take())
end

-- A value that may be missing comes after a word that says whether it is there.
local function take_optional()
  local is_there, value = take() == '1', take()
  return is_there and value or nil
end

-- Rows to insert. `mark` has u for an unsealed group, m for a member of the group that grows.
local function take_rows()
  local rows = {}
  for number = 1, take_number() do
    rows[number] = { id = take(), mark = take(), packed = take(), payload = take() }
  end
  return rows
end

-- The rate of a beginning, and its slots: an empty key where it has none.
local function take_rate()
  local key = take()
  return key ~= '' and { key = key, interval = take_number(), burst = take_number() } or nil
end

local function take_slot()
  local key = take()
  return key ~= '' and { key = key, count = take_number(), keeps = take() == '1',
    takes_over = take() == '1' } or nil
end

local changes = {}

-- Sending

local function insert(rows)
  for _, row in ipairs(rows) do
    add(row)
    if row.mark:find('u', 1, true) then
      local group = get(row.id)
      group.seal_by = text(now + SEAL_WITHIN)
      save(group)
    end
  end
end

-- Claims the unique key of a root, or returns who has it.
local function claim(root)
  if root.unique == '' then
    return nil
  end
  local holder = holder_of(root.unique)
  if not holder then
    claims[root.unique] = root.id
  end
  return holder and holder ~= root.id and { 'conflict', holder } or nil
end

local function add_tree(rows, waits)
  if get(rows[1].id) then
    return 'exists'
  end
  local root = decode(rows[1].id, rows[1].packed)
  local conflict = claim(root)
  if conflict and not waits then
    return conflict
  end
  insert(rows)
  if conflict then
    local node = get(root.id)
    move_to(node, 'queued')
    node.due = text(now + tonumber(node.delay))
    limits.line_up(node)
    save(node)
  else
    walk.release(get(root.id))
  end
  return 'added'
end

function changes.add()
  local waits = take() == '1'
  return add_tree(take_rows(), waits)
end

function changes.more()
  local id, seal, rows = take(), take() == '1', take_rows()
  local group = get(id)
  if not group or ENDED[group.state] or group.is_sealed then
    return 'closed'
  end

  local unread = {}
  for _, row in ipairs(rows) do
    unread[#unread + 1] = read[row.id] == nil and row.id or nil
  end
  load(root_of(id), unread)
  local fresh, members = {}, {}
  for _, row in ipairs(rows) do
    if not read[row.id] then
      push(fresh, row)
      push(members, row.mark:find('m', 1, true) and row or nil)
    end
  end
  insert(fresh)
  group.size = group.size + #members
  group.is_sealed = seal
  group.seal_by = text(now + SEAL_WITHIN)
  save(group)

  if group.state == 'running' and #members > 0 then
    walk.treat(group, get(members[1].id).index, get(members[#members].id).index + 1)
  end
  walk.close_if_complete(group)
  return 'ok'
end

function changes.fire()
  local name, version, next_at = take(), take_number(), take()
  local definition, rows = take_optional(), take_rows()
  local stored = schedule_of(name)
  if (stored and head_of(stored).version or 0) ~= version then
    return 'lost'
  end
  definition = definition or (stored and stored:match('\n(.*)$')) or ''
  local head = cjson.encode({ version = version + 1, next_at = next_at })
  schedules[name] = head .. '\n' .. definition
  if rows[1] then
    add_tree(rows)
  end
  return 'fired'
end

function changes.sent()
  for _ = 1, take_number() do
    remove_entry(take())
  end
  return 'ok'
end

-- Running

-- Inserts the row of a redriven task again, which was removed at the end of its retention.
local function restore(row, run)
  if not row then
    return nil
  end
  add(row)
  local node = get(row.id)
  node.state, node.run, node.parent = 'failed', run - 1, ''
  return node
end

-- Moves a task to a state, in its next run where the message is of that one.
local function open(node, begin, state)
  if ENDED[node.state] then
    node.state = state -- the one way out of a terminal state: the next run
  elseif state == 'running' or node.state == 'scheduled' or node.state == 'running' then
    move_to(node, state)
  end
  if begin.run > node.run then
    node.run, node.copies, node.progress_number = begin.run, 0, '0'
  end
end

-- Has a task wait for a slot, then for its turn. Returns nil where it may start.
local function wait(node, begin)
  local rate, slot, is_in_line, delay = begin.rate, begin.slot, node.slot ~= '', nil
  if node.state == 'running' and node.token == begin.token then
    return nil
  end
  if is_in_line and (not slot or slot.key ~= node.slot) then
    limits.leave(node)
  end

  if not slot or limits.enter(node, slot, begin.worker) then
    local turn = rate and limits.turn(node, rate)
    if not turn then
      return nil
    end
    delay, node.due = text(turn - now), text(turn)
    if slot then
      limits.enter(node, slot, '')
    end
  end

  if not is_in_line or begin.attempt > node.attempt then
    node.attempt = begin.attempt
  end
  open(node, begin, 'queued')
  node.token, node.worker = '', ''
  save(node)
  return { 'later', delay or '' }
end

local function start(node, begin)
  open(node, begin, 'running')
  node.turn = '0'
  node.attempt, node.token, node.worker = begin.attempt, begin.token, begin.worker
  node.due = now_text
  save(node)
  return { 'started', with_texts(node) }
end

-- Whether the message is a further copy of one whose attempt is running.
local function runs_elsewhere(node, begin)
  if begin.is_redelivered or node.state ~= 'running' then
    return false
  end
  local is_repeated = node.token == begin.token
  return node.run == begin.run and not is_repeated and is_alive(node.worker)
end

function changes.begin()
  local begin = { task = take(), run = take_number(), attempt = take_number(), token = take(),
    worker = take(), is_redelivered = take() == '1', missing = take_rows()[1],
    rate = take_rate(), slot = take_slot() }
  local node = get_with_texts(begin.task)
  if not node and begin.run > 0 then
    node = restore(begin.missing, begin.run)
  end
  if not node then
    return 'unknown'
  end
  if node.kind ~= 'task' then
    return { 'terminal', 'delegated' }
  end
  if begin.run < node.run or node.state == 'waiting' then
    return 'stale'
  end

  local opens_next_run = begin.run > node.run
    and (node.state == 'failed' or node.state == 'expired')
  if ENDED[node.state] and not opens_next_run then
    return { 'terminal', node.state }
  end
  if runs_elsewhere(node, begin) then
    return 'busy'
  end
  if walk.is_cancelled(node) then
    if not ENDED[node.state] then
      walk.finish(node, 'cancelled')
    end
    return 'cancelled'
  end
  local conflict = claim(node)
  if conflict and is_live(node) and node.slot == 'unique:' .. node.unique then
    return { 'later', '' }
  end
  return conflict or wait(node, begin) or start(node, begin)
end

-- The row of an attempt, if that attempt still holds it.
local function held(task, run, token)
  local node = get(task)
  if not node or node.kind ~= 'task' or node.state ~= 'running' then
    return nil
  end
  return node.run == run and node.token == token and node or nil
end

function changes.done()
  local node = held(take(), take_number(), take())
  local state, reason, result = take(), take(), take_optional()
  if not node then
    return 'refused'
  end
  walk.finish(node, state, reason, result)
  return 'ended'
end

function changes.gone()
  local node, run, state, reason = get(take()), take_number(), take(), take()
  if not node or not is_live(node) or node.run ~= run then
    return 'refused'
  end
  if node.state == 'running' and is_alive(node.worker) then
    return 'busy'
  end
  walk.finish(node, state, reason)
  return 'ended'
end

function changes.back()
  local node, state, delay = held(take(), take_number(), take()), take(), take_number()
  if not node then
    return 'refused'
  end
  if walk.is_cancelled(node) then
    walk.finish(node, 'cancelled')
    return 'cancelled'
  end
  move_to(node, state)
  node.token, node.worker = '', ''
  node.due = text(now + delay)
  limits.leave(node, true)
  save(node)
  return 'ok'
end

function changes.replace()
  local node, rows = held(take(), take_number(), take()), take_rows()
  if not node then
    return 'refused'
  end
  if walk.is_cancelled(node) then
    walk.finish(node, 'cancelled')
    return 'cancelled'
  end
  move_to(node, 'delegated')
  node.kind = 'replaced'
  node.token, node.worker = '', ''
  limits.leave(node, true)
  save(node)
  insert(rows)
  local below = get(node.id .. '~')
  if below then
    walk.release(below)
  end
  return 'ok'
end

function changes.progress()
  local node, number, value = held(take(), take_number(), take()), take(), take()
  if not node or tonumber(number) <= tonumber(node.progress_number) then
    return 'refused'
  end
  node.progress_number = number
  texts.g[node.id] = value
  save(node)
  return 'ok'
end

-- From outside

-- Also returns the node: whether it has been cancelled is known when everything below was visited.
function changes.cancel()
  local node, reason = get(take()), take()
  if not node then
    return 'unknown'
  end
  if ENDED[node.state] then
    return { 'terminal', node.state }
  end
  walk.cancel(node, reason)
  return 'asked', node
end

function changes.spread()
  local id, first = take(), take_number()
  local key = slice_key(id)
  local group = get(id)
  if start_of(key) ~= first then
    return 'done'
  end
  if not group then
    remove_entry(key)
    return 'done'
  end
  local stop = first + slice_size
  walk.treat(group, first, stop)
  if stop < group.size then
    walk.put_slice(group, stop)
  else
    remove_entry(key)
  end
  return 'ok'
end

local function has_expired(node)
  if not node.ttl or node.run > 0 or node.state ~= 'scheduled' and node.state ~= 'queued' then
    return false
  end
  return tonumber(node.due) - tonumber(node.delay) + tonumber(node.ttl) <= now
end

function changes.recover()
  local node, before = get(take()), take_number()
  if not node then
    return 'refused'
  end
  if not node.is_sealed and not ENDED[node.state] and tonumber(node.seal_by) < now then
    walk.cancel(node, 'abandoned: its sender has stopped adding members')
    return 'ok'
  end
  if not is_live(node) or tonumber(node.due) >= before
    or (node.state == 'running' and is_alive(node.worker)) then
    return 'refused'
  end
  local may_wait = node.copies > 0 or node.state ~= 'running'
  if may_wait and has_entry(message_key(node)) then
    node.due = now_text
    save(node)
    return 'refused'
  end
  if has_expired(node) then
    walk.finish(node, 'expired', 'expired: its message was lost')
    return 'ok'
  end
  node.due = text(now + node.copies * math.max(now - before, 0))
  node.copies = node.copies + 1
  save(node)
  walk.publish(node)
  return 'ok'
end

-- Makes all changes in their order. `next` begins those of the next caller.
-- Answer: the outcomes, then for each caller the keys of the outbox entries that it made.
local function apply()
  local outcomes = {}
  while place < #ARGV do
    local name = take()
    if name == 'next' then
      next_caller()
    else
      local outcome, node = changes[name]()
      walk.run()
      if node and ENDED[node.state] then
        outcome = 'cancelled'
      end
      push(outcomes, outcome)
    end
  end
  commit_limits()
  return { outcomes, unpack(commit()) }
end
