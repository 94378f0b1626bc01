"""Mutants of messages not handed out, of lost wake-ups, and of silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from mutants.mutant import mutant
from mutants.silence import BreakableSubscription, NetBackend

from mqcore.spi import Capabilities, Delivery, Outcome, Outgoing, Release, Settled, Settlement
from mqcore_memory.backend import MemorySubscription
from mqcore_memory.queue import Copy, MemoryQueue
from mqcore_memory.store import MemoryStore
from mqcore_memory.waiting import Holder

# What is on its way


class Fetching(MemorySubscription):
    """Correct: a claim takes a while to arrive, and is handed out by this `receive` or the next."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.arrived: list[Delivery] = []

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        if not self.arrived:
            self.arrived = list(await super().receive(limit, timeout))
            for _ in range(4 * bool(self.arrived)):
                await asyncio.sleep(0)
        got, self.arrived = self.arrived[:limit], self.arrived[limit:]
        return got

    async def close(self) -> None:
        unseen = self.unseen()
        marks = [(copy, copy.redelivered, copy.takeovers) for copy in unseen]
        await super().close()
        for copy, redelivered, takeovers in marks:
            copy.redelivered, copy.takeovers = redelivered, takeovers

    def unseen(self) -> list[Copy]:
        """Return what has arrived and was not handed out."""
        leases = (
            self._store._queues[self._queue].leases if self._queue in self._store._queues else {}
        )
        return [leases[delivery.receipt] for delivery in self.arrived if delivery.receipt in leases]


@mutant("G4", "handover.what_nobody_has_seen_goes_back_as_it_was")
class CountsWhatNobodySaw(Fetching):
    """Fetched messages come back as if their handler might have started."""

    def unseen(self) -> list[Copy]:
        return []


@mutant("G4", "handover.what_nobody_has_seen_goes_back_as_it_was")
class TrustsWhatNobodySaw(Fetching):
    """Fetched messages come back as new, also those that were taken over."""

    async def close(self) -> None:
        for copy in self.unseen():
            copy.redelivered, copy.takeovers = False, 0
        await super().close()


@mutant("G2", "handover.what_a_cancelled_receive_claimed_comes_with_the_next_ones")
class HandsOutOnlyToWhoWaits(Fetching):
    """What a cancelled `receive` has fetched is skipped by `receive(limit, 0)`."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        return await (super() if timeout else super(Fetching, self)).receive(limit, timeout)


@mutant("G2", "handover.what_is_on_its_way_when_the_time_ends_comes_with_the_next_receive")
class LosesWhatComesTooLate(Fetching):
    """A claim that arrives after its receive has ended is lost."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        waits = not self.arrived and not self._store._queues[self._queue].ready
        got = await super().receive(limit, timeout)
        return [] if waits and 0 < timeout < 0.01 else got


@mutant("G2", "handover.what_a_cancelled_receive_claimed_comes_with_the_next_ones")
class HandsOutAndGivesBack(Fetching):
    """What a cancelled `receive` has fetched is given back, and handed out by the next one too."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        try:
            return await super().receive(limit, timeout)
        except asyncio.CancelledError:
            marks = [(copy, copy.redelivered) for copy in self.unseen()]
            self._store.settle(
                self._queue, [Release(it.receipt) for it in self.arrived], self._clock.monotonic()
            )
            for copy, redelivered in marks:
                copy.redelivered = redelivered
            raise


# Who is woken


@mutant("G2", "handover.who_goes_after_it_was_woken_wakes_the_next")
class TakesAWakeUpAlong(MemoryStore):
    """A woken consumer that closes before it has claimed wakes no other."""

    def unsubscribe(self, name: str, holder: Holder, now: float) -> None:
        queue = self._queues.get(name)
        if queue is None or holder.held:
            super().unsubscribe(name, holder, now)
        else:
            queue.consumers.discard(holder)
            queue.waiters.remove(holder)
            queue.waiters.nudge(0, queue.next_event())


@mutant("G7", "handover.who_goes_before_a_delay_ends_leaves_that_to_the_next[closed]")
class TakesAnAlarmAlong(MemoryStore):
    """The consumer that waits for the end of a delay closes, and no other takes that over."""

    def unsubscribe(self, name: str, holder: Holder, now: float) -> None:
        queue = self._queues.get(name)
        if queue is None or holder.held:
            super().unsubscribe(name, holder, now)
        else:
            queue.consumers.discard(holder)
            queue.waiters.remove(holder)
            queue.waiters.nudge(queue.ready, inf)


@mutant("G7", "handover.who_goes_before_a_delay_ends_leaves_that_to_the_next[cancelled]")
class ACancelTakesAnAlarmAlong(MemoryStore):
    """The consumer that waits for the end of a delay is cancelled, and no other takes that over."""

    def stop_waiting(self, name: str, holder: Holder) -> None:
        if (queue := self._queues.get(name)) is not None:
            queue.waiters.remove(holder)
            queue.waiters.nudge(queue.ready, inf)


@mutant("G7", "handover.what_was_taken_before_its_time_and_released_is_due_as_before")
class AReleaseWakesNobody(MemoryStore):
    """A release into a delay wakes no consumer to wait for its end."""

    def settle(self, name: str, batch: Sequence[Settlement], now: float) -> list[Settled]:
        queue = self._queues.get(name)
        if queue is None or not all(isinstance(item, Release) for item in batch):
            return super().settle(name, batch, now)
        waiters, queue.waiters = queue.waiters, type(queue.waiters)()
        try:
            return super().settle(name, batch, now)
        finally:
            queue.waiters = waiters
            waiters.nudge(queue.ready, inf)


@mutant("G7", "handover.what_was_taken_before_its_time_and_released_is_due_as_before")
class AReleaseBeginsTheDelayAnew(MemoryQueue):
    """A message that is released into its delay waits for all of it again."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        copy.due += copy.due - copy.stored if copy.due else 0.0
        super().release(copy, lost=lost)


# Silence


@mutant("G14", "recovery.a_full_consumer_learns_of_a_loss")
class AFullOneLearnsOfNoLoss(BreakableSubscription):
    """A full consumer learns of a loss only when its `receive` times out."""

    async def fail(self, error: Exception) -> None:
        if self._holder.held < self._holder.prefetch:
            await super().fail(error)


@mutant("G14", "recovery.a_full_consumer_learns_of_a_loss")
class AFullOneTakesALossForAnEnd(BreakableSubscription):
    """After a loss the `receive` of a full consumer returns nothing, as if it had been closed."""

    async def fail(self, error: Exception) -> None:
        full = self._holder.held >= self._holder.prefetch
        await super().fail(error)
        self.error = None if full else error


@mutant("G14", "recovery.a_silent_peer_is_noticed_on_an_idle_connection")
class NoticesNoSilence(NetBackend):
    """A silent peer is never noticed."""

    async def fail(self, error: Exception) -> None:
        pass


@mutant("G14", "recovery.a_silent_peer_is_noticed_on_an_idle_connection")
class TellsALossTwice(NetBackend):
    """`lost` is called by each part that notices the loss."""

    async def fail(self, error: Exception) -> None:
        await super().fail(error)
        self.lost(error)


@mutant("G1", "core.a_silent_broker_holds_nobody_up")
class WaitsForASilentBroker(NetBackend):
    """A publish waits for its answer without a limit."""

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        return await super().publish(batch, timeout=inf)


@mutant("G14", "core.a_silent_broker_holds_nobody_up")
class ConnectsForEver(NetBackend):
    """A connect without an answer never ends."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        while self.net.silent:
            await self._clock.sleep(1.0)
        return await super().open(lost)
