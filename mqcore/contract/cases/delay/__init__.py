"""Profile *delay*: a delayed message is never early, and late by its granularity at most.

No delayed message holds up another.
"""
