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

local call, format, concat = redis.call, string.format, table.concat
local PART = 4000 -- values in one command: `unpack` raises at about 8,000

local KEY = {}
for _, name in ipairs({ 'outbox', 'entries', 'late', 'unsealed', 'asked', 'ended', 'claims',
  'schedules', 'beats', 'changes' }) do
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

-- The states, as in `mqcore.tasks.model.states`.
local ENDED = { succeeded = true, failed = true, cancelled = true, expired = true, skipped = true }
local LIVE = { scheduled = true, queued = true, running = true, retrying = true }

-- A row's fields and what they are when they are not stored: `Node` of `mqcore.tasks.model.nodes`.
-- `result` says only whether there is one.
local DEFAULTS = {
  kind = 'task', index = 0, state = 'waiting', run = 0, delay = '0', unique = '', attempt = 0,
  token = '', worker = '', copies = 0, due = '0', turn = '0', slot = '', progress_number = '0', size = 0, done = 0,
  bad = 0, follows = 0, is_sealed = true, seal_by = '0', policy = 'fail', cancel = 'no', is_counted = false,
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

-- The name of a row's field in the hash of its tree. The root is given where it is known.
local function field(kind, id, root)
  return kind .. id:sub(#(root or root_of(id)) + 1)
end

local function is_live(node)
  return node.kind == 'task' and LIVE[node.state]
end

-- What an index has of a row. `late`: when a live task is due. `unsealed`: when an unsealed group
-- counts as abandoned. `asked`: the worker that is to cancel it. `ended`: when a tree ended.
local INDEXED = {
  late = function(node)
    return is_live(node) and node.due
  end,
  unsealed = function(node)
    return not node.is_sealed and not ENDED[node.state] and node.seal_by
  end,
  asked = function(node)
    return node.cancel ~= 'no' and node.worker ~= '' and is_live(node) and node.worker
  end,
  ended = function(node)
    return node.parent == '' and ENDED[node.state] and node.ended
  end,
}

local function decode(id, packed)
  local node = setmetatable(cjson.decode(packed), ROW)
  node.id, node.parent = id, rawget(node, 'parent') or parent_of(id)
  return node
end

local packed_rows = {} -- by id, until the row is saved again

local function encode(node)
  local id, parent = node.id, node.parent
  if packed_rows[id] then
    return packed_rows[id]
  end
  node.id = nil
  if parent == parent_of(id) then
    node.parent = nil
  end
  local packed = cjson.encode(node)
  node.id, node.parent = id, parent
  packed_rows[id] = packed
  return packed
end

-- The transaction's own copies. A row that was added and not read yet is still its text.
local read = {}
local stored = { late = {}, unsealed = {}, asked = {}, ended = {} } -- what the indexes have, by id
local saved, is_saved = {}, {}
local texts = { p = {}, r = {}, g = {} } -- what they are to be, by id; false removes the field

local function keep(id, packed)
  local node = packed and decode(id, packed)
  read[id] = node
  if node and node.state ~= 'waiting' or node and not node.is_sealed then
    for name, value_of in pairs(INDEXED) do
      stored[name][id] = value_of(node) or nil
    end
  end
end

-- Reads rows that are not read yet with one command for many of them.
local function load(root, ids)
  for first = 1, #ids, PART do
    local fields = {}
    for place = first, math.min(first + PART - 1, #ids) do
      fields[#fields + 1] = field('n', ids[place], root)
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
  local ids, unread, found = {}, {}, {}
  for index = start, stop - 1 do
    local id = parent .. '.' .. index
    ids[#ids + 1] = id
    if read[id] == nil then
      unread[#unread + 1] = id
    end
  end
  load(root_of(parent), unread)

  for _, id in ipairs(ids) do
    found[#found + 1] = get(id)
  end
  return found
end

local function save(node)
  packed_rows[node.id] = nil
  if not is_saved[node.id] then
    is_saved[node.id] = true
    saved[#saved + 1] = node.id
  end
end

local function add(row)
  read[row.id] = row.packed
  if row.payload ~= '' then
    texts.p[row.id] = row.payload
  end
  save(row)
end

-- Reads a row with its texts; `with_texts` needs no further command then.
local read_texts = {}

local function get_with_texts(id)
  if read[id] == nil then
    local root = root_of(id)
    local row = call('HMGET', tree(root), field('n', id, root), field('p', id, root),
      field('r', id, root), field('g', id, root))
    keep(id, row[1])
    read_texts[id] = { p = row[2], r = row[3], g = row[4] }
  end
  return get(id)
end

-- A row as Python reads it: its JSON, payload, result and progress.
local function with_texts(node)
  local id, root, found = node.id, root_of(node.id), {}
  for place, kind in ipairs({ 'p', 'r', 'g' }) do
    found[place] = texts[kind][id]
    if found[place] == nil and read_texts[id] then
      found[place] = read_texts[id][kind]
    elseif found[place] == nil then
      found[place] = call('HGET', tree(root), field(kind, id, root))
    end
  end
  return encode(node), found[1], found[2], found[3]
end

-- A row as it is stored, with its texts, and how many bytes were read with it.
local function stored_row(id, size)
  local key = tree(root_of(id))
  local row = call('HMGET', key, field('n', id), field('p', id), field('r', id), field('g', id))
  for place = 1, 4 do
    size = size + #(row[place] or '')
  end
  return row[1] and row, size
end

-- The outbox is a sorted set of keys by time. `entries` has what the key NODE:RUN does not say: run,
-- start and node of a slice, and of a further copy of a message.
local entries, made, keys = {}, {}, {}

-- Begins the list of the keys that a caller's changes make.
local function next_caller()
  keys = {}
  made[#made + 1] = keys
end

-- `start` is nil for a message.
local function put_entry(key, node, run, start)
  if not keys[key] then
    keys[key] = true
    keys[#keys + 1] = key
  end
  local is_plain = not start and key == node .. ':' .. run
  entries[key] = is_plain or format('%d %s %s', run, start or '-', node)
end

local function start_of(key)
  local entry = entries[key]
  if entry == nil then
    entry = call('HGET', KEY.entries, key)
  end
  return type(entry) == 'string' and tonumber(entry:match('^%d+ (%S+)'))
end

local function has_entry(key)
  if entries[key] == nil then
    return call('ZSCORE', KEY.outbox, key) and true or false
  end
  return entries[key] ~= false
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
local function head_of(value)
  return cjson.decode(value:match('^[^\n]*'))
end

local function schedule_of(name)
  return schedules[name] or call('HGET', KEY.schedules, name)
end

local function is_alive(worker)
  local found = call('HGET', KEY.beats, worker)
  local beat = found and head_of(found)
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

-- Writes what the indexes have of the saved rows.
local function commit_index(name, value_of)
  local was, put, gone = stored[name], {}, {}
  for _, id in ipairs(saved) do
    local node = read[id]
    if type(node) ~= 'string' then
      local value = value_of(node)
      local member = name == 'ended' and root_of(id) or id
      if not value then
        gone[#gone + 1] = was[id] and member
      elseif value ~= was[id] then
        push(put, name == 'asked' and member or value, name == 'asked' and value or member)
      end
    end
  end
  each(name == 'asked' and 'HSET' or 'ZADD', KEY[name], put)
  each(name == 'asked' and 'HDEL' or 'ZREM', KEY[name], gone)
end

local function count_of(value)
  return value and 1 or 0
end

-- How the number of open rows below a root changes.
local function opened(id, node)
  local is = count_of(INDEXED.late(node)) + count_of(INDEXED.unsealed(node))
  return is - count_of(stored.late[id]) - count_of(stored.unsealed[id])
end

-- Writes the saved rows into their trees.
local function commit_rows()
  local trees = {}
  for _, id in ipairs(saved) do
    local root, node = root_of(id), read[id]
    local writes = trees[root] or { put = {}, gone = {}, open = 0 }
    trees[root] = writes

    local is_read = type(node) ~= 'string'
    push(writes.put, field('n', id, root), is_read and encode(node) or node)
    if is_read and id ~= root then
      writes.open = writes.open + opened(id, node)
    end
    for kind, values in pairs(texts) do
      if values[id] then
        push(writes.put, field(kind, id, root), values[id])
      elseif values[id] == false then
        push(writes.gone, field(kind, id, root))
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
end

-- Publishes which of the saved rows have ended, and which have begun or gone on. It only spares time,
-- so a user without the right to publish does without.
local MOVED = { running = true, retrying = true, delegated = true }

local function announce()
  local ended, moved = {}, {}
  for _, id in ipairs(saved) do
    local node = read[id]
    if type(node) ~= 'string' then
      push(ended, ENDED[node.state] and id)
      push(moved, MOVED[node.state] and id)
    end
  end
  if #ended + #moved > 0 then
    redis.pcall('PUBLISH', KEY.changes, concat(ended, ' ') .. '\n' .. concat(moved, ' '))
  end
end

-- Writes everything. Returns for each caller the keys of the outbox entries that are left.
local function commit()
  commit_rows()
  for name, value_of in pairs(INDEXED) do
    commit_index(name, value_of)
  end
  announce()

  local order, about, gone = {}, {}, {}
  for key, entry in pairs(entries) do
    if entry then
      push(order, now_text, key)
      if entry ~= true then
        push(about, key, entry)
      end
    else
      push(gone, key)
    end
  end
  each('ZADD', KEY.outbox, order)
  each('HSET', KEY.entries, about)
  each('ZREM', KEY.outbox, gone)
  each('HDEL', KEY.entries, gone)

  for name, schedule in pairs(schedules) do
    call('HSET', KEY.schedules, name, schedule)
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
