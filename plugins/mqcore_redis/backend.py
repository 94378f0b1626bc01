"""The seam: each request, and the scripts that it runs.

Each `open` creates what lives until `close`.
"""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from pydantic import BaseModel
from redis.exceptions import NoPermissionError, ResponseError

from mqcore.spi import (
    Alterations,
    Backend,
    Binding,
    Capabilities,
    ConfigurationError,
    ConnectionLost,
    Delivery,
    Entry,
    ErrorKind,
    Failed,
    Outcome,
    Outgoing,
    QueueCounts,
    QueueSpec,
    Subscription,
    quarantine_of,
)
from mqcore_redis.batches import MESSAGES, Batches
from mqcore_redis.bindings import Bindings
from mqcore_redis.classify import kind_of
from mqcore_redis.consumers import Consumers
from mqcore_redis.options import RedisOptions, read
from mqcore_redis.probe import RIGHTS, denied, probe
from mqcore_redis.rows import aged, deliveries, entries, token
from mqcore_redis.scripts import Call
from mqcore_redis.session import Session, raise_if_error
from mqcore_redis.topology import alter, declare, read_counts

__all__ = ["RedisBackend"]

_LAST_CALLS = 1.2
"""Seconds that `close` may take for its last calls to the server."""
_KEY = re.compile("([rd])/([0-9]+)/([^/]*)")
"""The key of an entry: its set, its score, its name."""


@dataclass(frozen=True)
class _Opened:
    """One generation, from `open` to `close`.

    `temporary` are the queues that are removed with it.
    """

    session: Session
    capabilities: Capabilities
    batches: Batches
    bindings: Bindings
    consumers: Consumers
    temporary: set[str] = field(default_factory=set)


class RedisBackend(Backend):
    """One user of a Redis server, of the master that Sentinel names, or of a cluster."""

    scheme = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
    spi_version = 1
    Options = RedisOptions

    def __init__(self, url: str, options: BaseModel) -> None:
        super().__init__(url, options)
        if not isinstance(options, RedisOptions):
            raise ConfigurationError(
                f"the Redis backend takes RedisOptions, not {type(options).__name__}"
            )
        self._place = read(url, options)
        self._open: _Opened | None = None

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """Connect, load the scripts and probe the server.

        Raises redis-py's exceptions, and `ConfigurationError`.
        """
        await self.close()
        session = Session(self._place, lost)
        try:
            await session.open()
            capabilities = await probe(session)
        except BaseException as error:
            await session.close()
            if isinstance(error, ResponseError) and denied(error):
                raise NoPermissionError(
                    f"{error} (mqcore needs: {RIGHTS})", status_code="NOPERM"
                ) from error
            raise
        batches = Batches(session)
        self._open = _Opened(
            session, capabilities, batches, Bindings(session), Consumers(session, batches)
        )
        return capabilities

    async def close(self) -> None:
        """End the consumers and remove the temporary queues of this instance, within 2 s.

        Claims return to their queues when their leases end.
        """
        opened, self._open = self._open, None
        if opened is None:
            return
        queues = [
            opened.session.ask("delete", name, 0, also=quarantine_of(name))
            for name in opened.temporary
        ]
        queues += [opened.bindings.forget(name) for name in opened.temporary]
        try:
            with suppress(Exception):
                async with asyncio.timeout(_LAST_CALLS):
                    await asyncio.gather(opened.consumers.end(), *queues, return_exceptions=True)
        finally:  # also when we are cancelled, because a second close finds nothing to close
            await opened.consumers.close()
            await opened.session.close()

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Create missing queues: all or none of those that share a slot.

        Raises `TopologyMismatch`, and `DurabilityUnavailable` for more than the server gives.
        """
        now = self._now
        for spec in queues:
            if spec.durability is not None:
                now.capabilities.require_durability(spec.durability)
        await declare(now.session, queues)
        now.temporary.update(spec.name for spec in queues if spec.role == "temporary")

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        """Store a batch, with one script call for each queue and 500 messages.

        A message is confirmed when the script has answered (G1).
        """
        now, until = self._now, asyncio.get_running_loop().time() + timeout
        outcomes = await now.batches.publish(batch, until)
        if now.bindings.temporary:
            for out, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Failed) and out.to in now.bindings.temporary:
                    await self._end_bindings(str(out.to), outcome)
        return outcomes

    async def _end_bindings(self, queue: str, failed: Failed) -> None:
        """Remove the bindings of a temporary queue that Redis has ended."""
        if failed.kind is ErrorKind.NOT_FOUND:
            with suppress(Exception):  # the next publish finds it missing again
                await self._now.bindings.forget(queue)

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        """Start to consume. Raises `QueueNotFound`."""
        return await self._now.consumers.subscribe(queue, prefetch, lease)

    def classify(self, error: Exception) -> ErrorKind:
        """Return the kind of an exception of redis-py or of this driver."""
        return kind_of(error)

    async def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
        """Extend claims of any instance."""
        return [rest > 0 for rest in await self._now.batches.renew(queue, receipts, lease)]

    async def note_start(self, queue: str, receipts: Sequence[bytes]) -> Sequence[bool]:
        """Note that handlers start with these claims, of any instance."""
        session = self._now.session
        return [it == 1 for it in await session.run("start", session.keys.of(queue), *receipts)]

    async def was_handled(self, names: Sequence[str]) -> Sequence[bool]:
        """Return which names are recorded: each is a key that expires by itself."""
        session = self._now.session
        answers = [session.command("EXISTS", session.keys.handled(name)) for name in names]
        return [answer == 1 for answer in await asyncio.gather(*answers)]

    async def note_handled(self, names: Sequence[str], window: float) -> None:
        """Record names for a window."""
        session, last = self._now.session, max(round(window * 1000), 1)
        keys = [session.keys.handled(name) for name in names]
        await asyncio.gather(*(session.command("SET", key, "", "PX", last) for key in keys))

    async def count(self, queues: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        """Count the named queues, or all but quarantines and temporary ones, in one write.

        A missing queue is left out.
        """
        session, keys = self._now.session, self._now.session.keys
        if queues is None:
            queues = sorted(
                name.decode() for name in await session.command("SMEMBERS", keys.queues)
            )
        calls = [Call("count", keys.of(name) + keys.of(quarantine_of(name)), ()) for name in queues]
        answers = zip(queues, await session.gather(calls), strict=True)
        return [
            read_counts(name, json.loads(answer))
            for name, answer in answers
            if raise_if_error(answer) != -1
        ]

    async def browse(self, queue: str, limit: int, after: str | None = None) -> Sequence[Entry]:
        """Return a page of the ready messages, then of the delayed ones. Raises `QueueNotFound`."""
        page: list[Entry] = []
        while len(page) < limit:
            start = _KEY.fullmatch(after or "r/0/")
            if start is None:
                return page  # no page follows a key that is not ours
            size = min(limit - len(page), MESSAGES)
            now, rows = await self._now.session.ask("browse", queue, size, *start.groups(), token())
            if not rows:
                return page
            page += entries(now, rows)
            after = page[-1].key
        return page

    async def take(self, queue: str, keys: Sequence[str], lease: float) -> Sequence[Delivery]:
        """Lease chosen entries. Raises `QueueNotFound`."""
        names = list(dict.fromkeys(key.rpartition("/")[2] for key in keys))
        found: list[tuple[float, Delivery]] = []
        while names:
            args = (round(lease * 1e6), token(), *names[:MESSAGES])
            before = monotonic()
            now, rows, seen = await self._now.session.ask("take", queue, *args)
            found += deliveries(now, rows, before)
            names = names[seen:]
        return _handed_out(found)

    async def sweep(self, queue: str, limit: int, lease: float) -> Sequence[Delivery]:
        """Lease expired messages at any place in the queue. Raises `QueueNotFound`."""
        found: list[tuple[float, Delivery]] = []
        start = 0
        while start >= 0 and len(found) < limit:
            args = (round(lease * 1e6), token(), min(limit - len(found), MESSAGES), start)
            before = monotonic()
            now, rows, start = await self._now.session.ask("sweep", queue, *args)
            found += deliveries(now, rows, before)
        return _handed_out(found)

    async def purge(self, queue: str) -> int:
        """Remove the ready and the delayed messages. Raises `QueueNotFound`."""
        gone, left = 0, 1
        while left:
            part, left = await self._now.session.ask("purge", queue, also=quarantine_of(queue))
            gone += part
        return gone

    async def delete(self, queue: str, *, if_empty: bool = False) -> bool:
        """Remove a queue with its quarantine and bindings. Raises `QueueNotFound`."""
        now, names = self._now, self._now.session.keys.queues
        # First, because a consumer may declare the queue again as soon as it is gone.
        listed = await now.session.command("SREM", names, queue)
        if not await now.session.ask("delete", queue, int(if_empty), also=quarantine_of(queue)):
            if listed:
                await now.session.run("relist", [names], queue)
            return False
        now.temporary.discard(queue)
        await now.bindings.forget(queue)
        return True

    async def diagnose(self) -> Sequence[str]:
        """Return which bindings cannot be read."""
        await self._now.bindings.of()
        if not (count := self._now.bindings.unreadable):
            return []
        text = "bindings in Redis are not as mqcore writes them and are skipped: bind those routers"
        return [f"{count:,} {text} again"]

    async def alter(self, queue: str, settings: Alterations) -> None:
        """Change settings of a queue, for all instances at once. Raises `QueueNotFound`."""
        await alter(self._now.session, queue, settings)

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings. Raises `TopologyMismatch`."""
        await self._now.bindings.add(bindings, self._now.temporary)

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings."""
        await self._now.bindings.remove(bindings)

    async def bindings(self, router: str | None = None) -> Sequence[Binding]:
        """Return the bindings of one router, or all."""
        return await self._now.bindings.of(router)

    def unwrap(self) -> Sequence[object]:
        """Return redis-py's client."""
        return [self._now.session.client()]

    @property
    def _now(self) -> _Opened:
        if self._open is None:
            raise ConnectionLost(
                f"the connection to Redis at {self._place.shown} is closed; open it first"
            )
        self._open.session.check()
        return self._open


def _handed_out(found: Sequence[tuple[float, Delivery]]) -> list[Delivery]:
    """Return what was claimed, with the `expires_in` of now.

    Each delivery comes with the time at which its claim was sent.
    """
    now = monotonic()
    return [aged(delivery, now - sent) for sent, delivery in found]
