"""Profile *ttl*: no handler starts what has expired, wherever it stood; a backend tells it, and never takes one away itself."""
