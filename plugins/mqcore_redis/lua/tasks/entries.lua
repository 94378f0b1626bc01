#!lua flags=no-writes
-- Reads outbox entries with their rows. ARGV[2]: how many bytes are enough; then the keys.
-- Answer: for each key false, or the entry and its row; ends early with enough bytes.
local found, size = {}, 0
for place = 3, #ARGV do
  if size > tonumber(ARGV[2]) then
    break
  end
  local entry, row = call('HGET', KEY.entries, ARGV[place]), false
  if entry then
    row, size = stored_row(entry:match('^%S+ %S+ %S+ (.*)$'), size + #entry)
  end
  found[place - 2] = entry and { entry, row }
end
return found
