"""Profile *routing*: queues by name, missing ones and temporary ones, and a Router's way to them."""
