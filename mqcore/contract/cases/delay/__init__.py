"""Profile *delay*: never early, in the order of due times, no later than declared, and nobody waits for another's."""
