"""The task store in Redis or Valkey: `store="redis://…"`, with the URL and options of the backend.

A call of `apply`: `words` makes a list of words of its changes. `gather` puts all calls of one turn
of the event loop into one script call, which `server` sends over the session of the backend's
driver. The scripts in `lua/tasks/` repeat the transitions of `mqcore.tasks`; `store` implements the
seam.
"""

from mqcore.tasks.spi import TaskStore, hookimpl
from mqcore_redis.tasks.store import RedisTaskStore

__all__ = ["RedisTaskStore", "mqcore_register_stores"]


@hookimpl
def mqcore_register_stores() -> list[type[TaskStore]]:
    """Register the schemes of the backend."""
    return [RedisTaskStore]
