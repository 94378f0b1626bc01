-- Makes sure that queues exist, all or none: KEYS are their q alone. It has no flags, so a full
-- server does not refuse it as a whole, but its first HSET, before anything was written: queues
-- that exist can be declared and drained.
-- ARGV: for each name, role, ttl, max_length, overflow, dead_letter, retention (empty for none).
-- Answer: nothing, or the number of the first that exists with other settings, which one differs,
-- and what it is.
local FIELDS = { 'name', 'role', 'ttl', 'max_length', 'overflow', 'dead_letter', 'retention' }
for number, key in ipairs(KEYS) do
  if call('EXISTS', key) == 1 then
    for index, value in ipairs(call('HMGET', key, unpack(FIELDS))) do
      if (value or '') ~= ARGV[(number - 1) * #FIELDS + index] then
        return { number, FIELDS[index], value or '' }
      end
    end
  end
end
for number, key in ipairs(KEYS) do
  if call('EXISTS', key) == 0 then
    local values = { 'born', format('%.0f', now), 'since', format('%.0f', now) }
    for index, field in ipairs(FIELDS) do
      local value = ARGV[(number - 1) * #FIELDS + index]
      if value ~= '' then
        values[#values + 1], values[#values + 2] = field, value
      end
    end
    each('HSET', key, values)
  end
  if ARGV[(number - 1) * #FIELDS + 2] == 'temporary' then
    call('EXPIRE', key, IDLE)
  end
end
return {}
