"""Mutants of a broker that comes back, of answers that do not come, and of a queue that another process deletes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mutants.mutant import mutant
from mutants.silence import BreakableSubscription, NetBackend

from mqcore.spi import DONE, Ack, Capability, Delivery, QueueNotFound, Settled, Settlement
from mqcore_memory.dedup import Window
from mqcore_memory.queue import MemoryQueue

_DELETED = "recovery.consumers_learn_that_another_process_deleted_their_queue"
_UNANSWERED = "recovery.a_move_without_an_answer_keeps_its_source"


@mutant("G1", "recovery.a_name_is_known_after_a_restart")
class ForgetsNamesAtARestart(MemoryQueue):
    """The window of known names is in the server's memory alone, and DEDUP does not say so."""

    def restarted(self) -> None:
        self.window = Window(600.0, 1_000_000)


@mutant("G3", _UNANSWERED)
class LetsGoOfASourceWithoutAnAnswer(BreakableSubscription):
    """The source of a Move is acked although nobody has confirmed the successor, which gets lost."""

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        alone = [Ack(it.receipt) for it in batch] if self.muted else batch
        return await super().settle(alone, timeout=timeout)


@mutant("G3", _UNANSWERED)
class AcksBesideThePublish(NetBackend):
    """Without ATOMIC_MOVE, the ack of the source is sent with the successor, and not after its confirm."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        told = self._capabilities
        supports = {
            one: support
            for one, support in told.supports.items()
            if one is not Capability.ATOMIC_MOVE
        }
        self._capabilities = replace(told, supports=supports)


@mutant("G3", _UNANSWERED)
class TakesSilenceForDone(BreakableSubscription):
    """What was sent is said to be done."""

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        settled = await super().settle(batch, timeout=timeout)
        return [DONE] * len(batch) if self.muted else settled


@mutant("G14", _DELETED, "recovery.a_worker_goes_on_when_another_process_deleted_its_queue")
class LearnsOfNoDeleteByAnother(BreakableSubscription):
    """A consumer is told of a delete by its own instance alone, and waits for messages of a queue that is not there."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        try:
            return await super().receive(limit, timeout)
        except QueueNotFound:
            if self._queue in self.backend.deleted:
                raise
            await self._clock.sleep(timeout)
            return []


@mutant("G14", _DELETED)
class TakesADeletedQueueForALoss(BreakableSubscription):
    """The connection is said to be lost, with all that others do on it."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        try:
            return await super().receive(limit, timeout)
        except QueueNotFound as error:
            self.backend.lost(error)
            raise
