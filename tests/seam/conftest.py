"""What the tests of the seam stand on: an open backend, a clock, and the few moves that every case makes.

The cases know nothing of a backend but `Backend`, `Subscription` and the `Supports…` protocols. A provider is all that
another backend has to add here. A case that needs a capability starts with `seam.needs(…)` and is skipped without it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, TypeVar, cast

import pytest

from mqcore.spi import (
    STORED,
    Ack,
    Backend,
    Capabilities,
    Capability,
    Delivery,
    Done,
    Message,
    Move,
    Outcome,
    Outgoing,
    QueueSpec,
    Settled,
    Settlement,
    Subscription,
    new_id,
)
from mqcore.testing import VirtualClock, memory_url
from mqcore_memory import MemoryBackend, MemoryOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from mqcore.clock import Clock

T = TypeVar("T")
TIMEOUT = 10.0


class MemoryProvider:
    """`memory://` under a virtual clock: waiting costs no time, so silence is believed at once."""

    silence = 0.05
    """How long nothing must come before a case believes that nothing will."""

    def __init__(self) -> None:
        self.virtual = VirtualClock()
        self.clock: Clock = self.virtual
        self._url = memory_url("seam")

    def make(self) -> Backend:
        """Return a new instance for the same broker, not yet open."""
        return MemoryBackend(self._url, MemoryOptions(clock=self.clock))

    async def advance(self, seconds: float) -> None:
        """Let time pass, and what it makes runnable run."""
        await self.virtual.advance(seconds)

    async def finish(self, work: Awaitable[T], within: float) -> T:
        """Run `work` to its end while up to `within` seconds pass."""
        task = asyncio.ensure_future(work)
        await self.virtual.settle()
        if not task.done():
            await self.virtual.advance(within)
        assert task.done(), f"it did not end within {within:g} s"
        return await task


PROVIDERS: dict[str, Callable[[], MemoryProvider]] = {"memory": MemoryProvider}


class Seam:
    """One open backend, as a case sees it."""

    def __init__(self, provider: MemoryProvider) -> None:
        self.provider = provider
        self.backend = provider.make()
        self.capabilities: Capabilities
        self.lost: list[Exception] = []
        self._opened: list[Backend] = []

    @property
    def now(self) -> float:
        """The clock that delays and leases are measured by."""
        return self.provider.clock.monotonic()

    def needs(self, *capabilities: Capability) -> None:
        """Skip the case when the backend does not declare one of these."""
        for capability in capabilities:
            if not self.capabilities.has(capability):
                pytest.skip(f"{self.capabilities.backend} declares no {capability.name}")

    def supports(self, protocol: Callable[..., T]) -> T:
        """Return the backend as one that has a `Supports…` protocol, or skip the case."""
        if not (isinstance(protocol, type) and isinstance(self.backend, protocol)):
            pytest.skip(f"{self.capabilities.backend} does not do what {protocol} says")
        return cast("T", self.backend)

    async def open(self, backend: Backend | None = None) -> Backend:
        """Open a backend, by default another instance for the same broker; it is closed at the end."""
        backend = backend or self.provider.make()
        self._opened.append(backend)
        self.capabilities = await backend.open(self.lost.append)
        return backend

    async def close(self) -> None:
        """Close whatever a case has opened."""
        for backend in self._opened:
            await backend.close()

    async def advance(self, seconds: float) -> None:
        """Let time pass."""
        await self.provider.advance(seconds)

    async def queue(self, *, dead_letter: bool = True, **settings: object) -> str:
        """Declare a work queue with its dead-letter queue and its quarantine; its name."""
        name = f"q{new_id()[:8]}"
        dlq = f"{name}.dlq" if dead_letter else None
        specs = [
            QueueSpec(name=name, dead_letter=dlq, **settings),  # type: ignore[arg-type]  # a case names real settings
            QueueSpec(name=f"{name}.again", role="quarantine", dead_letter=dlq),
        ]
        if dlq is not None:
            specs.append(QueueSpec(name=dlq, role="dead_letter"))
        await self.backend.declare(specs)
        return name

    def message(self, name: str | None = None, **fields: object) -> Message:
        """Make a message whose id, and body unless it is given, is `name`."""
        name = name or new_id()
        fields = {"body": name.encode(), "published_at": self.provider.clock.now(), **fields}
        return Message(id=name, **fields)  # type: ignore[arg-type]  # a case names real fields

    async def publish(self, *batch: Outgoing) -> Sequence[Outcome]:
        """Publish a batch."""
        return await self.provider.finish(self.backend.publish(batch, timeout=TIMEOUT), TIMEOUT)

    async def put(
        self, queue: str, *names: str, delay: float = 0.0, ttl: float | None = None, priority: int = 5
    ) -> None:
        """Publish messages of these names in one batch, and see all of them stored."""
        batch = [Outgoing(queue, self.message(name, priority=priority), delay, ttl) for name in names]
        assert await self.publish(*batch) == [STORED] * len(names), f"all of {names} should have been stored"

    async def subscribe(self, queue: str, *, prefetch: int = 100, lease: float = 30.0) -> Subscription:
        """Start a consumer."""
        return await self.backend.subscribe(queue, prefetch=prefetch, lease=lease)

    async def receive(self, consumer: Subscription, limit: int = 100, *, within: float | None = None) -> list[Delivery]:
        """Receive once; `within` is how long to wait."""
        patience = self.provider.silence if within is None else within
        return list(await self.provider.finish(consumer.receive(limit, patience), patience))

    async def drain(self, consumer: Subscription, *, within: float | None = None) -> list[Delivery]:
        """Receive until nothing comes, settling nothing."""
        got: list[Delivery] = []
        while batch := await self.receive(consumer, within=within):
            got += batch
        return got

    async def settle(self, consumer: Subscription, *batch: Settlement) -> Sequence[Settled]:
        """Settle a batch."""
        return await self.provider.finish(consumer.settle(batch, timeout=TIMEOUT), TIMEOUT)

    async def ack(self, consumer: Subscription, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge, and see it done."""
        settled = await self.settle(consumer, *[Ack(delivery.receipt) for delivery in deliveries])
        assert [type(it) for it in settled] == [Done] * len(deliveries), "an ack of what is held should be done"

    async def contents(self, queue: str) -> Counter[str]:
        """Empty a queue, and count the ids that were in it."""
        consumer = await self.subscribe(queue)
        found: Counter[str] = Counter()
        while batch := await self.receive(consumer):
            found.update(self.ids(batch))
            await self.ack(consumer, batch)
        await consumer.close()
        return found

    def limit(self, capability: Capability, name: str) -> object:
        """Return a declared limit, None when there is none."""
        return self.capabilities[capability].limits.get(name)

    @staticmethod
    def ids(deliveries: Sequence[Delivery]) -> list[str]:
        """Return the ids of deliveries, in their order."""
        return [delivery.message.id for delivery in deliveries]

    def successor(self, delivery: Delivery, to: str, delay: float = 0.0, **changes: object) -> Move:
        """Make a Move as core makes it: one hop more, and what else is changed."""
        return Move(delivery.receipt, Outgoing(to, delivery.message.moved("its queue", **changes), delay))


@pytest.fixture(params=sorted(PROVIDERS))
async def seam(request: pytest.FixtureRequest) -> AsyncIterator[Seam]:
    """An open backend of each provider."""
    seam = Seam(PROVIDERS[request.param]())
    await seam.open(seam.backend)
    yield seam
    await seam.close()
    assert seam.lost == [], "nobody broke the connection"
