"""What a case works with: an open backend, time, and the few moves that every case makes.

A case knows nothing of a backend but the seam. Waiting is bounded by the harness's `patience` and, under a virtual clock, takes no
time; every name is new; what a case declares is deleted at its end, where the backend can.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from mqcore.broker import Broker
from mqcore.message import Message, new_id
from mqcore.spi import (
    STORED,
    Ack,
    Backend,
    Capabilities,
    Capability,
    Delivery,
    Done,
    Move,
    Outcome,
    Outgoing,
    QueueSpec,
    Settled,
    Settlement,
    Subscription,
    SupportsDelete,
)
from mqcore.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from mqcore.contract.harness import Harness

__all__ = ["ContractError", "Kit", "NotShown"]

T = TypeVar("T")


class ContractError(AssertionError):
    """A backend did other than the contract says: what was expected, what came, and where to look."""

    def __init__(self, expected: str, came: object, look: str = "") -> None:
        """Three plain sentences or values; `look` names the method to begin with."""
        self.expected, self.came, self.look = expected, came, look
        super().__init__(f"expected: {expected}\n     came: {came}" + (f"\n  look at: {look}" if look else ""))


class NotShown(Exception):
    """Raised by a case that finds only while running that this server cannot show it; the reason is printed."""


class Kit:
    """One case's view of one broker."""

    def __init__(self, harness: Harness) -> None:
        """Not open yet."""
        self.harness = harness
        self.clock = harness.clock
        self.capabilities: Capabilities
        self.measured: dict[str, float] = {}
        """What a case measures, by name: it goes into the report."""
        self.lost: list[Exception] = []
        self._backend: Backend | None = None
        self._opened: list[Backend] = []
        self._brokers: list[Broker] = []
        self._declared: list[str] = []

    # Checks

    def same(self, came: object, wanted: object, what: str, look: str = "") -> None:
        """Fail unless the two are equal."""
        if came != wanted:
            raise ContractError(f"{what}: {wanted!r}", repr(came), look)

    def true(self, holds: object, expected: str, came: object = "it does not hold", look: str = "") -> None:
        """Fail unless it holds."""
        if not holds:
            raise ContractError(expected, came, look)

    async def raises(
        self, errors: type[BaseException] | tuple[type[BaseException], ...], work: Awaitable[object], what: str
    ) -> BaseException:
        """Fail unless the work raises one of these within the patience; return what it raised."""
        try:
            came = await self.within(work)
        except errors as error:
            return error
        except Exception as error:
            raise ContractError(what, f"{type(error).__name__}: {error}") from error
        raise ContractError(what, f"nothing was raised, it returned {came!r}")

    # Time

    @property
    def now(self) -> float:
        """The clock that delays and leases are measured by."""
        return self.clock.monotonic()

    async def advance(self, seconds: float) -> None:
        """Let time pass."""
        await self.harness.advance(seconds)

    async def within(self, work: Awaitable[T], seconds: float | None = None) -> T:
        """Run the work to its end; fail when it takes longer than `seconds` (by default the harness's patience)."""
        limit = self.harness.patience if seconds is None else seconds
        task = asyncio.ensure_future(work)
        if isinstance(self.clock, VirtualClock):
            await self.clock.settle()
            if not task.done():
                await self.clock.advance(limit)
        else:
            await asyncio.wait([task], timeout=limit)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise ContractError(f"an end within {limit:g} s", "it still goes on")
        return await task

    # Opening and closing

    @property
    def backend(self) -> Backend:
        """The first instance, open."""
        if self._backend is None:
            self._backend = self.harness.make_backend()
        return self._backend

    async def open(self, backend: Backend | None = None) -> Backend:
        """Open an instance, by default another one for the same broker; it is closed at the end."""
        backend = backend or self.harness.make_backend()
        self._opened.append(backend)
        self.capabilities = await self.within(backend.open(self.lost.append))
        return backend

    async def broker(self, **options: Any) -> Broker:
        """Open a Broker on the same server; it is closed at the end."""
        broker = Broker(make_backend=self.harness.make_backend, clock=self.clock, **options)
        self._brokers.append(broker)
        await self.within(broker.open())
        return broker

    async def close(self) -> None:
        """Delete what the case has declared, and close whatever it opened."""
        for broker in self._brokers:
            with suppress(Exception):
                await self.within(broker.close())
        with suppress(Exception):
            tidy = self.harness.make_backend()
            await self.within(tidy.open(self.lost.append))
            if isinstance(tidy, SupportsDelete):
                for name in self._declared:
                    with suppress(Exception):
                        await self.within(tidy.delete(name))
            await tidy.close()
        for backend in self._opened:
            with suppress(Exception):
                await self.within(backend.close())

    # Moves

    def name(self) -> str:
        """Return a name of the case's own, deleted at its end if a queue is called so."""
        name = self.harness.unique_name()
        self._declared += [name, f"{name}.dlq"]
        return name

    async def queue(self, *, dead_letter: bool = True, **settings: Any) -> str:
        """Declare a work queue with its dead-letter queue and its quarantine; return its name."""
        name = self.name()
        dlq = f"{name}.dlq" if dead_letter else None
        specs = [
            QueueSpec(name=name, dead_letter=dlq, **settings),
            QueueSpec(name=f"{name}.again", role="quarantine", dead_letter=dlq),
        ]
        if dlq is not None:
            specs.append(QueueSpec(name=dlq, role="dead_letter"))
        await self.within(self.backend.declare(specs))
        return name

    def message(self, name: str | None = None, **fields: Any) -> Message:
        """Make a message whose id, and body unless it is given, is `name`."""
        name = name or new_id()
        return Message(id=name, **{"body": name.encode(), "published_at": self.clock.now(), **fields})

    async def publish(self, *batch: Outgoing, backend: Backend | None = None) -> list[Outcome]:
        """Publish a batch; an outcome for each."""
        target = backend or self.backend
        return list(await self.within(target.publish(batch, timeout=self.harness.patience)))

    async def put(
        self, queue: str, *names: str, delay: float = 0.0, ttl: float | None = None, priority: int = 5
    ) -> None:
        """Publish messages of these names in one batch, and see all of them stored."""
        batch = [Outgoing(queue, self.message(name, priority=priority), delay, ttl) for name in names]
        self.same(await self.publish(*batch), [STORED] * len(names), "all stored", "Backend.publish")

    async def subscribe(
        self, queue: str, *, prefetch: int = 100, lease: float = 30.0, backend: Backend | None = None
    ) -> Subscription:
        """Start a consumer."""
        return await self.within((backend or self.backend).subscribe(queue, prefetch=prefetch, lease=lease))

    async def receive(self, consumer: Subscription, limit: int = 100, *, wait: float | None = None) -> list[Delivery]:
        """Receive once, waiting `wait` seconds, by default as long as silence takes to be believed."""
        patience = self.harness.silence if wait is None else wait
        return list(await self.within(consumer.receive(limit, patience), patience + self.harness.patience))

    async def take(self, consumer: Subscription, count: int) -> list[Delivery]:
        """Receive until `count` have come; fail with what has when the patience is over."""
        got: list[Delivery] = []
        deadline = self.now + self.harness.patience
        while len(got) < count and self.now < deadline:
            got += await self.receive(consumer, count - len(got), wait=max(deadline - self.now, 0.0))
        self.same(len(got), count, f"messages received within {self.harness.patience:g} s", "Subscription.receive")
        return got

    async def drain(self, consumer: Subscription, *, wait: float | None = None) -> list[Delivery]:
        """Receive until nothing comes, settling nothing."""
        got: list[Delivery] = []
        while batch := await self.receive(consumer, wait=wait):
            got += batch
        return got

    async def settle(self, consumer: Subscription, *batch: Settlement) -> list[Settled]:
        """Settle a batch; an outcome for each."""
        return list(await self.within(consumer.settle(batch, timeout=self.harness.patience)))

    async def ack(self, consumer: Subscription, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge, and see it done."""
        settled = await self.settle(consumer, *[Ack(delivery.receipt) for delivery in deliveries])
        self.same([type(it) for it in settled], [Done] * len(deliveries), "acks of what is held", "Subscription.settle")

    async def contents(self, queue: str) -> Counter[str]:
        """Empty a queue, and count the ids that were in it."""
        consumer = await self.subscribe(queue)
        found: Counter[str] = Counter()
        while batch := await self.receive(consumer):
            found.update(self.ids(batch))
            await self.ack(consumer, batch)
        await self.within(consumer.close())
        return found

    def limit(self, capability: Capability, name: str) -> Any:
        """Return a declared limit, None when there is none."""
        return self.capabilities[capability].limits.get(name)

    def ids(self, deliveries: Sequence[Delivery]) -> list[str]:
        """Return the ids of deliveries, in their order."""
        return [delivery.message.id for delivery in deliveries]

    def successor(self, delivery: Delivery, to: str, delay: float = 0.0, **changes: Any) -> Move:
        """Make the Move that core makes: one hop more, and what else is changed."""
        message = replace(delivery.message, hop=delivery.message.hop + 1, **changes)
        return Move(delivery.receipt, Outgoing(to, message, delay))
