"""Profile *routing*: declaring queues, missing and temporary queues, routers and bindings."""
