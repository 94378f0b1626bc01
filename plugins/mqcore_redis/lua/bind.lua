-- Adds bindings, all or none.
-- KEYS: the bindings, their version.
-- ARGV: bindings as JSON, in a canonical form. Without flags, as `declare`: bindings that exist
-- write nothing.
-- Answer: nothing, or a router, its kind, and the kind of the binding that does not fit.
local kinds, fresh = {}, {}
local function check(text)
  local binding = cjson.decode(text)
  local kind = kinds[binding.router] or binding.kind
  kinds[binding.router] = kind
  return kind == binding.kind or { binding.router, kind, binding.kind }
end
for _, text in ipairs(ARGV) do
  if not call('ZSCORE', KEYS[1], text) then
    fresh[#fresh + 1] = text
  end
end
for _, text in ipairs(#fresh > 0 and call('ZRANGE', KEYS[1], 0, -1) or {}) do
  check(text)
end
for _, text in ipairs(fresh) do
  local fits = check(text)
  if fits ~= true then
    return fits
  end
end
for _, text in ipairs(fresh) do
  call('ZADD', KEYS[1], 'NX', call('INCR', KEYS[2]), text)
end
return {}
