"""Stores whose rates, slots, or calls that follow an end are wrong in one point."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mutants.task_stores import mutant

from mqcore.tasks.model.nodes import child_id
from mqcore.tasks.model.states import State
from mqcore.tasks.transitions.limits import Limits, Slots
from mqcore.tasks.transitions.walk import Walk

if TYPE_CHECKING:
    from mqcore.tasks.model.limits import RateLimit, SlotLimit
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.transitions.rows import Rows


class _WithLimits(Walk):
    kind: type[Limits]

    def __init__(self, rows: Rows, slice_size: int) -> None:
        super().__init__(rows, slice_size)
        self.limits = self.kind(rows)


def limits_mutant(*parts: str, broken: type[Limits]) -> None:
    """Register limits that are wrong."""
    mutant(*parts)(type(broken.__name__, (_WithLimits,), {"kind": broken}))


class TurnIsTakenTwice(Limits):
    """A task that comes back at its turn gets another one."""

    def turn(self, node: Node, rate: RateLimit) -> float | None:
        node.turn = 0.0 if node.turn <= self.rows.now else node.turn
        return super().turn(node, rate)


class TurnsThatAreOverStartAtOnce(Limits):
    """After an outage of the workers everything starts that had a turn meanwhile."""

    def turn(self, node: Node, rate: RateLimit) -> float | None:
        if 0 < node.turn <= self.rows.now:
            node.turn = 0.0
            return None
        return super().turn(node, rate)


class UnusedTurnsHoldOthersUp(Limits):
    """The turns of cancelled tasks are waited for."""

    def _bucket(self, key: str) -> tuple[float, float]:
        next_turn, used = super()._bucket(key)
        return next_turn, max(used, self.rows.now - 1)


class EarlyMessageTakesATurn(Limits):
    """A message that comes before its turn gets a later one."""

    def turn(self, node: Node, rate: RateLimit) -> float | None:
        node.turn = 0.0 if node.turn > self.rows.now else node.turn
        return super().turn(node, rate)


class AnyoneTakesAFreedSlot(Limits):
    """The first in line is woken, and has to find a free slot like everybody else."""

    def leave(self, node: Node, *, for_good: bool = True) -> None:
        key = node.slot
        super().leave(node, for_good=for_good)
        if key and not node.slot:
            slots = self._slots(key)
            slots.held = [each for each in slots.held if each[1]]
            self._put_slots(key, slots)


class LineIsForgotten(Limits):
    """Nobody in line is woken when a slot is free."""

    def _fill(self, slots: Slots, key: str, present: Node | None = None) -> None:
        pass


class CancelledTaskIsHandedASlot(Limits):
    """A task that has ended while it waited is handed a slot all the same."""

    def _fill(self, slots: Slots, key: str, present: Node | None = None) -> None:
        first = self.rows.first_waiter(key)
        if first is not None and len(slots.held) < slots.count:
            slots.put(first[0], "", keeps=False)
        super()._fill(slots, key, present)

    def leave(self, node: Node, *, for_good: bool = True) -> None:
        if not node.slot or self._slots(node.slot).has(node.id):
            super().leave(node, for_good=for_good)


class DeadWorkerKeepsItsSlot(Limits):
    """The slot of a killed worker is never free again."""

    def enter(self, node: Node, limit: SlotLimit, worker: str) -> bool:
        return super().enter(node, replace(limit, takes_over=False), worker)


class SlotOfALivingWorkerIsTaken(Limits):
    """A store that does not see a worker's heartbeats gives its slots away."""

    def enter(self, node: Node, limit: SlotLimit, worker: str) -> bool:
        return super().enter(node, replace(limit, takes_over=True), worker)


class SlotIsNotKept(Limits):
    """A task that keeps its slot loses it between two attempts."""

    def leave(self, node: Node, *, for_good: bool = True) -> None:
        super().leave(node)


class KeyIsNotHandedOver(Limits):
    """The end of a task frees its unique key, and wakes none of those in line for it."""

    def hand_over(self, node: Node) -> None:
        self.rows.unclaim(node.unique, node.id)


class TaskOfADeadWorkerIsInNoLine(Limits):
    """A task that has lost its slot with its worker is never woken."""

    def enter(self, node: Node, limit: SlotLimit, worker: str) -> bool:
        may_start = super().enter(node, limit, worker)
        if not may_start and node.token:
            self.rows.remove_waiter(limit.key, node.id)
        return may_start


class SlotIsNotLeft(Walk):
    """The end of a task leaves its slot taken."""

    def finish(
        self, node: Node, state: State, reason: str = "", result: bytes | None = None
    ) -> None:
        node.slot = ""
        super().finish(node, state, reason, result)


@mutant("cases")
class RedriveSendsTheCallsAgain(Walk):
    """A call that has ended is sent again when its task ends again."""

    def follow(self, node: Node) -> None:
        for place in (-1, -2):
            call = self.rows.get(child_id(node.id, place))
            if call is not None and call.has_ended:
                call.state = State.WAITING
        super().follow(node)


@mutant("cases")
class CancellationReachesTheCalls(Walk):
    """What follows the end of a cancelled workflow is cancelled too."""

    def is_cancelled(self, node: Node) -> bool:
        parent = self.rows.get(node.parent) if node.parent else None
        return super().is_cancelled(node) or (parent is not None and super().is_cancelled(parent))


@mutant("cases", "equality")
class CallCountsAsAMember(Walk):
    """The end of a call that follows is counted by its node."""

    def finish(
        self, node: Node, state: State, reason: str = "", result: bytes | None = None
    ) -> None:
        super().finish(node, state, reason, result)
        if node.index < 0:
            self._steps.append((self.count, node))


@mutant("cases", "equality")
class SuccessIsAnError(Walk):
    """The call on an error is sent after a success."""

    def follow(self, node: Node) -> None:
        state, node.state = node.state, State.FAILED
        super().follow(node)
        node.state = state


for broken_limits in (
    *(TurnIsTakenTwice, TurnsThatAreOverStartAtOnce, UnusedTurnsHoldOthersUp),
    *(EarlyMessageTakesATurn, AnyoneTakesAFreedSlot, LineIsForgotten, CancelledTaskIsHandedASlot),
    *(DeadWorkerKeepsItsSlot, SlotOfALivingWorkerIsTaken, SlotIsNotKept),
    *(KeyIsNotHandedOver, TaskOfADeadWorkerIsInNoLine),
):
    limits_mutant("cases", broken=broken_limits)
mutant("cases", "equality")(SlotIsNotLeft)
