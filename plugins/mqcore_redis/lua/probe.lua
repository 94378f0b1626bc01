#!lua flags=no-writes
-- Shows whether this user may run scripts here, and what they need: every one of them asks for the time first.
return format('%.0f', now)
