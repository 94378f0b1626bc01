"""A broker in memory: queues and bindings behind one lock, without asyncio.

`publish` copies a message into its queue and wakes a waiting consumer. `claim` leases it. `settle`
removes it, returns it or moves it, in one step under the lock. Every operation gets the time from
its caller: `now` in monotonic seconds, and `wall` in seconds since the epoch, for records that
people read.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, repeat
from math import inf
from struct import Struct
from threading import Lock

from mqcore.spi import (
    DONE,
    HIDDEN_ROLES,
    STALE,
    STORED,
    Alterations,
    Binding,
    Delivery,
    Entry,
    ErrorKind,
    Failed,
    Message,
    Move,
    Outcome,
    Outgoing,
    QueueCounts,
    QueueNotFound,
    QueueSpec,
    Release,
    Settled,
    Settlement,
    Stored,
    check_spec,
    expiry_of,
    overflowed,
    quarantine_of,
)
from mqcore_memory.bindings import Bindings
from mqcore_memory.dedup import Window
from mqcore_memory.inbox import HandledNames
from mqcore_memory.options import TEN_YEARS
from mqcore_memory.queue import Copy, MemoryQueue
from mqcore_memory.waiting import Holder

__all__ = ["MemoryStore"]

IDLE_LIMIT = 3600.0
"""Seconds that a temporary queue stays without a consumer."""
_DUPLICATE = Stored(duplicate=True)
Touched = dict[str, MemoryQueue]


class MemoryStore:
    """All queues of one name. Any number of Backends use it at once, from any thread."""

    def __init__(
        self,
        name: str = "default",
        *,
        dedup_window: float = 600.0,
        dedup_size: int = 1_000_000,
        max_delay: float = TEN_YEARS,
    ) -> None:
        self.name = name
        self.dedup = (dedup_window, dedup_size)
        self.max_delay = max_delay
        self._lock = Lock()
        self._queues: dict[str, MemoryQueue] = {}
        self._bindings = Bindings()
        self.inbox = HandledNames()
        self._numbers = count(1)
        self._receipts: Iterator[bytes] = map(
            Struct(">8sQ").pack, repeat(secrets.token_bytes(8)), count(1)
        )
        """Fencing tokens: each claim has its own, and those of another store cannot be guessed."""

    # Topology

    def declare(self, specs: Sequence[QueueSpec], now: float, owner: Holder | None = None) -> None:
        """Create the queues that are missing.

        Raises `TopologyMismatch` when one differs, and creates none then.
        """
        with self._lock:
            self._end_idle(now)
            wanted = {name: queue.spec for name, queue in self._queues.items()}
            for spec in specs:
                check_spec(wanted.setdefault(spec.name, spec), spec)
            for name, spec in wanted.items():
                if name not in self._queues:
                    queue = MemoryQueue(spec, Window(*self.dedup), self._numbers, self._receipts)
                    queue.owner = owner if spec.role == "temporary" else None
                    queue.idle_since = now
                    self._queues[name] = queue

    def delete(self, name: str, now: float, *, if_empty: bool = False) -> bool:
        """Remove a queue, its quarantine and the bindings to it.

        With `if_empty`, returns False when one of them holds a message. Raises `QueueNotFound`.
        """
        with self._lock:
            family = self._family(self._queue(name, now), now)
            if if_empty and any(queue.copies for queue in family):
                return False
            for queue in family:
                self._remove(queue)
            return True

    def alter(self, name: str, settings: Alterations, now: float) -> None:
        """Change settings of a queue. Raises `QueueNotFound`."""
        with self._lock:
            queue = self._queue(name, now)
            queue.alter(replace(queue.spec, **settings))

    def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings.

        Raises `TopologyMismatch` when a router would have two kinds, and adds none then.
        """
        with self._lock:
            self._bindings.add(bindings)

    def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings. Those that do not exist are ignored."""
        with self._lock:
            self._bindings.remove(bindings)

    def bindings(self, router: str | None = None, now: float = -inf) -> list[Binding]:
        """Return the bindings of one router, or all. Those of an ended queue have ended."""
        with self._lock:
            self._end_idle(now)
            return self._bindings.of(router)

    # Messages

    def publish(self, batch: Sequence[Outgoing], now: float, wall: float) -> list[Outcome]:
        """Store a batch; return an outcome for each item."""
        with self._lock:
            touched: Touched = {}
            outcomes = [self._publish(item, now, wall, touched) for item in batch]
            _nudge(touched)
            return outcomes

    def settle(self, name: str, batch: Sequence[Settlement], now: float) -> list[Settled]:
        """Settle a batch of claims on one queue, in its order; return an outcome for each."""
        with self._lock:
            touched: Touched = {}
            source = self._touch(name, now, touched)
            if source is None:
                return [STALE] * len(batch)
            settled = [self._settle(source, item, now, touched) for item in batch]
            _nudge(touched)
            return settled

    def claim(
        self, name: str, holder: Holder, limit: int, now: float, *, wait: bool = False
    ) -> list[Delivery]:
        """Lease up to `limit` ready messages.

        Raises `QueueNotFound` when the queue was deleted while the holder consumed it.

        With `wait`, a holder that gets none is woken when there may be one. It must claim again by
        `holder.until`.
        """
        with self._lock:
            queue = self._queues.get(name)
            if queue is None or holder not in queue.consumers:
                raise QueueNotFound(
                    f"queue {name!r} was deleted while it was consumed; declare it and "
                    "subscribe again"
                )
            queue.waiters.remove(holder)
            queue.tick(now)
            claimed = queue.claim(holder, limit, now)
            if wait and not claimed:
                queue.waiters.add(holder, queue.next_event())
            queue.nudge()
            return claimed

    def renew(self, name: str, receipts: Sequence[bytes], lease: float, now: float) -> list[bool]:
        """Extend claims to `lease` seconds from now; return False for each that has ended."""
        with self._lock:
            queue = self._find(name, now)
            if queue is None:
                return [False] * len(receipts)
            renewed = [queue.renew(receipt, now + lease) for receipt in receipts]
            queue.nudge()
            return renewed

    def note_start(self, name: str, receipts: Sequence[bytes], now: float) -> list[bool]:
        """Note that handlers start with these claims; return False for each that has ended."""
        with self._lock:
            queue = self._find(name, now)
            return [queue is not None and queue.note_start(receipt) for receipt in receipts]

    # Consumers

    def subscribe(self, name: str, holder: Holder, now: float) -> None:
        """Allow `holder` to claim from a queue. Raises `QueueNotFound`."""
        with self._lock:
            self._queue(name, now).consumers.add(holder)

    def unsubscribe(self, name: str, holder: Holder, now: float) -> None:
        """End a subscription. Its unsettled messages return as taken over."""
        with self._lock:
            queue = self._queues.get(name)
            if queue is not None and holder in queue.consumers:
                queue.tick(now)
                queue.consumers.discard(holder)
                queue.idle_since = now
                queue.waiters.remove(holder)
                queue.abandon(holder)
                queue.nudge()

    def stop_waiting(self, name: str, holder: Holder) -> None:
        """Stop waiting after a `claim` with `wait`, and wake another consumer in its place."""
        with self._lock:
            if (queue := self._queues.get(name)) is not None:
                queue.waiters.remove(holder)
                queue.nudge()

    def leave(self, owner: Holder, now: float) -> None:
        """Forget an owner.

        Its temporary queues are removed. What it took and swept returns as taken over.
        """
        with self._lock:
            for queue in list(self._queues.values()):
                if queue.owner is owner:
                    self._remove(queue)
                elif owner.held:
                    queue.tick(now)
                    queue.abandon(owner)
                    queue.nudge()

    # Operators

    def count(self, names: Sequence[str] | None, now: float) -> list[QueueCounts]:
        """Count the named queues that exist, or all but quarantines and temporary ones."""
        with self._lock:
            self._end_idle(now)
            if names is None:
                names = [
                    name
                    for name, queue in self._queues.items()
                    if queue.spec.role not in HIDDEN_ROLES
                ]
            return [self._count(self._queues[name], now) for name in names if name in self._queues]

    def browse(self, name: str, limit: int, after: str | None, now: float) -> list[Entry]:
        """Return up to `limit` messages after the key `after`, and change nothing.

        Raises `QueueNotFound`.
        """
        with self._lock:
            return self._queue(name, now).browse(limit, after, now)

    def take(
        self, name: str, keys: Sequence[str], lease: float, owner: Holder, now: float
    ) -> list[Delivery]:
        """Lease the named entries that are ready or delayed. Raises `QueueNotFound`."""
        with self._lock:
            queue = self._queue(name, now)
            taken = queue.take(owner, keys, now + lease, now)
            queue.nudge()
            return taken

    def sweep(
        self, name: str, limit: int, lease: float, owner: Holder, now: float
    ) -> list[Delivery]:
        """Lease up to `limit` expired messages at any place. Raises `QueueNotFound`."""
        with self._lock:
            queue = self._queue(name, now)
            swept = queue.sweep(owner, limit, now + lease, now)
            queue.nudge()
            return swept

    def purge(self, name: str, now: float) -> int:
        """Remove the ready and the delayed messages, also of the quarantine; return how many.

        Raises `QueueNotFound`.
        """
        with self._lock:
            return sum(queue.purge() for queue in self._family(self._queue(name, now), now))

    # Steps, all under the lock

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        queue = self._target(out, now, touched)
        if isinstance(queue, Failed):
            return queue
        message, spec = out.message, queue.spec
        if queue.window.has(message.copy_name):
            return _DUPLICATE
        bounded = spec.max_length is not None and message.hop == 0 and out.delay <= 0
        if bounded and spec.overflow == "reject" and queue.ready >= (spec.max_length or 0):
            return Failed(
                ErrorKind.FULL,
                f"queue {spec.name!r} holds max_length={spec.max_length:,} ready messages",
            )
        queue.put(_copy(out, now, spec.ttl), now, out.delay)
        queue.remember(message, now)
        while bounded and queue.ready > (spec.max_length or 0):
            self._overflow(queue, now, wall, touched)
        return STORED

    def _overflow(self, queue: MemoryQueue, now: float, wall: float, touched: Touched) -> None:
        """Evict the oldest message of the lowest priority.

        It is dead-lettered, or dropped without a dead-letter queue.
        """
        message, name = queue.evict(), queue.spec.dead_letter
        target = self._touch(name, now, touched) if name is not None else None
        if target is None:
            queue.dropped += 1
            return
        target.put(overflowed(message, queue.spec.name, wall), now)

    def _settle(
        self, source: MemoryQueue, item: Settlement, now: float, touched: Touched
    ) -> Settled:
        entry = source.leases.get(item.receipt)
        if entry is None:
            return STALE
        if isinstance(item, Release):
            source.release(entry, lost=False)
            return DONE
        if isinstance(item, Move) and (
            failed := self._store_successor(entry, item.to, now, touched)
        ):
            return failed
        source.remove(entry)
        return DONE

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        target = self._target(out, now, touched)
        if isinstance(target, Failed):
            return target
        if not target.window.has(out.message.copy_name, since=entry.number):
            target.put(_copy(out, now, target.spec.ttl), now, out.delay)
        return None

    def _target(self, out: Outgoing, now: float, touched: Touched) -> MemoryQueue | Failed:
        if not isinstance(out.to, str):
            return Failed(
                ErrorKind.PERMANENT,
                f"memory does not route: {out.to} has to be resolved to queues first",
            )
        if out.delay > self.max_delay:
            return Failed(
                ErrorKind.PERMANENT,
                f"a delay of {out.delay:g} s is above max_delay={self.max_delay:g} s",
            )
        queue = self._touch(out.to, now, touched)
        return queue if queue is not None else Failed(ErrorKind.NOT_FOUND, self._missing(out.to))

    def _touch(self, name: str, now: float, touched: Touched) -> MemoryQueue | None:
        """Find a queue once for each batch, which nudges it at its end."""
        queue = touched.get(name)
        if queue is None and (queue := self._find(name, now)) is not None:
            touched[name] = queue
        return queue

    def _queue(self, name: str, now: float) -> MemoryQueue:
        queue = self._find(name, now)
        if queue is None:
            raise QueueNotFound(self._missing(name))
        return queue

    def _find(self, name: str, now: float) -> MemoryQueue | None:
        """Return a queue at the time `now`, or None when there is none."""
        queue = self._queues.get(name)
        if queue is None or self._is_idle(queue, now):
            return None
        queue.tick(now)
        return queue

    def _missing(self, name: str) -> str:
        return f"there is no queue {name!r} in the memory broker {self.name!r}"

    def _family(self, queue: MemoryQueue, now: float) -> list[MemoryQueue]:
        """Return the queue and its quarantine."""
        quarantine = self._queues.get(quarantine_of(queue.spec.name))
        if quarantine is None or quarantine.spec.role != "quarantine":
            return [queue]
        quarantine.tick(now)
        return [queue, quarantine]

    def _count(self, queue: MemoryQueue, now: float) -> QueueCounts:
        queue.tick(now)
        queue.nudge()
        family = self._family(queue, now)
        return QueueCounts(
            name=queue.spec.name,
            role=queue.spec.role,
            ready=sum(member.ready for member in family),
            leased=sum(len(member.leases) for member in family),
            delayed=sum(member.delayed for member in family),
            published=queue.published,
            settled=queue.settled,
            dead_letter=queue.spec.dead_letter,
            spec=replace(queue.spec, durability=None),
        )

    def _remove(self, queue: MemoryQueue) -> None:
        del self._queues[queue.spec.name]
        for entry in queue.leases.values():
            if entry.holder is not None:
                entry.holder.held -= 1
        queue.waiters.wake_all()
        self._bindings.forget(queue.spec.name)

    def _is_idle(self, queue: MemoryQueue, now: float) -> bool:
        temporary = queue.spec.role == "temporary" and not queue.consumers
        return temporary and now - queue.idle_since >= IDLE_LIMIT

    def _end_idle(self, now: float) -> None:
        for queue in [queue for queue in self._queues.values() if self._is_idle(queue, now)]:
            self._remove(queue)


def _nudge(touched: Touched) -> None:
    for queue in touched.values():
        queue.nudge()


def _copy(out: Outgoing, now: float, queue_ttl: float | None) -> Message:
    """Copy a message as it will be stored.

    The queue's ttl applies to a publish, not to a Move (G6).
    """
    message, expires = out.message, expiry_of(out, queue_ttl, now)
    return (
        message.copy()
        if expires == message.expires_at
        else replace(message, expires_at=expires).copy()
    )
