-- What follows from a change: `Walk` of `mqcore.tasks.transitions.walk`, function by function and
-- under the same names, where the reasons are given. Whoever changes one changes the other; the
-- contract compares both.
--
--   end of a node -- count --> its parent goes on or ends -- count --> ...     upward
--   release, cancel, skip --> the members or the current step --> ...          downward

local ABANDONED = 'cancelled before its last members were added'
local BY_WORKFLOW = 'its workflow was cancelled'

-- What may follow a state inside a run: `NEXT` of `mqcore.tasks.model.states`.
local OPEN = { running = true, failed = true, cancelled = true, expired = true }
local NEXT = {
  waiting = { scheduled = true, queued = true, running = true, cancelled = true, skipped = true },
  scheduled = { queued = true, running = true, failed = true, cancelled = true, expired = true },
  queued = OPEN,
  running = { running = true, queued = true, retrying = true, delegated = true, succeeded = true,
    failed = true, cancelled = true, expired = true },
  retrying = OPEN,
  delegated = { succeeded = true, failed = true, cancelled = true, expired = true },
}

local walk = {}
local slice_size = tonumber(ARGV[2])
local room = slice_size -- how many further members this transaction may treat
local steps, next_step, last_step = {}, 1, 0

-- Steps wait in a queue, so the depth of a tree is not bounded by that of Lua's stack.
local function later(step, node)
  last_step = last_step + 1
  steps[last_step] = { step, node }
end

function walk.run()
  while steps[next_step] do
    local step, node = unpack(steps[next_step])
    steps[next_step] = nil
    next_step = next_step + 1
    step(node)
  end
end

local function move_to(node, state)
  if not (NEXT[node.state] and NEXT[node.state][state]) then
    error({ err = format("ILLEGAL task '%s' cannot become %s, because it is %s. This is a "
      .. 'defect in mqcore: please report it', node.id, state, node.state) })
  end
  node.state = state
end

local function message_key(node)
  local key = node.id .. ':' .. node.run
  return node.copies > 0 and key .. ':' .. node.copies or key
end

local function slice_key(group)
  return group .. ':members'
end

-- Upward

-- `result` is nil when there is none.
function walk.finish(node, state, reason, result)
  reason = reason or ''
  move_to(node, state)
  if result or node.result then
    texts.r[node.id] = result or false -- also removes that of an earlier run
    node.result = result ~= nil
  end
  if reason ~= '' or node.cancel == 'no' then
    node.reason = reason
  end
  node.token, node.worker, node.turn = '', '', '0'
  node.ended = now_text
  save(node)

  if node.unique ~= '' then
    limits.hand_over(node)
  end
  limits.leave(node)
  if node.follows > 0 then
    later(walk.follow, node)
  end
  if node.parent ~= '' and node.index >= 0 then
    later(walk.count, node)
  end
end

-- The kinds of calls that follow the end of a node, and their places.
local FOLLOWING = { { kind = 1, place = '.-1' }, { kind = 2, place = '.-2' } }

function walk.follow(node)
  for _, it in ipairs(FOLLOWING) do
    local is_there = node.follows == it.kind or node.follows == 3
    local following = is_there and get(node.id .. it.place)
    local is_wanted = it.kind == 2 or node.state == 'failed' or node.state == 'expired'
    if following and (not is_wanted or node.state == 'skipped') then
      later(walk.skip, following)
    elseif following and following.state == 'waiting' then
      following.input = node.id
      save(following)
      later(walk.release, following)
    end
  end
end

function walk.count(node)
  local parent = get(node.parent)
  if not parent then
    return
  end
  if node.is_counted then
    walk.count_again(parent, node)
    return
  end
  node.is_counted = true
  save(node)

  if ENDED[parent.state] then
    return
  end
  if parent.kind == 'group' then
    walk.count_member(parent, node)
  elseif parent.kind == 'chain' then
    walk.count_step(parent, node)
  else
    walk.finish(parent, node.state, node.reason)
  end
end

function walk.count_again(parent, node)
  local is_open = parent.kind == 'group' and not ENDED[parent.state]
  if is_open and node.state == 'succeeded' then
    parent.bad = parent.bad - 1
    save(parent)
  end
end

function walk.count_member(group, member)
  local has_failed = member.state ~= 'succeeded'
  group.done = group.done + 1
  group.bad = group.bad + (has_failed and 1 or 0)
  save(group)

  if has_failed and group.policy == 'cancel' and group.cancel == 'no' then
    walk.cancel(group, member.id .. ' ended as ' .. member.state, 'failure')
  end
  walk.close_if_complete(group)
end

function walk.count_step(chain, step)
  chain.done = chain.done + 1
  save(chain)

  if walk.is_cancelled(chain) then
    walk.end_chain(chain, 'cancelled', chain.reason)
  elseif step.state ~= 'succeeded' then
    walk.end_chain(chain, step.state, step.reason)
  elseif chain.done < chain.size then
    walk.release_step(chain, step.id)
  else
    walk.end_chain(chain, 'succeeded')
  end
end

function walk.end_chain(chain, state, reason)
  for _, step in ipairs(children(chain.id, chain.done, chain.size)) do
    later(walk.skip, step)
  end
  walk.finish(chain, state, reason)
end

function walk.close_if_complete(group)
  if group.state ~= 'running' or not group.is_sealed or group.done < group.size then
    return
  end
  local state = 'succeeded'
  if group.cancel == 'failure' then
    state = 'failed'
  elseif walk.is_cancelled(group) then
    state = 'cancelled'
  elseif group.bad > 0 and group.policy ~= 'collect' then
    state = 'failed'
  end
  walk.finish(group, state)
end

function walk.is_cancelled(node)
  local above = node
  while above do
    if above.cancel ~= 'no' then
      return true
    end
    above = above.parent ~= '' and above.index >= 0 and get(above.parent)
  end
  return false
end

-- Downward

function walk.release(node)
  if node.state ~= 'waiting' then
    return
  end
  if node.cancel ~= 'no' then
    walk.finish(node, 'cancelled')
    walk.skip_below(node)
    return
  end
  if node.kind == 'task' then
    local delay = tonumber(node.delay)
    node.due = delay > 0 and text(now + delay) or now_text
    move_to(node, delay > 0 and 'scheduled' or 'queued')
    save(node)
    walk.publish(node)
    return
  end

  move_to(node, 'running')
  save(node)
  if node.kind == 'group' then
    walk.treat_members(node)
    walk.close_if_complete(node)
  elseif node.size > 0 then
    walk.release_step(node, node.input)
  else
    walk.finish(node, 'succeeded')
  end
end

function walk.publish(node)
  put_entry(message_key(node), node.id, node.run)
end

function walk.release_step(chain, input)
  local step = get(chain.id .. '.' .. chain.done)
  if step then
    step.input = input
    save(step)
    later(walk.release, step)
  end
end

function walk.cancel(node, reason, flag)
  if ENDED[node.state] or node.cancel == 'asked' then
    return
  end
  node.cancel, node.reason = flag or 'asked', reason
  if not node.is_sealed then
    node.is_sealed, node.reason = true, reason ~= '' and reason or ABANDONED
  end
  save(node)

  if is_live(node) and node.state ~= 'running' then
    walk.finish(node, 'cancelled')
  elseif node.state ~= 'waiting' then
    walk.cancel_below(node)
  end
end

function walk.cancel_below(node)
  if node.kind == 'group' then
    walk.treat_members(node)
    walk.close_if_complete(node)
  elseif node.kind ~= 'task' then
    local current = node.kind == 'chain' and node.id .. '.' .. node.done or node.id .. '~'
    local below = get(current)
    if below then
      later(walk.cancel_with_parent, below)
    end
  end
end

function walk.cancel_with_parent(node)
  walk.cancel(node, BY_WORKFLOW)
end

function walk.skip(node)
  if node.state == 'waiting' then
    move_to(node, 'skipped')
    node.ended = now_text
    save(node)
    walk.skip_below(node)
  end
end

function walk.skip_below(flow)
  if flow.follows > 0 and flow.state == 'skipped' then
    later(walk.follow, flow)
  end
  if flow.kind == 'group' then
    walk.treat_members(flow)
  elseif flow.kind == 'chain' then
    for _, step in ipairs(children(flow.id, flow.done, flow.size)) do
      later(walk.skip, step)
    end
  end
end

-- The members of a group

function walk.treat_members(group)
  if group.size <= room then
    room = room - group.size
    walk.treat(group, 0, group.size)
    remove_entry(slice_key(group.id))
  else
    walk.put_slice(group, 0)
  end
end

function walk.put_slice(group, start)
  put_entry(slice_key(group.id), group.id, 0, start)
end

function walk.treat(group, start, stop)
  for _, member in ipairs(children(group.id, start, stop)) do
    if ENDED[group.state] then
      later(walk.skip, member)
    else
      if group.cancel ~= 'no' then
        walk.cancel(member, BY_WORKFLOW)
      end
      if member.state == 'waiting' then
        member.input = group.input
        save(member)
        later(walk.release, member)
      end
    end
  end
end
