"""An operator's work with the queues of a broker: bindings, delete, purge, peek, counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqcore.errors import ConfigurationError, QueueNotFound
from mqcore.queue import name_of, queue_name
from mqcore.router import Router
from mqcore.rules.checks import check_count, check_flag, check_text, described
from mqcore.spi import (
    SupportsBind,
    SupportsBrowse,
    SupportsCount,
    SupportsDelete,
    SupportsDiagnose,
    SupportsPurge,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.connection.connection import Connection
    from mqcore.connection.topology import Topology
    from mqcore.queue import Queue
    from mqcore.rules.routing import Binding
    from mqcore.spi import Entry, QueueCounts

__all__ = ["QueueAdmin"]


class QueueAdmin:
    """The operations on queues; `Broker` has a method for each.

    All raise `UnsupportedFeature` where the backend cannot do it.
    """

    def __init__(self, connection: Connection, topology: Topology) -> None:
        """`topology` forgets the queues that are deleted here."""
        self._connection, self._topology = connection, topology

    async def diagnose(self) -> list[str]:
        """Return a sentence for each problem with what the driver itself stores at the broker."""
        backend = self._connection.backend
        if not isinstance(backend, SupportsDiagnose):
            return []
        return list(await self._connection.call("diagnosing the broker", backend.diagnose))

    async def bindings(self, router: Router[Any] | str | None) -> Sequence[Binding]:
        """Return the bindings of one router or of all."""
        if router is not None and not isinstance(router, (Router, str)):
            raise ConfigurationError(
                f"reading bindings takes a Router(...) or its name, not {described(router)}"
            )
        name = None if router is None else name_of(router)
        backend = self._connection.supporting(SupportsBind, "reading bindings")
        return await self._connection.call("reading bindings", lambda: backend.bindings(name))

    async def delete(self, queue: Queue[Any] | str, *, if_empty: bool) -> bool:
        """Delete a queue with its quarantine and bindings; whether it was deleted."""
        name = queue_name(queue, "deleting a queue")
        check_flag("if_empty", if_empty, f"deleting queue {name!r}")
        backend = self._connection.supporting(SupportsDelete, "deleting a queue")
        is_deleted = await self._connection.call(
            f"deleting queue {name!r}",
            lambda: backend.delete(name, if_empty=if_empty),
        )
        if is_deleted:
            self._topology.forget(name)
        return is_deleted

    async def purge(self, queue: Queue[Any] | str) -> int:
        """Remove all ready and delayed messages; return how many."""
        name = queue_name(queue, "purging a queue")
        backend = self._connection.supporting(SupportsPurge, "purging a queue")
        return await self._connection.call(f"purging queue {name!r}", lambda: backend.purge(name))

    async def peek(self, queue: Queue[Any] | str, limit: int, after: str | None) -> Sequence[Entry]:
        """Return the next messages without changing anything."""
        name = queue_name(queue, "peeking")
        check_count("limit", limit, f"peeking into {name!r}")
        if after is not None:
            check_text("after", after, f"peeking into {name!r}")
        backend = self._connection.supporting(SupportsBrowse, "peeking")
        return await self._connection.call(
            f"peeking into {name!r}", lambda: backend.browse(name, limit, after)
        )

    async def counts(self, queues: Sequence[Queue[Any] | str]) -> Sequence[QueueCounts]:
        """Return the counts of these queues, or of all. Raises `QueueNotFound`."""
        names = [queue_name(queue, "counting messages") for queue in queues]
        backend = self._connection.supporting(SupportsCount, "counting messages")
        counts = await self._connection.call(
            "counting messages", lambda: backend.count(names or None)
        )

        missing = set(names) - {each.name for each in counts}
        if missing:
            raise QueueNotFound(f"queue {min(missing)!r} does not exist on the broker")
        return counts
