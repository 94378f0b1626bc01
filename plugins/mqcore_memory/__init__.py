"""`memory://`: a broker inside this process, and the reference for all other backends.

It implements the semantics page without a server, a codec or a network. Tests run on it under a
virtual clock, and new backends are compared with it.

`backend` implements the seam. It calls `store`, which has the queues by name, a lock, and all that
concerns more than one queue, such as a Move. `queue` holds the messages of one queue, with `heap`
(orders), `dedup` (names of stored copies) and `waiting` (which consumer to wake). `registry` finds
the store that a URL names.
"""

from mqcore.spi import Backend, hookimpl
from mqcore_memory.backend import MemoryBackend
from mqcore_memory.options import MemoryOptions

__all__ = ["MemoryBackend", "MemoryOptions", "mqcore_register_backends"]


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    """Register the scheme `memory`."""
    return [MemoryBackend]
