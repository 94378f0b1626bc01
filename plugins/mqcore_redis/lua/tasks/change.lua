#!lua flags=allow-oom
-- A transaction that inserts no rows. It is made on a full server too: what runs there can end.
-- ARGV: the time, the size of a slice, and the changes.
return apply()
