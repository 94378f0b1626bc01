"""Profile *bounds*: the length of queues, the size of messages, the prefetch of consumers.

`max_length` bounds the ready messages of a queue and applies to publishing only.
"""
