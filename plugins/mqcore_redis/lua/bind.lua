#!lua
-- Adds bindings, all or none. KEYS: the bindings, their version. ARGV: bindings as JSON, in a canonical form.
-- Answer: nothing, or a router, the kind that it has, and the one that it should have as well.
local kinds = {}
local function check(text)
  local binding = cjson.decode(text)
  local kind = kinds[binding.router] or binding.kind
  kinds[binding.router] = kind
  return kind == binding.kind or { binding.router, kind, binding.kind }
end
for _, text in ipairs(call('ZRANGE', KEYS[1], 0, -1)) do
  check(text)
end
for _, text in ipairs(ARGV) do
  local fits = check(text)
  if fits ~= true then
    return fits
  end
end
for _, text in ipairs(ARGV) do
  call('ZADD', KEYS[1], 'NX', call('INCR', KEYS[2]), text)
end
return {}
