"""`memory://`: the backend that lives in this process, and the reference for all others.

It keeps every promise of the semantics page to the letter, with nothing between the words and the
code: no server, no codec, no network. Tests run on it under a virtual clock, and new backends are
compared with it.

One message: `backend` is the seam. It calls `store`, which has the queues by name, a lock, and all
that concerns more than one queue, such as a Move. `queue` is the life of the messages of one queue,
on top of `heap` (orders), `dedup` (what was stored already) and `waiting` (whom to wake).
`registry` finds the store that a URL names.
"""

from mqcore.spi import Backend, hookimpl
from mqcore_memory.backend import MemoryBackend
from mqcore_memory.options import MemoryOptions

__all__ = ["MemoryBackend", "MemoryOptions", "mqcore_register_backends"]


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    """Register the scheme `memory`."""
    return [MemoryBackend]
