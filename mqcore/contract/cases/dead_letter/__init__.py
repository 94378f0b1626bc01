"""Profile *dead-letter*: the record of a death, redrives, and messages that kill workers."""
