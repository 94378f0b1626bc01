#!lua flags=allow-oom
-- Settles claims on one queue in their order: its keys, then those of each queue that something
-- moves to.
-- ARGV: window, size; then A receipt | R receipt | L receipt (its owner is lost) | U receipt (not
-- handed out) | M receipt, number of the target, name, store options, record.
-- Answer: for each 1 done, 0 stale, -1 the target is missing and its source stays leased.
local queue = open(1)
local steps, receipts, names, index = {}, {}, {}, 3
while index <= #ARGV do
  local step = { how = ARGV[index], receipt = ARGV[index + 1] }
  receipts[#receipts + 1] = step.receipt
  index = index + 2
  if step.how == 'M' then
    step.target, step.name = tonumber(ARGV[index]), ARGV[index + 1]
    step.want, step.record = store_options(ARGV[index + 2]), ARGV[index + 3]
    index = index + 4
    names[step.target] = names[step.target] or {}
    table.insert(names[step.target], step.name)
  end
  steps[#steps + 1] = step
end
local outcomes = {}
if not queue then
  for number = 1, #steps do
    outcomes[number] = 0
  end
  return outcomes
end

local held = {}
for number, ends in ipairs(ask('ZMSCORE', queue.l, receipts)) do
  held[receipts[number]] = ends and tonumber(ends) > now
end
local targets, known = {}, {}
for target, wanted_names in pairs(names) do
  targets[target] = open(target + 1)
  if targets[target] then
    known[target] = remembered(targets[target], tonumber(ARGV[1]), tonumber(ARGV[2]), wanted_names)
  end
end

local ended, gone, back = {}, {}, { R = {}, L = {}, U = {} }
local function settle(step)
  if not held[step.receipt] then
    return 0
  end
  local entry = step.receipt:match('|([^|]+)$')
  if step.how == 'M' then
    local target, since = targets[step.target], tonumber(entry:sub(3))
    if not target then
      return -1
    end
    if (tonumber(known[step.target][step.name]) or 0) <= since then
      step.want.since, step.want.one_step = since, true
      put(target, step.want, step.record, known[step.target], step.name)
    end
  end
  held[step.receipt] = nil
  if back[step.how] then
    table.insert(back[step.how], step.receipt)
  else
    ended[#ended + 1], gone[#gone + 1] = step.receipt, entry
  end
  return 1
end
for number, step in ipairs(steps) do
  outcomes[number] = settle(step)
end

each('ZREM', queue.l, ended)
forget(queue, gone)
if #gone > 0 then
  call('HINCRBY', queue.q, 'settled', #gone)
end
for how, released in pairs(back) do
  if #released > 0 then
    give_back(queue, released, how)
    wake(queue)
    keep(queue, 2)
  end
end
for _, target in pairs(targets) do
  flush(target)
  if target.retention then
    retain(target)
  end
end
return outcomes
