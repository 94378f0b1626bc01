#!lua flags=no-writes
-- Reads rows. ARGV[2]: how many bytes are enough for one answer; then the ids.
-- Answer: for each id JSON, payload, result and progress, or false; ends early with enough bytes.
local found, size = {}, 0
for place = 3, #ARGV do
  if size > tonumber(ARGV[2]) then
    break
  end
  found[place - 2], size = stored_row(ARGV[place], size)
end
return found
