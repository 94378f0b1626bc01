"""Profile *retry*: Moves at the backend interface, and retries of failed messages."""
