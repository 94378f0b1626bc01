"""A `memory://` that misbehaves on command, to see what core makes of it.

Register it with `plugin_for(faults)` under the scheme `faulty`. `faults.next("publish", lost(),
dropped_answer())` plans what the coming calls at one point meet, in order; without a plan
everything works. The points are the methods of the seam.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqcore.spi import (
    STALE,
    Ack,
    Backend,
    Capabilities,
    Capability,
    Delivery,
    ErrorKind,
    Failed,
    Move,
    Outcome,
    Outgoing,
    QueueSpec,
    Settled,
    Settlement,
    Subscription,
    Unknown,
    hookimpl,
)
from mqcore_memory import MemoryBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from mqcore.clock import Clock

    Do = Callable[[Sequence[Any]], Awaitable[Any]]
    Fault = Callable[["FaultyBackend", Do, Sequence[Any]], Awaitable[Any]]


class Broken(Exception):
    """What this driver raises when its connection has gone."""


class WrongPassword(Exception):
    """What this driver raises for bad credentials."""


_KINDS = {Broken: ErrorKind.TRANSIENT, WrongPassword: ErrorKind.DENIED}


class Faults:
    """The planned faults, what has happened, and a way to break connections."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.without: set[Capability] = set()
        self.keeps_claims = False
        """Whether claims outlive the connection, as on a server that keeps leases."""
        self.backends: list[FaultyBackend] = []
        self._plans: dict[str, deque[Fault]] = defaultdict(deque)

    def next(self, point: str, *faults: Fault) -> None:
        self._plans[point].extend(faults)

    def forget(self, point: str) -> None:
        """Drop all planned faults."""
        self._plans[point].clear()

    def take(self, point: str) -> Fault | None:
        self.calls[point] += 1
        return self._plans[point].popleft() if self._plans[point] else None

    def lose(self) -> None:
        """Break the connection of every open backend, as a reset would."""
        for backend in self.backends:
            backend.lose()


def raised(error: Exception) -> Fault:
    """The call does nothing."""

    async def fault(_backend: FaultyBackend, _do: Do, _batch: Sequence[Any]) -> Any:
        raise error

    return fault


def raised_after(seconds: float, error: Exception) -> Fault:
    """The call does nothing, and reports it after a while of the clock."""

    async def fault(backend: FaultyBackend, _do: Do, _batch: Sequence[Any]) -> Any:
        await backend.clock.sleep(seconds)
        raise error

    return fault


def lost() -> Fault:
    """The connection breaks before the call takes effect."""

    async def fault(backend: FaultyBackend, _do: Do, _batch: Sequence[Any]) -> Any:
        backend.lose()
        raise Broken("connection reset by the test")

    return fault


def lost_answer() -> Fault:
    """The call takes effect, and the connection breaks before the answer."""

    async def fault(backend: FaultyBackend, do: Do, batch: Sequence[Any]) -> Any:
        await do(batch)
        backend.lose()
        return [Unknown("connection reset by the test")] * len(batch)

    return fault


def dropped_answer() -> Fault:
    """The call takes effect, and is never answered."""

    async def fault(_backend: FaultyBackend, do: Do, batch: Sequence[Any]) -> Any:
        await do(batch)
        return [Unknown("no answer")] * len(batch)

    return fault


def answered(outcome: Outcome | Settled) -> Fault:
    """The call does nothing, and each item is answered so."""

    async def fault(_backend: FaultyBackend, _do: Do, batch: Sequence[Any]) -> Any:
        return [outcome] * len(batch)

    return fault


def failed(kind: ErrorKind = ErrorKind.TRANSIENT) -> Fault:
    return answered(Failed(kind, "refused by the test"))


def first_failed(kind: ErrorKind) -> Fault:
    """The first item of a batch is refused and the others take effect."""

    async def fault(_backend: FaultyBackend, do: Do, batch: Sequence[Any]) -> Any:
        return [Failed(kind, "refused by the test"), *await do(batch[1:])]

    return fault


def slow(seconds: float) -> Fault:
    """The call takes effect after a while of the clock."""

    async def fault(backend: FaultyBackend, do: Do, batch: Sequence[Any]) -> Any:
        await backend.clock.sleep(seconds)
        return await do(batch)

    return fault


def late_answer(seconds: float) -> Fault:
    """The call takes effect at once, and is answered after a while of the clock."""

    async def fault(backend: FaultyBackend, do: Do, batch: Sequence[Any]) -> Any:
        answer = await do(batch)
        await backend.clock.sleep(seconds)
        return answer

    return fault


def stored_first(seconds: float) -> Fault:
    """A Move takes two steps: the successor is stored at once, the source removed after a while."""

    async def fault(backend: FaultyBackend, do: Do, batch: Sequence[Any]) -> Any:
        await MemoryBackend.publish(
            backend, [item.to for item in batch if isinstance(item, Move)], timeout=1
        )
        await backend.clock.sleep(seconds)
        return await do([Ack(item.receipt) if isinstance(item, Move) else item for item in batch])

    return fault


def undisturbed() -> Fault:
    """The call takes effect, and the next fault meets a later call."""

    async def fault(_backend: FaultyBackend, do: Do, batch: Sequence[Any]) -> Any:
        return await do(batch)

    return fault


def hung() -> Fault:
    """The call never returns."""

    async def fault(_backend: FaultyBackend, _do: Do, _batch: Sequence[Any]) -> Any:
        await asyncio.Event().wait()

    return fault


def unclear() -> Fault:
    """The connection stays, and the driver has no answer for a reason that it names."""

    async def fault(_backend: FaultyBackend, _do: Do, batch: Sequence[Any]) -> Any:
        error = Broken("the channel was closed")
        return [Unknown(str(error), error) for _ in batch]

    return fault


class FaultyBackend(MemoryBackend):
    scheme = "faulty"
    faults: Faults

    def __init__(self, url: str, options: Any) -> None:
        super().__init__(url, options)
        self.clock: Clock = options.clock
        self.up = False
        self.generation = 0
        self.receiving: set[asyncio.Future[Any]] = set()
        self._tell: Callable[[Exception], None] = lambda _: None
        self.faults.backends.append(self)

    def lose(self) -> None:
        if self.up:
            self.up = False
            for task in self.receiving:
                task.cancel()
            self._tell(Broken("connection reset by the test"))

    async def meet(self, point: str, do: Do, batch: Sequence[Any] = 1) -> Any:
        if (fault := self.faults.take(point)) is not None:
            return await fault(self, do, batch)
        if not self.up and point not in ("open", "close"):
            raise Broken("not connected")
        return await do(batch)

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        async def do(_: Sequence[Any]) -> Capabilities:
            self._tell, self.up = lost, True
            self.generation += 1
            found = await MemoryBackend.open(self, lost)
            return replace(
                found,
                backend="faulty",
                supports={
                    name: how
                    for name, how in found.supports.items()
                    if name not in self.faults.without
                },
            )

        capabilities: Capabilities = await self.meet("open", do)
        return capabilities

    async def close(self) -> None:
        self.up = False
        self.faults.calls["close"] += 1
        if not self.faults.keeps_claims:
            await super().close()

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        await self.meet("declare", lambda _: MemoryBackend.declare(self, queues))

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        answer: Sequence[Outcome] = await self.meet(
            "publish", lambda batch: MemoryBackend.publish(self, batch, timeout=timeout), batch
        )
        return answer

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        subscribe = MemoryBackend.subscribe(self, queue, prefetch=prefetch, lease=lease)
        try:
            return FaultySubscription(self, await self.meet("subscribe", lambda _: subscribe))
        finally:
            subscribe.close()

    def classify(self, error: Exception) -> ErrorKind:
        return _KINDS.get(type(error)) or super().classify(error)

    async def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
        kept: Sequence[bool] = await self.meet(
            "renew", lambda _: MemoryBackend.renew(self, queue, receipts, lease)
        )
        return kept

    async def sweep(self, queue: str, limit: int, lease: float) -> Sequence[Delivery]:
        found: Sequence[Delivery] = await self.meet(
            "sweep", lambda _: MemoryBackend.sweep(self, queue, limit, lease)
        )
        return found


class FaultySubscription(Subscription):
    """A subscription of an older generation raises, or answers stale without leases."""

    def __init__(self, backend: FaultyBackend, inner: Subscription) -> None:
        self._backend = backend
        self._inner = inner
        self._generation = backend.generation

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        found: Sequence[Delivery] = await self._backend.meet(
            "receive", lambda _: self._receive(limit, timeout)
        )
        return found

    async def _receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        if self._generation != self._backend.generation:
            raise Broken("this subscription ended with its connection")
        task = asyncio.ensure_future(self._inner.receive(limit, timeout))
        self._backend.receiving.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if me is None or me.cancelling() or not task.cancelled():
                raise
            raise Broken("connection reset by the test") from None
        finally:
            self._backend.receiving.discard(task)

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        if self._generation != self._backend.generation:
            return [STALE] * len(batch)
        settled: Sequence[Settled] = await self._backend.meet(
            "settle", lambda batch: self._inner.settle(batch, timeout=timeout), batch
        )
        return settled

    async def close(self) -> None:
        await self._inner.close()


def plugin_for(faults: Faults) -> object:
    """Return a plugin whose one backend meets these faults."""

    class Planned(FaultyBackend):
        pass

    Planned.faults = faults

    class Plugin:
        @hookimpl
        def mqcore_register_backends(self) -> list[type[Backend]]:
            return [Planned]

    return Plugin()


def running(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start something and let the test go on."""
    return asyncio.create_task(work)
