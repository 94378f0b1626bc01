#!lua flags=allow-oom
-- Shows a page in the order of delivery, then the delayed by due time.
-- ARGV: limit, and where the last page ended: kind (r or d), score, entry; a token for ids of
-- pushed messages.
-- Answer: -1 when the queue is missing, else now and rows of kind, score, entry, record, expiry.
local queue = open(1)
if not queue then
  return -1
end
tick(queue)
local rows, count, size, kind, score, after = {}, 0, 0, ARGV[2], ARGV[3], ARGV[4]
local limit = tonumber(ARGV[1])
take_in(queue, limit, ARGV[5])
local function show(line)
  local from = 0
  while count < limit do
    local range = { queue[line], score, '+inf', 'WITHSCORES', 'LIMIT', from, limit }
    local found = call('ZRANGEBYSCORE', unpack(range))
    if #found == 0 then
      return true
    end
    from = from + #found / 2
    for index = 1, #found, 2 do
      local entry, at = found[index], format('%.0f', tonumber(found[index + 1]))
      if count < limit and (at ~= score or entry > after) then
        local record = call('HGET', queue.m, entry)
        size = size + #(record or '')
        if size > BYTES and count > 0 then
          return false
        end
        local expires = call('ZSCORE', queue.x, entry) or ''
        for _, value in ipairs({ line, at, entry, record or '', expires }) do
          rows[#rows + 1] = value
        end
        count = count + 1
      end
    end
  end
  return false
end
if kind == 'd' or show('r') then
  if kind == 'r' then
    score, after = '0', ''
  end
  show('d')
end
return { format('%.0f', now), rows }
