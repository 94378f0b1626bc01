"""Processes that keep the protocol of tasks wrong in one point. The explorer must catch each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqcore.contract.store.explorer.actors import Actor, Actors, Steps
from mqcore.contract.store.explorer.explorer import Schedule
from mqcore.contract.store.explorer.plans import TICK, tick_id
from mqcore.contract.store.explorer.world import Copy
from mqcore.contract.store.workflows import TaskPlan, rows_of
from mqcore.tasks.model.changes import Add, Change, Fire, Sent
from mqcore.tasks.model.outcomes import Added, Fired, Terminal
from mqcore.tasks.model.states import State
from mqcore.tasks.store.seam import Applied

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from mqcore.tasks.model.changes import More
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.store import seam

__all__ = ["schedules_with_mutants"]


class PublishesBeforeTheCommit(Actors):
    """A sender publishes its message, then writes the row."""

    def sender(self, rows: Sequence[Node], batches: Sequence[More] = ()) -> Actor:
        actor = super().sender(rows, batches)
        steps = actor.steps

        def early() -> Steps:
            if len(rows) == 1:
                self.world.publish(Copy(f"{rows[0].id}:0", rows[0].id, 0, rows[0].name))
                yield None
            yield from steps

        actor.steps = early()
        return actor


class ForgetsTheOutbox(Actors):
    """What a process made and did not publish is published by no other."""

    def relay(self) -> Actor:
        return Actor("relay", self.apply(Sent(list(self.world.store.tables.entries))))  # type: ignore[attr-defined]  # the memory store's


class RemovesTheEntryFirst(Actors):
    """The outbox entry is removed, then its message is published."""

    def _publish(self, pending: seam.Pending) -> Generator[Any, Any, Sequence[str]]:
        if pending.entry.start is None:
            yield from self.apply(Sent([pending.entry.key]))
        return (yield from super()._publish(pending))


class AcknowledgesAFailedRedelivery(Actors):
    """A failed task that is delivered again is acknowledged, not dead-lettered."""

    def apply(self, *changes: Change) -> Generator[Any, Any, Applied]:
        applied = yield from super().apply(*changes)
        if isinstance(applied.outcomes[0], Terminal):
            return Applied([Terminal(State.SUCCEEDED)], applied.keys)
        return applied


class AcknowledgesAFurtherCopy(Actors):
    """A copy that finds its task running is acknowledged, not postponed."""

    def _postpone(self, actor: Actor, copy: Copy) -> None:
        actor.held = None


class AcknowledgesBeforeTheEnd(Actors):
    """The message is acknowledged when the attempt has begun."""

    def _run(self, actor: Actor, copy: Copy, node: Node) -> Steps:
        actor.held = None
        yield from super()._run(actor, copy, node)


class ForgetsTheHook(Actors):
    """A message that expires is dead-lettered, and its task does not hear of it."""

    def _gone(self, actor: Actor, copy: Copy, state: State) -> Steps:
        yield from self._dead_letter(actor, copy)


class ForgetsTheSuccessor(Actors):
    """The row says that a retry follows, and its message is not stored when the process dies."""

    def _later(self, actor: Actor, copy: Copy, again: Copy, state: State) -> Steps:
        actor.held = None
        yield None
        yield from super()._later(actor, copy, again, state)


class MovesTheScheduleOnFirst(Actors):
    """The schedule moves on in one transaction, and its task is added in the next one."""

    def _tick(self, schedule: seam.Schedule, planned: float) -> Steps:
        fire = Fire(schedule.name, schedule.version, planned + TICK)
        applied = yield from self.apply(fire)
        if applied.outcomes[0] == Fired():
            rows = rows_of(TaskPlan(), tick_id(planned))
            applied = yield from self.apply(Add(rows))
            self.world.ticks[rows[0].id] += applied.outcomes[0] == Added()
            yield from self.publish(applied.keys)


_MUTANTS = (
    MovesTheScheduleOnFirst,
    PublishesBeforeTheCommit,
    ForgetsTheOutbox,
    RemovesTheEntryFirst,
    AcknowledgesAFailedRedelivery,
    AcknowledgesAFurtherCopy,
    AcknowledgesBeforeTheEnd,
    ForgetsTheHook,
    ForgetsTheSuccessor,
)


def schedules_with_mutants() -> list[type[Schedule]]:
    """Return a kind of schedule for each mutant."""
    return [type(each.__name__, (Schedule,), {"make_actors": each}) for each in _MUTANTS]
