#!lua flags=allow-oom
-- Removes bindings and changes their version, in one step.
-- KEYS: as `bind`.
-- ARGV: bindings as JSON.
each('ZREM', KEYS[1], ARGV)
return call('INCR', KEYS[2])
