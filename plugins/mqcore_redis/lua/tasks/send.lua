#!lua
-- A transaction that inserts rows. A server that is full refuses it.
-- ARGV: the time, the size of a slice, and the changes.
return apply()
