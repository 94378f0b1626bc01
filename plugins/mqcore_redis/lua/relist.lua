#!lua flags=allow-oom
-- Puts a queue that was not deleted back into the list of queues.
-- KEYS: the list.
-- ARGV: its name.
return call('SADD', KEYS[1], ARGV[1])
