"""Mutants of consumers that do not stop, and of settlements that are interrupted or late."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from mutants.mutant import mutant
from mutants.silence import BreakableSubscription

from mqcore.spi import DONE, Ack, Delivery, ErrorKind, Failed, Move, Release, Settled, Settlement
from mqcore_memory.backend import MemorySubscription
from mqcore_memory.queue import Copy, MemoryQueue

# Stopping at the broker


@mutant("G9", "ending.what_an_ended_consumer_has_not_begun_keeps_its_order")
class GivesBackTheNewestFirst(MemoryQueue):
    """Messages that a consumer gives back go before all others, in reverse order."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        if copy.place:
            copy.place = -next(self._numbers)
        super().release(copy, lost=lost)


class Pushed(MemorySubscription):
    """Correct: after the first receive, messages are sent unasked until the consumer is paused."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.arrived: list[Delivery] = []
        self.paused = False
        self._came = asyncio.Event()
        self._pushing: asyncio.Task[None] | None = None

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        if self._pushing is None:
            self._pushing = asyncio.create_task(self._push())
        try:
            async with self._clock.timeout(timeout):
                while not self.arrived and self._open:
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            return []
        got, self.arrived = self.arrived[:limit], self.arrived[limit:]
        return got

    async def _push(self) -> None:
        while self._open and not self.paused:
            self.arrived += await super().receive(100, 600.0)
            self._came.set()

    async def pause(self) -> None:
        """Send no more, and give back what was not handed out."""
        self.paused = True
        self._end_push()
        unseen, self.arrived = self.arrived, []
        self._store.settle(
            self._queue, [Release(it.receipt) for it in unseen], self._clock.monotonic()
        )

    def _end_push(self) -> None:
        if self._pushing is not None:
            self._pushing.cancel()

    async def close(self) -> None:
        self._end_push()
        await super().close()
        self._came.set()


_TAKES = ("ending.a_stopped_consumer_takes_nothing", "ending.a_draining_worker_takes_nothing")


@mutant("G13", *_TAKES)
class IsNeverPaused(Pushed):
    """A stopped consumer is sent messages until it is closed."""

    pause = None  # type: ignore[assignment]  # it has none


@mutant("G13", "ending.what_a_stopped_consumer_has_not_handed_out")
class KeepsWhatNobodySaw(Pushed):
    """A paused consumer gets nothing more, and keeps what it was sent until it is closed."""

    async def pause(self) -> None:
        self.paused = True
        self._end_push()


@mutant("G4", "ending.what_a_stopped_consumer_has_not_handed_out")
class PausesAsIfItHadDied(Pushed):
    """What a paused consumer gives back counts as taken over."""

    async def pause(self) -> None:
        leases = self._store._queues[self._queue].leases
        unseen = [leases[it.receipt] for it in self.arrived]
        await super().pause()
        for copy in unseen:
            copy.takeovers += 1


@mutant(
    "G4",
    "ending.a_stopped_consumer_takes_nothing",
    "ending.what_a_stopped_consumer_has_not_handed_out",
)
class PausesByClosing(Pushed):
    """A pause is a close: held messages go back too, and can no longer be settled."""

    async def pause(self) -> None:
        await super().pause()
        await super().close()


# Ending beside a settlement


class TwoSteps(MemorySubscription):
    """A settlement takes some turns of the loop, and may be interrupted between them."""

    async def between(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    def copy(self, receipt: bytes) -> Copy | None:
        """Return the message with this receipt; None when it is not held."""
        queue = self._store._queues.get(self._queue)
        return None if queue is None else queue.leases.get(receipt)


@mutant("G3", "ending.a_close_beside_a_settlement_loses_nothing[move]")
class LetsGoFirst(TwoSteps):
    """A Move removes its source, and stores the successor some turns later."""

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        now = self._clock.monotonic()
        moves = {item.receipt for item in batch if isinstance(item, Move)}
        done = self._store.settle(
            self._queue, [Ack(it.receipt) if it.receipt in moves else it for it in batch], now
        )
        await self.between()
        successors = [
            it.to
            for it, how in zip(batch, done, strict=True)
            if isinstance(it, Move) and how == DONE
        ]
        self._store.publish(successors, now, self._clock.now())
        return done


@mutant("G3", "ending.a_close_beside_a_settlement_loses_nothing[move]")
class ClosesBetweenTwoSteps(TwoSteps):
    """ATOMIC_MOVE is declared, and a Move stores its successor before it removes its source."""

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        now = self._clock.monotonic()
        held = [it.to for it in batch if isinstance(it, Move) and self.copy(it.receipt) is not None]
        self._store.publish(held, now, self._clock.now())
        await self.between()
        acks = [Ack(it.receipt) if isinstance(it, Move) else it for it in batch]
        return self._store.settle(self._queue, acks, self._clock.monotonic())


@mutant("G2", "ending.a_close_beside_a_settlement_loses_nothing[release]")
class ForgetsWhatItReleases(TwoSteps):
    """A release takes the message out, and puts it back some turns later."""

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        if not any(isinstance(it, Release) for it in batch):
            return await super().settle(batch, timeout=timeout)
        now = self._clock.monotonic()
        copies = [copy for it in batch if (copy := self.copy(it.receipt)) is not None]
        done = self._store.settle(self._queue, [Ack(it.receipt) for it in batch], now)
        await self.between()
        queue = self._store._queues[self._queue]
        for copy in copies:
            queue.put(copy.message, now)
        return done


# Late, and never


@mutant("G2", "ending.an_acknowledgement_into_silence_is_not_taken_for_done")
class BelievesWhatItHasSent(BreakableSubscription):
    """`Done` means that an ack was sent, and nothing can prove that it arrived."""

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        if self.backend.net.silent:
            return [DONE] * len(batch)
        return await super().settle(batch, timeout=timeout)


@mutant("G2", "ending.an_acknowledgement_into_silence_is_not_taken_for_done")
class ProvesWithoutAsking(BelievesWhatItHasSent):
    """`prove` answers True without asking the broker."""

    async def prove(self, *, timeout: float) -> bool:
        return True


@mutant("G3", "ending.late_answers_at_a_drain_double_nothing[reject]")
class ReleasesWhatIsLate(BreakableSubscription):
    """A Move whose confirm is late has stored its successor, and gives its source back."""

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        moves = [it for it in batch if isinstance(it, Move)]
        if not (self.muted and moves):
            return await super().settle(batch, timeout=timeout)
        now = self._clock.monotonic()
        self._store.publish([it.to for it in moves], now, self._clock.now())
        while self.muted:
            await self._clock.sleep(0.05)
        back = [Release(it.receipt) if isinstance(it, Move) else it for it in batch]
        return self._store.settle(self._queue, back, now)


@mutant("G3", "ending.a_settlement_whose_answer_is_late_is_answered_by_its_timeout")
class WaitsForALateAnswer(BreakableSubscription):
    """A settlement waits for its answer without a limit."""

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        return await super().settle(batch, timeout=timeout + 10.0 * self.muted)


@mutant("G3", "ending.a_settlement_whose_answer_is_late_is_answered_by_its_timeout[move]")
class CallsALateMoveFailed(BreakableSubscription):
    """A Move without an answer in time is stored again, as if it had certainly failed."""

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        moves = [it.to for it in batch if isinstance(it, Move)]
        if not (self.muted and moves):
            return await super().settle(batch, timeout=timeout)
        self._store.publish(moves, self._clock.monotonic(), self._clock.now())
        await self._clock.sleep(timeout)
        return [Failed(ErrorKind.TRANSIENT, "no answer")] * len(batch)
