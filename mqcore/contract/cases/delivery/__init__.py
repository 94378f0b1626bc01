"""Profile *delivery*: order, competing consumers, prefetch, and what a settlement does."""
