-- What every script of the task store begins with: the clock, the keys, and the rows of one
-- transaction. It is `Rows` of `mqcore.tasks.transitions.rows` for Redis.
--
-- All rows of a tree are in one hash, `t:ROOT`. Of the row ROOT.0.5 it has the fields
--   n.0.5  what the transitions read, as JSON, without what has its default
--   p.0.5  the payload     r.0.5  the result     g.0.5  the progress
-- and `open`, how many rows below the root are live or unsealed. So a script never reads a payload
-- that it does not hand out, and a tree is removed in one step.
--
-- Nothing is written before `commit`: a script that ends with an error has changed nothing.
-- KEYS[1] begins all keys, which share one slot. ARGV[1]: the time; empty for the server's.

local call, format = redis.call, string.format
local PART = 4000 -- values in one command: `unpack` raises at about 8,000

local KEY = {}
for _, name in ipairs({ 'outbox', 'entries', 'late', 'unsealed', 'asked', 'ended', 'claims',
  'schedules', 'beats' }) do
  KEY[name] = KEYS[1] .. name
end

local function server_time()
  local time = call('TIME')
  return time[1] + time[2] / 1000000
end

local now = tonumber(ARGV[1]) or server_time()

-- Times are stored as text: cjson would round a number to 14 digits.
local function text(number)
  return format('%.17g', number)
end

local now_text = text(now)

local function set_of(...)
  local found = {}
  for _, name in ipairs({ ... }) do
    found[name] = true
  end
  return found
end

-- The states, as in `mqcore.tasks.model.states`.
local ENDED = set_of('succeeded', 'failed', 'cancelled', 'expired', 'skipped')
local LIVE = set_of('scheduled', 'queued', 'running', 'retrying')

-- A row's fields and what they are when they are not stored: `Node` of `mqcore.tasks.model.nodes`.
-- `result` says only whether there is one.
local DEFAULTS = {
  kind = 'task', index = 0, state = 'waiting', run = 0, delay = '0', unique = '', attempt = 0,
  token = '', worker = '', copies = 0, due = '0', progress_number = '0', size = 0, done = 0,
  bad = 0, is_sealed = true, seal_by = '0', policy = 'fail', cancel = 'no', is_counted = false,
  input = '', result = false, reason = '', ended = '0',
}
local ROW = { __index = DEFAULTS }

local function root_of(id)
  return id:match('^[^.~]*')
end

local function parent_of(id)
  return id:match('^(.*)[.~][^.~]*$') or ''
end

local function tree(root)
  return KEYS[1] .. 't:' .. root
end

local function field(kind, id)
  return kind .. id:sub(#root_of(id) + 1)
end

local function is_live(node)
  return node.kind == 'task' and LIVE[node.state]
end

-- What the indexes have of a row. `late`: when a live task is due. `unsealed`: when an unsealed
-- group counts as abandoned. `asked`: the worker that is to cancel it. `ended`: when a tree ended.
local function marks_of(node)
  local live, ended = is_live(node), ENDED[node.state]
  local unsealed = not node.is_sealed and not ended
  return {
    late = live and node.due or nil,
    unsealed = unsealed and node.seal_by or nil,
    asked = live and node.cancel ~= 'no' and node.worker ~= '' and node.worker or nil,
    ended = ended and node.parent == '' and node.ended or nil,
    open = (live or unsealed) and 1 or 0,
  }
end

local NO_MARKS = { open = 0 }

local function decode(id, packed)
  local node = setmetatable(cjson.decode(packed), ROW)
  node.id, node.parent = id, rawget(node, 'parent') or parent_of(id)
  return node
end

local function encode(node)
  local id, parent = node.id, node.parent
  node.id = nil
  if parent == parent_of(id) then
    node.parent = nil
  end
  local packed = cjson.encode(node)
  node.id, node.parent = id, parent
  return packed
end

-- The transaction's own copies. A row that was added and not read yet is still its text.
local read, marks = {}, {}
local saved, is_saved = {}, {}
local texts = {} -- by id: what `p`, `r` and `g` are to be; false removes the field

local function keep(id, packed)
  local node = packed and decode(id, packed)
  read[id], marks[id] = node, node and marks_of(node)
end

-- Reads rows that are not read yet with one command for many of them.
local function load(root, ids)
  for first = 1, #ids, PART do
    local fields = {}
    for place = first, math.min(first + PART - 1, #ids) do
      fields[#fields + 1] = field('n', ids[place])
    end
    for place, packed in ipairs(call('HMGET', tree(root), unpack(fields))) do
      keep(ids[first + place - 1], packed)
    end
  end
end

local function get(id)
  if read[id] == nil then
    keep(id, call('HGET', tree(root_of(id)), field('n', id)))
  elseif type(read[id]) == 'string' then
    read[id] = decode(id, read[id])
  end
  return read[id] or nil
end

-- The existing rows with start <= index < stop below a node, by index.
local function children(parent, start, stop)
  local unread, found = {}, {}
  for index = start, stop - 1 do
    local id = parent .. '.' .. index
    if read[id] == nil then
      unread[#unread + 1] = id
    end
  end
  load(root_of(parent), unread)

  for index = start, stop - 1 do
    found[#found + 1] = get(parent .. '.' .. index)
  end
  return found
end

local function save(node)
  if not is_saved[node.id] then
    is_saved[node.id] = true
    saved[#saved + 1] = node.id
  end
end

local function set_text(id, kind, value)
  texts[id] = texts[id] or {}
  texts[id][kind] = value
end

local function add(row)
  read[row.id], marks[row.id] = row.packed, NO_MARKS
  if row.payload ~= '' then
    set_text(row.id, 'p', row.payload)
  end
  save(row)
end

-- A row as Python reads it: its JSON, payload, result and progress.
local function with_texts(node)
  local id, found = node.id, {}
  local stored = call('HMGET', tree(root_of(id)), field('p', id), field('r', id), field('g', id))
  for place, kind in ipairs({ 'p', 'r', 'g' }) do
    found[place] = stored[place]
    if texts[id] and texts[id][kind] ~= nil then
      found[place] = texts[id][kind]
    end
  end
  return encode(node), found[1], found[2], found[3]
end

-- The same, as it is stored, and how many bytes were read with it.
local function stored_row(id, size)
  local key = tree(root_of(id))
  local row = call('HMGET', key, field('n', id), field('p', id), field('r', id), field('g', id))
  for place = 1, 4 do
    size = size + #(row[place] or '')
  end
  return row[1] and row, size
end

-- The outbox: a sorted set by time, and what an entry is about.
local entries, made, keys = {}, {}, {}

-- Begins the list of the keys that a caller's changes make.
local function next_caller()
  keys = {}
  made[#made + 1] = keys
end

local function put_entry(key, node, run, start)
  if not keys[key] then
    keys[key] = true
    keys[#keys + 1] = key
  end
  entries[key] = { node = node, run = run, start = start, written = now_text }
end

local function entry_of(key)
  if entries[key] == nil then
    local stored = call('HGET', KEY.entries, key)
    return stored and cjson.decode(stored)
  end
  return entries[key]
end

local function remove_entry(key)
  entries[key] = false
end

-- Unique keys, schedules and heartbeats.
local claims, schedules = {}, {}

local function holder_of(unique)
  if claims[unique] == nil then
    return call('HGET', KEY.claims, unique)
  end
  return claims[unique]
end

local function unclaim(unique, id)
  if holder_of(unique) == id then
    claims[unique] = false
  end
end

-- A value with a line of JSON before it.
local function head_of(stored)
  return cjson.decode(stored:match('^[^\n]*'))
end

local function schedule_of(name)
  return schedules[name] or call('HGET', KEY.schedules, name)
end

local function is_alive(worker)
  local stored = call('HGET', KEY.beats, worker)
  local beat = stored and head_of(stored)
  return beat and now < tonumber(beat.at) + tonumber(beat.ttl)
end

-- Commands with as many values as there are.
local function each(command, key, values)
  for first = 1, #values, PART do
    call(command, key, unpack(values, first, math.min(first + PART - 1, #values)))
  end
end

local function push(list, one, two)
  list[#list + 1] = one
  list[#list + 1] = two
end

-- Writes the changed rows of the trees, and notes how the indexes change.
local function commit_rows()
  local trees, indexes = {}, {}
  for _, name in ipairs({ 'late', 'unsealed', 'asked', 'ended' }) do
    indexes[name] = { put = {}, gone = {} }
  end

  local function index(node, root)
    local was, is = marks[node.id], marks_of(node)
    for name, change in pairs(indexes) do
      local member = name == 'ended' and root or node.id
      if is[name] and is[name] ~= was[name] then
        local by_member = name == 'asked'
        push(change.put, by_member and member or is[name], by_member and is[name] or member)
      elseif was[name] and not is[name] then
        push(change.gone, member)
      end
    end
    return node.id ~= root and is.open - was.open or 0
  end

  for _, id in ipairs(saved) do
    local root, node = root_of(id), read[id]
    local writes = trees[root] or { put = {}, gone = {}, open = 0 }
    trees[root] = writes
    local is_read = type(node) ~= 'string'
    push(writes.put, field('n', id), is_read and encode(node) or node)
    writes.open = writes.open + (is_read and index(node, root) or 0)
    for kind, value in pairs(texts[id] or {}) do
      if value then
        push(writes.put, field(kind, id), value)
      else
        push(writes.gone, field(kind, id))
      end
    end
  end

  for root, writes in pairs(trees) do
    each('HSET', tree(root), writes.put)
    each('HDEL', tree(root), writes.gone)
    if writes.open ~= 0 then
      call('HINCRBY', tree(root), 'open', writes.open)
    end
  end
  for name, change in pairs(indexes) do
    local is_hash = name == 'asked'
    each(is_hash and 'HSET' or 'ZADD', KEY[name], change.put)
    each(is_hash and 'HDEL' or 'ZREM', KEY[name], change.gone)
  end
end

-- Writes everything. Returns for each caller the keys of the outbox entries that are left.
local function commit()
  commit_rows()

  local order, about, gone = {}, {}, {}
  for key, entry in pairs(entries) do
    if entry then
      push(order, entry.written, key)
      push(about, key, cjson.encode(entry))
    else
      push(gone, key)
    end
  end
  each('ZADD', KEY.outbox, order)
  each('HSET', KEY.entries, about)
  each('ZREM', KEY.outbox, gone)
  each('HDEL', KEY.entries, gone)

  for name, stored in pairs(schedules) do
    call('HSET', KEY.schedules, name, stored)
  end
  for unique, id in pairs(claims) do
    if id then
      call('HSET', KEY.claims, unique, id)
    else
      call('HDEL', KEY.claims, unique)
    end
  end

  local left = {}
  for place, list in ipairs(made) do
    left[place] = {}
    for _, key in ipairs(list) do
      if entries[key] then
        push(left[place], key)
      end
    end
  end
  return left
end
