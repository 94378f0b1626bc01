"""The seam: each method of `TaskStore`, and the scripts or commands that it runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from mqcore.tasks.spi import Clock, Pending, TaskStore, child_id
from mqcore_redis.tasks.gather import Gatherer
from mqcore_redis.tasks.server import Server, place_of
from mqcore_redis.tasks.words import (
    announcement_of,
    heartbeat_of,
    node_of,
    outbox_entry_of,
    schedule_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.tasks.spi import Announcement, Applied, Change, Heartbeat, Node, Schedule
    from mqcore_redis.link import Answer

__all__ = ["RedisTaskStore"]

_SLICE = 450
"""Members of a group that one call treats: fewer than elsewhere, as other clients wait."""
_PAGE = 500
"""Rows that one call reads."""
_BYTES = 1_048_576
"""Bytes after which a call reads no further row."""


class RedisTaskStore(TaskStore):
    """One user of the tables in a Redis server, the master that Sentinel names, or a cluster."""

    scheme: ClassVar[str | tuple[str, ...]] = (
        "redis",
        "rediss",
        "unix",
        "redis+sentinel",
        "redis+cluster",
    )

    def __init__(self, url: str, clock: Clock | None = None, *, slice_size: int = _SLICE) -> None:
        """Read the URL. Raises `ConfigurationError`."""
        super().__init__(url, clock, slice_size=slice_size)
        self._server = Server(place_of(url))
        self._gatherer = Gatherer(self._send, slice_size)

    async def open(self) -> None:
        """Connect and load the scripts. Raises `StoreError`, and `ConfigurationError`."""
        await self._server.open()

    async def close(self) -> None:
        """Disconnect. Calls that wait raise `StoreError`."""
        await self._server.close()

    async def apply(self, changes: Sequence[Change]) -> Applied:
        """Make the changes, in one script call with those of other callers."""
        return await self._gatherer.apply(changes)

    async def _send(self, script: str, words: Sequence[Any]) -> Answer:
        return await self._run(script, self.slice_size, *words)

    async def listen(self, heard: Callable[[Announcement | None], None]) -> None:
        """Subscribe to the channel on which each transaction says what it has changed."""

        def heard_text(text: bytes | None) -> None:
            heard(None if text is None else announcement_of(text))

        await self._server.listen("changes", heard_text)

    async def outbox(self, limit: int = 100, written_before: float = math.inf) -> Sequence[Pending]:
        """Return the oldest entries, and those of one time by key."""
        latest = f"({float(written_before)!r}"
        found = await self._server.ask(
            "ZRANGE", "outbox", "-inf", latest, "BYSCORE", "LIMIT", 0, limit
        )
        return await self.entries([key.decode() for key in found])

    async def entries(self, keys: Sequence[str]) -> Sequence[Pending]:
        """Return these entries with their rows."""
        found: list[Pending] = []
        for key, answer in zip(keys, await self._read("tasks/entries", keys), strict=True):
            if answer is not None:
                *about, row = answer
                entry = outbox_entry_of(key, about)
                found.append(Pending(entry, node_of(entry.node, row) if row else None))
        return found

    async def nodes(self, ids: Sequence[str]) -> Sequence[Node | None]:
        """Return rows."""
        rows = await self._read("tasks/read", ids)
        return [node_of(id_, row) if row else None for id_, row in zip(ids, rows, strict=True)]

    async def children(self, parent: str, start: int, stop: int) -> Sequence[Node]:
        """Return rows, by index. Their ids follow from it, so there is no list of them."""
        found = await self.nodes([child_id(parent, index) for index in range(start, stop)])
        return [node for node in found if node is not None]

    async def _read(self, script: str, names: Sequence[str]) -> list[Any]:
        """Read page by page. A page ends early when it has enough bytes."""
        found: list[Any] = []
        while len(found) < len(names):
            page = names[len(found) : len(found) + _PAGE]
            found += await self._run(script, _BYTES, *page)
        return found

    async def suspects(self, before: float, limit: int = 100) -> Sequence[str]:
        """Look at the late tasks page by page, until there are enough suspects."""
        found: list[str] = []
        start = 0
        while len(found) < limit:
            seen, names = await self._run("tasks/suspects", repr(float(before)), _PAGE, start)
            found += [name.decode() for name in names]
            start += seen
            if seen < _PAGE:
                break
        return found[:limit]

    async def live(self, limit: int = 100) -> Sequence[str]:
        """Read the index of live tasks."""
        found = await self._server.ask("ZRANGE", "late", 0, limit - 1)
        return [name.decode() for name in found]

    async def heartbeat(self, beat: Heartbeat) -> Sequence[str]:
        """Store it, with the time of the server."""
        words = (beat.worker, repr(float(beat.ttl)), beat.info)
        return [name.decode() for name in await self._run("tasks/heartbeat", *words)]

    async def workers(self) -> Sequence[Heartbeat]:
        """Return the heartbeats."""
        return [heartbeat_of(*item) for item in await self._items("beats")]

    async def schedules(self) -> Sequence[Schedule]:
        """Return the schedules."""
        return [schedule_of(*item) for item in await self._items("schedules")]

    async def _items(self, key: str) -> list[tuple[bytes, bytes]]:
        """Return a hash, sorted by its fields."""
        found = await self._server.ask("HGETALL", key)
        if isinstance(found, dict):  # a cluster's client has read the pairs already
            return sorted(found.items())
        return sorted(zip(found[::2], found[1::2], strict=True))

    async def ended(
        self, after: float, before: float, limit: int = 100, start: int = 0
    ) -> Sequence[str]:
        """Return the roots by the time when they ended."""
        times = f"({float(before)!r}", repr(float(after))
        page = ("BYSCORE", "REV", "LIMIT", start, limit)
        return [name.decode() for name in await self._server.ask("ZRANGE", "ended", *times, *page)]

    async def purge(self, ended_before: float, limit: int = 100) -> int:
        """Remove old trees, page by page."""
        removed = kept = 0
        while removed < limit:
            count = min(limit - removed, _PAGE)
            words = (repr(float(ended_before)), count, kept)
            seen, gone = await self._run("tasks/purge", *words)
            removed, kept = removed + gone, kept + seen - gone
            if seen < count:
                break
        return removed

    async def clear(self) -> None:
        """Remove all keys of the store."""
        await self._run("tasks/clear")

    async def _run(self, script: str, *words: Any) -> Answer:
        """Run a script at the server's time, or at the clock's if that is not a real one."""
        clock = self.clock
        now = "" if clock.real else repr(clock.now())
        return await self._server.run(script, now, *words)
