"""Consuming from a fallback's spool while the broker stays away.

A worker's receiver stays what it is. It gets a backend whose queues are the lanes of the spool:

    Receiver ─► Connection ─► SpoolBackend ─► the store
                               receive: a parcel is opened, its message is delivered
                               settle:  a Move becomes a parcel of its target's lane

So a retry waits in the spool, a dead letter goes to the broker later, and leases hold as elsewhere.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqcore.connection.connection import Connection
from mqcore.consuming.grace import UNSUBSCRIBED
from mqcore.consuming.isolation import IsolationLock
from mqcore.consuming.leases import LeaseKeeper
from mqcore.consuming.receiver import Receiver
from mqcore.errors import DecodeError
from mqcore.events import Events
from mqcore.publishing.parcel import Parcel, enclose, unpack_parcel
from mqcore.publishing.spool import lane_name
from mqcore.rules.retry import Rules
from mqcore.spi import Backend, Move, Outgoing, Release, Subscription, SupportsRenew, SupportsStart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.clock import Clock
    from mqcore.consuming.grace import Grace
    from mqcore.publishing.standby import Standby
    from mqcore.queue import Queue
    from mqcore.rules.capabilities import Capabilities
    from mqcore.rules.retry import RetryPolicy
    from mqcore.spi import Delivery, ErrorKind, Outcome, QueueSpec, Settled, Settlement

__all__ = ["SpoolBackend", "SpoolConsumers"]

_STAYS = 1.0
"""Seconds after which a broker that is away counts as staying away."""
_PAUSE = 0.5
"""Seconds between two looks whether the broker is away."""
_SETTLING = 5.0


class SpoolBackend(Backend):
    """The lanes of a spool as queues. The spool itself declares them."""

    def __init__(self, store: Backend, is_away: Callable[[], bool], clock: Clock) -> None:
        """`is_away` says whether the broker is away; while it is there, nothing is received."""
        super().__init__(store.url, store.options)
        self._store = store
        self._is_away = is_away
        self._clock = clock

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """Open the store."""
        return await self._store.open(lost)

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Do nothing: a lane is declared by its spool."""

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        """Put messages into the lanes of their targets."""
        return await self._store.publish([self.enclosed(out) for out in batch], timeout=timeout)

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        """Consume a queue's lane."""
        lane = lane_name(queue, is_router=False)
        inner = await self._store.subscribe(lane, prefetch=prefetch, lease=lease)
        return _SpoolSubscription(self, inner, lane, self._is_away, self._clock)

    def classify(self, error: Exception) -> ErrorKind:
        """As the store."""
        return self._store.classify(error)

    async def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
        """Extend claims on a queue's lane."""
        if not isinstance(self._store, SupportsRenew):
            return [True] * len(receipts)
        return await self._store.renew(lane_name(queue, is_router=False), receipts, lease)

    async def note_start(self, queue: str, receipts: Sequence[bytes]) -> Sequence[bool]:
        """Note that handlers start with claims on a queue's lane."""
        if not isinstance(self._store, SupportsStart):
            return [True] * len(receipts)
        return await self._store.note_start(lane_name(queue, is_router=False), receipts)

    def enclosed(self, out: Outgoing) -> Outgoing:
        """Return what stores a message in the lane of its target.

        The lane gives it out after its delay, and a relay publishes it with what is left of that.
        """
        now, message, ttl = self._clock.now(), out.message, out.ttl
        if ttl is None and message.expires_at is not None:
            ttl = max(message.expires_at - now, 0.0)
        inside = Outgoing(out.to, replace(message, expires_at=None), out.delay, ttl)
        stored = enclose(Parcel(inside, now), lane_name(str(out.to), is_router=False))
        return replace(stored, delay=out.delay)


class _SpoolSubscription(Subscription):
    """One consumer of a lane."""

    def __init__(
        self,
        backend: SpoolBackend,
        inner: Subscription,
        lane: str,
        is_away: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._backend, self._inner, self._lane = backend, inner, lane
        self._is_away, self._clock = is_away, clock
        self._away_since: float | None = None
        self._returning: set[asyncio.Task[None]] = set()

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Return messages while the broker is away."""
        if not self._stays_away():
            await self._clock.sleep(min(timeout, _PAUSE))
            return []
        deliveries = await self._inner.receive(limit, min(timeout, _STAYS))

        opened = [self._opened(delivery) for delivery in deliveries]
        ready = [each for each in opened if not isinstance(each, Move)]
        later = [each for each in opened if isinstance(each, Move)]
        if later:
            try:
                await asyncio.shield(self._give_back(later))
            except asyncio.CancelledError:
                if ready:  # no consumer gets them: a claim that ends would count as a crash
                    self._give_back([Release(delivery.receipt) for delivery in ready])
                raise
        return ready

    def _give_back(self, batch: Sequence[Settlement]) -> asyncio.Task[None]:
        """Settle in the background; `close` waits for it."""

        async def settle() -> None:
            with suppress(Exception):  # the claims end with their lease
                await self._inner.settle(batch, timeout=_SETTLING)

        task = asyncio.create_task(settle())
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)
        return task

    def _stays_away(self) -> bool:
        now = self._clock.monotonic()
        if not self._is_away():
            self._away_since = None
            return False
        if self._away_since is None:
            self._away_since = now
        return now - self._away_since >= _STAYS

    def _opened(self, delivery: Delivery) -> Delivery | Move:
        """Return the message of a parcel, or the Move that keeps it until it is due.

        While it is in the spool, `expires_at` is in wall-clock time; `enclosed` reads it.
        """
        try:
            parcel = unpack_parcel(delivery.message.body)
        except DecodeError as error:
            return replace(delivery, unreadable=delivery.unreadable or str(error))

        now = self._clock.now()
        out = parcel.outgoing(now)
        if out.delay > 0:
            later = delivery.message.moved(self._lane)
            return Move(delivery.receipt, Outgoing(self._lane, later, out.delay))
        expires = None if parcel.out.ttl is None else parcel.at + parcel.out.ttl
        return replace(
            delivery,
            message=replace(out.message, expires_at=expires),
            expires_in=None if expires is None else expires - now,
        )

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """Settle; the successor of a Move goes to the lane of its target."""
        return await self._inner.settle(
            [
                Move(item.receipt, self._backend.enclosed(item.to))
                if isinstance(item, Move)
                else item
                for item in batch
            ],
            timeout=timeout,
        )

    async def close(self) -> None:
        """Stop, after what was given back."""
        if self._returning:
            await asyncio.wait(self._returning)
        await self._inner.close()


class _HandlerEvents(Events):
    """The broker's events, without those of the connection to the store."""

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._events = events

    def emit(
        self, name: str, queue: str = "", message_id: str = "", attempt: int = 0, **fields: object
    ) -> None:
        if not name.startswith("connection."):
            self._events.emit(name, queue, message_id, attempt, **fields)


class SpoolConsumers:
    """The receivers of a worker that consume from the spool."""

    def __init__(
        self, standby: Standby, make_store: Callable[[], Backend], broker: Connection
    ) -> None:
        """`make_store` makes another instance of the spool's backend."""
        self._standby = standby
        self._make_store = make_store
        self._broker = broker
        self._connection: Connection | None = None
        self._keeper: LeaseKeeper | None = None
        self._receivers: list[Receiver] = []

    async def receiver(
        self, queue: Queue[Any], retry: RetryPolicy, *, prefetch: int, lease: float
    ) -> Receiver:
        """Return a receiver of a queue's lane. Raises what opening the store raises."""
        connection = await self._opened()
        targets = [name for name in (queue.name, queue.dead_letter) if name]

        async def declare() -> None:
            await self._standby.spool.declare(targets)

        await declare()
        # A relay that is killed with the message in its hands has started no handler.
        notes = isinstance(self._standby.spool.connection.backend, SupportsStart)
        receiver = Receiver(
            connection,
            Rules(
                queue=queue.name,
                source=queue.name,
                retry=retry,
                dead_letter=queue.dead_letter,
                after_crash="count",
                notes_starts=notes,
                notes_each=notes,
            ),
            prefetch=prefetch,
            lease=lease,
            isolation=IsolationLock(blocks_others=False),
            keeper=self._keeper,
            redeclare=declare,
        )
        self._receivers.append(receiver)
        return receiver

    async def _opened(self) -> Connection:
        if self._connection is None:
            backend, clock = self._backend(), self._broker.clock
            connection = Connection(
                backend, clock=clock, events=_HandlerEvents(self._broker.events)
            )
            await connection.open()
            self._connection = connection
            self._keeper = LeaseKeeper(self._backend, backend, clock)
        return self._connection

    def _backend(self) -> SpoolBackend:
        clock = self._broker.clock
        return SpoolBackend(self._make_store(), lambda: not self._broker.connected, clock)

    async def close(self, leaving: Grace | None = None) -> None:
        """Release what is held, and close the store, within a grace that is given (G13)."""
        await asyncio.gather(*(receiver.close(leaving) for receiver in self._receivers))
        if self._keeper is not None:
            await self._keeper.close()
        if self._connection is not None:
            await self._connection.close(None if leaving is None else leaving.left(UNSUBSCRIBED))
