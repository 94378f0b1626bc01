#!lua flags=no-writes
-- Shows whether this user may run scripts: each of them asks for the time first.
return format('%.0f', now)
