"""Profile *ttl*: no handler starts an expired message, and no backend removes one by itself."""
