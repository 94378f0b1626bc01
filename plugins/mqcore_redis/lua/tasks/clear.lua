#!lua flags=allow-oom
-- Removes everything. It looks at all keys of the server: only tests call it.
local pattern = KEYS[1]:gsub('[%[%]*?\\]', '\\%0') .. '*'
for _, key in ipairs(call('KEYS', pattern)) do
  call('UNLINK', key)
end
return 0
