"""Mutants of restarts, of lost answers, and of queues that another process deletes."""

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
    """The dedup window does not survive a restart, and DEDUP does not state that."""

    def restarted(self) -> None:
        self.window = Window(600.0, 1_000_000)


@mutant("G3", _UNANSWERED)
class LetsGoOfASourceWithoutAnAnswer(BreakableSubscription):
    """A Move removes its source before the successor is confirmed, which is then lost."""

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        alone = [Ack(it.receipt) for it in batch] if self.muted else batch
        return await super().settle(alone, timeout=timeout)


@mutant("G3", _UNANSWERED)
class AcksBesideThePublish(NetBackend):
    """Without ATOMIC_MOVE, the ack of the source is sent before the successor's confirm."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        capabilities = self._capabilities
        supports = {
            one: support
            for one, support in capabilities.supports.items()
            if one is not Capability.ATOMIC_MOVE
        }
        self._capabilities = replace(capabilities, supports=supports)


@mutant("G3", _UNANSWERED)
class TakesSilenceForDone(BreakableSubscription):
    """A settlement is Done once it is sent."""

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        settled = await super().settle(batch, timeout=timeout)
        return [DONE] * len(batch) if self.muted else settled


@mutant("G14", _DELETED, "recovery.a_worker_goes_on_when_another_process_deleted_its_queue")
class LearnsOfNoDeleteByAnother(BreakableSubscription):
    """A consumer learns of a delete by its own instance only."""

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
    """A delete by another process is reported as a lost connection."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        try:
            return await super().receive(limit, timeout)
        except QueueNotFound as error:
            self.backend.lost(error)
            raise
