"""What an open backend has: a session, its consumers, the wakers that they share, and the queues that go with it."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mqcore.spi import (
    Capabilities,
    ConfigurationError,
    Delivery,
    Entry,
    QueueCounts,
    QueueNotFound,
    QueueSpec,
    TopologyMismatch,
)
from mqcore_redis.batches import MESSAGES, Batches
from mqcore_redis.bindings import Bindings
from mqcore_redis.keys import Keys
from mqcore_redis.link import Answer
from mqcore_redis.options import RedisOptions
from mqcore_redis.records import decode
from mqcore_redis.session import Call, Session
from mqcore_redis.subscription import ALIVE, RedisSubscription, deliveries, token
from mqcore_redis.waker import Waker

__all__ = ["Opened", "entries"]

_LAST_CALLS = 1.2
"""Seconds that `close` may take for what is still to be said to the server."""
_LISTED = {"work", "dead_letter"}


class Opened:
    """One generation of a backend, from `open` to `close`."""

    def __init__(self, session: Session, keys: Keys, options: RedisOptions, capabilities: Capabilities) -> None:
        self.session, self.capabilities = session, capabilities
        self.batches = Batches(session, keys, options)
        self.bindings = Bindings(session, keys)
        self._keys = keys
        self._wakers: dict[str, Waker] = {}
        self._consumers: set[RedisSubscription] = set()
        self._temporary: set[str] = set()
        self._tending = asyncio.create_task(self._tend())
        session.on_broken = self._wake_all

    async def close(self) -> None:
        """Say goodbye where the server still listens, within 2 s, and let go.

        After a reconnect core goes on with what it holds, so that is not given back here.
        """
        self._tending.cancel()
        consumers = [consumer.end(lost=False) for consumer in list(self._consumers)]
        queues = [self.run("delete", name, 0, 0, also=f"{name}.again") for name in self._temporary]
        try:
            with suppress(Exception):
                async with asyncio.timeout(_LAST_CALLS):
                    await asyncio.gather(*consumers, *queues, return_exceptions=True)
        finally:  # also when we are cancelled: whoever closes once more finds nothing to close
            await asyncio.gather(*(waker.close() for waker in self._wakers.values()))
            await self.session.close()

    async def run(self, name: str, queue: str, *args: Any, also: str | None = None) -> Answer:
        """Run a script on one queue, or on it and a second one; raises `QueueNotFound` where the script says so."""
        keys = self._keys.of(queue) + (self._keys.of(also) if also is not None else ())
        answer = await self.session.run(name, keys, *args)
        if isinstance(answer, int) and answer == -1:
            raise QueueNotFound(f"there is no queue {queue!r} at {self.session.place.shown}: declare it first")
        return answer

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        """Create what is missing: all or none of those that share a slot."""
        groups: dict[str, list[QueueSpec]] = {}
        for spec in specs:
            if spec.durability is not None:
                self.capabilities.require_durability(spec.durability)
            self._check_slots(spec)
            groups.setdefault(self._keys.group(spec.name), []).append(spec)
        listed = [spec.name for spec in specs if spec.role in _LISTED]
        if listed:  # first: a listed queue that is missing is left out, a queue that is not listed would be hidden
            await self.session.command("SADD", self._keys.queues, *listed)
        for group in groups.values():
            keys = [self._keys.one(spec.name, "q") for spec in group]
            clash = await self.session.run("declare", keys, *(value for spec in group for value in _fields(spec)))
            if clash:
                raise _mismatch(group[clash[0] - 1], clash[1].decode(), clash[2].decode())
        self._temporary.update(spec.name for spec in specs if spec.role == "temporary")

    def _check_slots(self, spec: QueueSpec) -> None:
        letters = spec.dead_letter
        overflows = spec.max_length is not None and spec.overflow == "dead_letter" and letters is not None
        if overflows and self._keys.group(letters or "") != self._keys.group(spec.name):
            raise ConfigurationError(
                f"queue {spec.name!r} overflows into {letters!r}, which is in another slot of the cluster: "
                "use its own dead-letter queue, overflow='reject', or ?tag=NAME in the URL"
            )

    async def subscribe(self, queue: str, prefetch: int, lease: float) -> RedisSubscription:
        """Start a consumer. Raises `QueueNotFound`."""
        group = self._keys.group(queue)
        waker = self._wakers.setdefault(group, Waker(self.session, self._keys, group))
        consumer = RedisSubscription(self.session, self._keys, self.batches, waker, queue, prefetch, lease)
        await consumer.start()
        self._consumers.add(consumer)
        consumer.closed = self._consumers.discard
        return consumer

    async def count(self, names: Sequence[str] | None) -> list[QueueCounts]:
        """Count queues, all in one write; a missing one is left out."""
        if names is None:
            names = sorted(name.decode() for name in await self.session.command("SMEMBERS", self._keys.queues))
        if not names:
            return []
        answers = await self.session.gather(
            [Call("count", self._keys.of(name) + self._keys.of(f"{name}.again"), ()) for name in names]
        )
        return [_counts(name, answer) for name, answer in zip(names, answers, strict=True) if answer != -1]

    async def lease(self, script: str, queue: str, lease: float, what: Sequence[Any]) -> list[Delivery]:
        """Lease what `take` or `sweep` finds."""
        found: list[Delivery] = []
        for start in range(0, len(what), MESSAGES):
            part = what[start : start + MESSAGES]
            now, rows = await self.run(script, queue, round(lease * 1e6), token(), *part)
            found += deliveries(now, rows)
        return found

    async def delete(self, queue: str, *, if_empty: bool = False, if_unused: bool = False) -> bool:
        """Remove a queue, its quarantine and the bindings to it."""
        if not await self.run("delete", queue, int(if_empty), int(if_unused), also=f"{queue}.again"):
            return False
        self._temporary.discard(queue)
        await self.session.command("SREM", self._keys.queues, queue)
        await self.bindings.forget(queue)
        return True

    def _wake_all(self) -> None:
        """The connection broke: who sleeps shall learn it."""
        for consumer in self._consumers:
            consumer.wake()

    async def _tend(self) -> None:
        """Keep the consumers registered that hold all they may, and so do not claim."""
        while True:
            await asyncio.sleep(ALIVE / 3)
            await self.session.gather(
                [call for consumer in self._consumers if (call := consumer.sign_of_life()) is not None]
            )


def entries(now: int, rows: Sequence[bytes]) -> list[Entry]:
    """Read rows of kind, score, entry, record and expiry."""
    found = []
    for index in range(0, len(rows), 5):
        kind, score, entry, record, expires = rows[index : index + 5]
        key = f"{kind.decode()}/{score.decode()}/{entry.decode()}"
        delayed = kind == b"d"
        due_in = max((int(score) - now) / 1e6, 0.0) if delayed else 0.0
        found.append(Entry(key, decode(record, expires), "delayed" if delayed else "ready", due_in))
    return found


def _counts(name: str, answer: Answer) -> QueueCounts:
    if isinstance(answer, BaseException):
        raise answer
    ready, leased, delayed, published, settled, role, dead_letter = answer
    return QueueCounts(
        name=name,
        role=role.decode(),
        ready=ready,
        leased=leased,
        delayed=delayed,
        published=int(published),
        settled=int(settled),
        dead_letter=dead_letter.decode() or None,
    )


def _fields(spec: QueueSpec) -> tuple[str, ...]:
    """Return a spec as the script `declare` takes it; times in microseconds."""
    ttl, retention = (None if value is None else round(value * 1e6) for value in (spec.ttl, spec.retention))
    values = (spec.name, spec.role, ttl, spec.max_length, spec.overflow, spec.dead_letter, retention)
    return tuple("" if value is None else str(value) for value in values)


def _mismatch(wanted: QueueSpec, field: str, found: str) -> TopologyMismatch:
    """Say how a queue differs from what was declared."""
    have: Any = found or None
    if have is not None and field in {"ttl", "retention"}:
        have = int(have) / 1e6
    elif have is not None and field == "max_length":
        have = int(have)
    return TopologyMismatch(
        f"queue {wanted.name!r} exists with {field}={have!r} and was declared with {field}={getattr(wanted, field)!r}: "
        "use the same settings everywhere, or delete the queue first"
    )
