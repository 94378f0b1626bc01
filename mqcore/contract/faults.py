"""Faults that cases provoke: workers that a message kills, and renewals that get lost.

Everything is done around the author's backend, through the harness, and works with any backend.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mqcore.contract.kit import ContractError
from mqcore.errors import ConnectionLost
from mqcore.spi import Release, Subscription

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from mqcore.contract.kit import Kit
    from mqcore.queue import Queue
    from mqcore.spi import Backend, Capabilities, Delivery, Settled, Settlement, SupportsRenew
    from mqcore.worker import Worker

__all__ = ["Fleet", "Renewals", "Victim", "taken_over"]

T = TypeVar("T")
_SUSPECT_WAITS = 15.0
"""Seconds that a suspect waits after its first run alone.

There a lost connection looks like a death.
"""
_A_MOMENT = 0.02
"""Seconds that an ordinary message takes, so that it is running when the killer starts."""


async def taken_over(kit: Kit, queue: str, times: int, lease: float = 1.0) -> None:
    """Let `times` consumers die with the queue's one message.

    A release after each death puts the takeover on record.
    """
    for _ in range(times):
        victim = await kit.open()
        await kit.take(await kit.subscribe(queue, lease=lease, backend=victim), 1)
        await kit.kill(victim)
        consumer = await kit.subscribe(queue)
        (delivery,) = await kit.take(consumer, 1)
        await kit.settle(consumer, Release(delivery.receipt))
        await kit.within(consumer.close())


class Renewals:
    """Makes instances whose renewals are lost until `through` is set.

    The owner is answered that it still holds its claims, and loses them.
    """

    def __init__(self, kit: Kit) -> None:
        """Start with all renewals lost."""
        self.kit = kit
        self.through = False

    def make(self) -> Backend:
        """Return an instance, not yet open."""
        backend = self.kit.harness.make_backend()
        real = cast("SupportsRenew", backend).renew

        async def renew(queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
            return await real(queue, receipts, lease) if self.through else [True] * len(receipts)

        cast("Any", backend).renew = renew
        return backend


class Victim:
    """The instances of one Broker, which die together and cannot be opened again."""

    def __init__(self, kit: Kit) -> None:
        """Start alive."""
        self.kit = kit
        self.dead = False
        self._made: list[Backend] = []

    def make(self) -> Backend:
        """Return an instance, not yet open.

        The first is the Broker's own; others renew its leases from a thread.
        """
        backend = self.kit.harness.make_backend()
        real_open, real_subscribe = backend.open, backend.subscribe

        async def open_(lost: Callable[[Exception], None]) -> Capabilities:
            return await self.alive(real_open(lost))

        async def subscribe(queue: str, *, prefetch: int, lease: float) -> Subscription:
            return _Mortal(
                self, await self.alive(real_subscribe(queue, prefetch=prefetch, lease=lease))
            )

        patched = cast("Any", backend)
        patched.open, patched.subscribe = open_, subscribe
        self._made.append(backend)

        return backend

    async def alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work unless the victim is dead, and fail if it died meanwhile."""
        if self.dead:
            work.close()
        else:
            done = await work
            if not self.dead:
                return done
        raise ConnectionLost("its process is dead")

    async def kill(self, worker: Worker) -> None:
        """End the connection first, so that the worker can do nothing more, then clean up."""
        self.dead = True
        await self.kit.kill(self._made[0])
        await self.kit.within(worker.drain(0))
        await self.kit.within(worker.broker.close())


class _Mortal(Subscription):
    """A subscription that fails every call once its victim is dead."""

    def __init__(self, victim: Victim, inner: Subscription) -> None:
        self._victim, self._inner = victim, inner

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """As the driver's."""
        return await self._victim.alive(self._inner.receive(limit, timeout))

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """As the driver's."""
        return await self._victim.alive(self._inner.settle(batch, timeout=timeout))

    async def close(self) -> None:
        """As the driver's."""
        await self._victim.alive(self._inner.close())


class Fleet:
    """Workers one after another; the message "killer" ends the worker that runs it."""

    def __init__(self, kit: Kit, queue: Queue[str], **options: Any) -> None:
        """`options` are those of `App.consumer`."""
        self.kit, self.queue, self.options = kit, queue, options
        self.starts: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.beside: list[list[str]] = []
        """What else was running at each start of the killer."""
        self._running: set[str] = set()
        self._crash = asyncio.Event()

    async def __call__(self, job: str) -> None:
        """Handle one message."""
        self.starts[job] += 1
        if job == "killer":
            self.beside.append(sorted(self._running))
            self._crash.set()
            await asyncio.Event().wait()

        self._running.add(job)
        try:
            await self.kit.clock.sleep(_A_MOMENT)
        finally:
            self._running.discard(job)

        self.done[job] += 1

    async def lose_a_worker(self) -> None:
        """Run a worker until the killer has started in it, and let the worker die."""
        self._crash.clear()
        self._running.clear()
        victim = Victim(self.kit)
        worker = await self.worker(victim)

        try:
            await self.kit.within(self._crash.wait(), self.kit.harness.patience + _SUSPECT_WAITS)
        except ContractError:
            actual = (
                f"started {self.starts['killer']} times, not again; done were {len(self.done)} "
                "others"
            )
            raise ContractError(
                "the killer handed out again after each death", actual, "Backend.close"
            ) from None

        await victim.kill(worker)

    async def worker(self, victim: Victim | None = None) -> Worker:
        """Start a worker; with `victim`, on instances that can be killed."""
        broker = await self.kit.broker(
            **({"make_backend": victim.make} if victim is not None else {})
        )
        return await self.kit.worker(broker, self.queue, self, **self.options)
