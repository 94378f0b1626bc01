#!lua flags=no-writes
-- Reads outbox entries with their rows. ARGV[2]: how many bytes are enough; then up to 500 keys.
-- Answer: for each key its time, run, start, node and row, or false; ends early with enough bytes.
local found, size, wanted = {}, 0, { unpack(ARGV, 3) }
local times = call('ZMSCORE', KEY.outbox, unpack(wanted))
local abouts = call('HMGET', KEY.entries, unpack(wanted))
for place, key in ipairs(wanted) do
  if size > tonumber(ARGV[2]) then
    break
  end
  found[place] = false
  if times[place] then
    local run, start, node = (abouts[place] or ''):match('^(%d+) (%S+) (.*)$')
    if not run then
      node, run = key:match('^(.*):(%d+)$')
    end
    local row
    row, size = stored_row(node, size + #key)
    found[place] = { times[place], run, start or '-', node, row }
  end
end
return found
