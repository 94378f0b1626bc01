"""Stores that are wrong in one point. The contract of task stores must catch each of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from mqcore.tasks.model.changes import Add, Begin, Fire, Gone, Recover, Spread
from mqcore.tasks.model.nodes import CancelFlag, Kind, Node, Policy
from mqcore.tasks.model.outcomes import (
    Busy,
    Done,
    Ended,
    Fired,
    Lost,
    Ok,
    Outcome,
    Refused,
    Stale,
    Terminal,
)
from mqcore.tasks.model.states import ENDED, LIVE, State
from mqcore.tasks.store.memory import MemoryTaskStore, MemoryTransaction
from mqcore.tasks.store.seam import Announcement, Applied, Pending
from mqcore.tasks.transitions.apply import Transitions
from mqcore.tasks.transitions.rows import OutboxEntry, message_key, slice_key
from mqcore.tasks.transitions.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.contract.store.harness import StepClock
    from mqcore.tasks.model.changes import Change

__all__ = ["StoreMutant", "store_mutants"]

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class StoreMutant:
    """A store, or a part of its transitions, that breaks a promise."""

    broken: type
    parts: tuple[str, ...]
    """The parts of the contract that must catch it."""

    @property
    def name(self) -> str:
        return self.broken.__name__

    async def make(self, clock: StepClock, slice_size: int) -> MemoryTaskStore:
        """Return the broken store, with empty tables."""
        if issubclass(self.broken, MemoryTaskStore):
            kind = self.broken
        else:
            kind = type(self.name, (_WithBrokenTransitions,), {"broken": self.broken})
        store = kind("memory://mutant", clock, slice_size=slice_size)
        await store.clear()
        return store


class _WithBrokenTransitions(MemoryTaskStore):
    broken: type

    def make(self, rows: MemoryTransaction, changes: Sequence[Change]) -> list[Outcome]:
        if issubclass(self.broken, Transitions):
            transitions = self.broken(rows, self.slice_size)
        elif issubclass(self.broken, Walk):
            transitions = Transitions(rows, self.slice_size)
            transitions.walk = self.broken(rows, self.slice_size)
        return [transitions.make(change) for change in changes]


_found: list[StoreMutant] = []


def mutant(*parts: str) -> Callable[[T], T]:
    """Register a mutant, which these parts of the contract must catch."""

    def register(broken: T) -> T:
        _found.append(StoreMutant(broken, parts))
        return broken

    return register


def store_mutants() -> list[StoreMutant]:
    """Return all of them."""
    return list(_found)


# Counting


@mutant("equality", "explorer")
class MemberCountedTwice(Walk):
    """A member that has ended again after a redrive is counted again."""

    def count(self, node: Node) -> None:
        node.is_counted = False
        super().count(node)


@mutant("equality", "explorer")
class FailureIsNotACompletion(Walk):
    """A member that fails is not counted, so its group never ends."""

    def _count_member(self, group: Node, member: Node) -> None:
        if member.state is not State.FAILED:
            super()._count_member(group, member)


@mutant("equality")
class FailureIsKeptAfterARedrive(Walk):
    """A member that succeeds after a redrive still counts as a failure of its open group."""

    def count_again(self, parent: Node, node: Node) -> None:
        """Do nothing."""


@mutant("equality", "explorer")
class BodyOfFailedGroup(Walk):
    """A group with a failed member succeeds."""

    def close_if_complete(self, group: Node) -> None:
        if group.policy is not Policy.CANCEL:
            group.bad = 0
        super().close_if_complete(group)


@mutant("equality")
class ClosesBeforeTheLastBatch(Walk):
    """An unsealed group ends when the members that were added so far have ended."""

    def close_if_complete(self, group: Node) -> None:
        if group.size:
            group.is_sealed = True
        super().close_if_complete(group)


# Fences


@mutant("equality", "explorer", "crash points")
class AttemptFence(Transitions):
    """A message of a lower attempt than the row's is refused as stale."""

    def begin(self, change: Begin) -> Any:
        node = self.rows.get(change.task)
        if node is not None and node.state in LIVE and change.attempt < node.attempt:
            return Stale()
        return super().begin(change)

    def back(self, change: Any) -> Any:
        outcome = super().back(change)
        node = self.rows.get(change.task)
        if outcome == Ok() and node is not None and change.state is State.RETRYING:
            node.attempt += 1
        return outcome


@mutant("equality", "explorer")
class NoTokenFence(Transitions):
    """An attempt that no longer holds the row may end it."""

    def _held(self, task: str, run: int, token: str) -> Node | None:
        node = self.rows.get(task)
        return node if node is not None and node.state is State.RUNNING else None


@mutant("equality", "explorer", "crash points")
class TerminalStateLeft(Transitions):
    """A task that has failed runs again when its message is delivered again."""

    def begin(self, change: Begin) -> Any:
        node = self.rows.get(change.task)
        if node is not None and node.state is State.FAILED and node.run == change.run:
            return self._start(node, change)
        return super().begin(change)


@mutant("equality", "explorer", "crash points")
class LostDeadLetter(Transitions):
    """A failed task that is delivered again is answered as if it had succeeded."""

    def begin(self, change: Begin) -> Any:
        outcome = super().begin(change)
        return Terminal(State.SUCCEEDED) if isinstance(outcome, Terminal) else outcome


@mutant("cases", "equality", "explorer")
class CopyTakesOverALivingRun(Transitions):
    """A further copy of a message starts its task beside the run of the first one."""

    def begin(self, change: Begin) -> Any:
        return super().begin(replace(change, is_redelivered=True))


@mutant("cases", "equality")
class RedeliveryIsACopy(Transitions):
    """A message that comes again waits until its worker counts as dead."""

    def begin(self, change: Begin) -> Any:
        return super().begin(replace(change, is_redelivered=False))


@mutant("equality", "explorer")
class HookKillsALivingRun(Transitions):
    """A duplicate that expires ends the task that is running."""

    def gone(self, change: Gone) -> Ended | Refused | Busy:
        node = self.rows.get(change.task)
        if node is None or node.state not in LIVE or node.run != change.run:
            return Refused()
        self.walk.finish(node, change.state, change.reason)
        return Ended()


@mutant("equality", "explorer")
class HookNeverEndsARunningTask(Transitions):
    """A task whose worker died while it ran is busy without an end."""

    def gone(self, change: Gone) -> Ended | Refused | Busy:
        node = self.rows.get(change.task)
        if node is not None and node.state is State.RUNNING and node.run == change.run:
            return Busy()
        return super().gone(change)


@mutant("equality", "explorer")
class RedriveOpensNothing(Transitions):
    """A redriven message is answered with the ending of the run before."""

    def begin(self, change: Begin) -> Any:
        node = self.rows.get(change.task)
        if node is not None and node.state in ENDED:
            return Terminal(node.state)
        return super().begin(change)


@mutant("equality")
class ResultOfAnEarlierRun(Walk):
    """A run that fails leaves the result of the run before in the row."""

    def finish(
        self, node: Node, state: State, reason: str = "", result: bytes | None = None
    ) -> None:
        super().finish(node, state, reason, result if result is not None else node.result)


# Cancellation


@mutant("equality", "explorer")
class CancelOfAWaitingStepWalksUpward(Walk):
    """A waiting step that is cancelled ends at once, and its chain with it."""

    def cancel(self, node: Node, reason: str, flag: CancelFlag = CancelFlag.ASKED) -> None:
        super().cancel(node, reason, flag)
        if node.state is State.WAITING:
            self.finish(node, State.CANCELLED)


@mutant("equality", "explorer")
class ChainIgnoresTheCancel(Walk):
    """A step that succeeds after its chain was cancelled starts the next one."""

    def is_cancelled(self, node: Node) -> bool:
        return node.kind is not Kind.CHAIN and super().is_cancelled(node)


@mutant("equality", "explorer")
class CancelIsForgotten(Walk):
    """A running task that is cancelled has no flag, so it starts again after a crash."""

    def cancel(self, node: Node, reason: str, flag: CancelFlag = CancelFlag.ASKED) -> None:
        super().cancel(node, reason, flag)
        if node.kind is Kind.TASK and node.state is State.RUNNING:
            node.cancel = CancelFlag.NO


@mutant("equality", "explorer")
class RedriveAfterACancel(Transitions):
    """A redriven member does not look at the workflow's cancellation."""

    def begin(self, change: Begin) -> Any:
        node = self.rows.get(change.task)
        if node is not None and node.has_ended and change.run > node.run:
            return self._start(node, change)
        return super().begin(change)


@mutant("equality", "explorer")
class ReplacedAfterACancel(Transitions):
    """A cancelled task is replaced all the same."""

    def replace(self, change: Any) -> Any:
        node = self._held(change.task, change.run, change.token)
        if node is not None:
            node.cancel = CancelFlag.NO
        return super().replace(change)


@mutant("equality")
class CancelStopsAtTheReplacement(Walk):
    """The cancellation of a replaced task does not reach what has replaced it."""

    def _cancel_below(self, node: Node) -> None:
        if node.kind is not Kind.REPLACED:
            super()._cancel_below(node)


@mutant("equality", "explorer")
class SkipsOnlyTheNextStep(Walk):
    """Of a chain that has failed, what is inside the skipped steps stays waiting."""

    def _skip_below(self, flow: Node) -> None:
        """Do nothing."""


# Slices


@mutant("cases", "equality")
class BlindSlice(Transitions):
    """A slice is treated whatever its entry says."""

    def spread(self, change: Spread) -> Ok | Done:
        group = self.rows.get(change.group)
        if group is None:
            return Done()
        stop = change.start + self.walk.slice_size
        self.walk.treat(group, change.start, stop)
        if stop < group.size:
            self.walk.put_slice(group, stop)
        else:
            self.rows.remove_entry(slice_key(group.id))
        return Ok()


@mutant("cases", "equality", "explorer")
class LastSliceIsForgotten(Transitions):
    """The entry of a large group is removed before its last slice."""

    def spread(self, change: Spread) -> Ok | Done:
        outcome = super().spread(change)
        group = self.rows.get(change.group)
        if group is not None and change.start + 2 * self.walk.slice_size >= group.size:
            self.rows.remove_entry(slice_key(group.id))
        return outcome


# The outbox


@mutant("equality", "explorer")
class ForgetsTheOutbox(Walk):
    """A later step is queued, and no outbox entry is written for it."""

    def publish(self, node: Node) -> None:
        if not node.input:
            super().publish(node)


@mutant("cases", "equality", "explorer")
class ReadingTheOutboxEmptiesIt(MemoryTaskStore):
    """A relay that dies between reading and publishing loses what it has read."""

    async def outbox(self, *given: Any, **options: Any) -> Sequence[Pending]:
        found = await super().outbox(*given, **options)
        for item in found:
            self.tables.entries.pop(item.entry.key, None)
        return found


@mutant("cases")
class TwoTransactionsAtOnce(MemoryTaskStore):
    """Two transactions read the same counter, and the second write hides the first."""

    async def apply(self, changes: Sequence[Change]) -> Applied:
        transaction = MemoryTransaction(self.tables, self.clock.now())
        outcomes = self.make(transaction, changes)
        await asyncio.sleep(0)
        return Applied(outcomes, transaction.commit())


# The reconciler


@mutant("equality", "explorer")
class RecoverReusesTheId(Walk):
    """A lost message is published again under its own id: a duplicate for the broker."""

    def publish(self, node: Node) -> None:
        key = message_key(node).rsplit(":", 1)[0] if node.copies else message_key(node)
        self.rows.put_entry(OutboxEntry(key, node.id, node.run, written=self.rows.now))


@mutant("equality", "explorer")
class RecoverForgetsRunningTasks(MemoryTaskStore):
    """A task whose worker died and whose message was lost is not found."""

    async def suspects(self, *given: Any, **options: Any) -> Sequence[str]:
        found = await super().suspects(*given, **options)
        return [node for node in found if self.tables.nodes[node].state is not State.RUNNING]


@mutant("cases", "equality")
class RunningTasksAreNotLive(MemoryTaskStore):
    """A list of open tasks lacks those that have begun since the last heartbeat."""

    async def live(self, *given: Any, **options: Any) -> Sequence[str]:
        found = await super().live(*given, **options)
        return [node for node in found if self.tables.nodes[node].state is not State.RUNNING]


@mutant("equality", "explorer")
class RecoverForgetsAbandonedGroups(MemoryTaskStore):
    """A group whose sender died between two batches is not found."""

    async def suspects(self, *given: Any, **options: Any) -> Sequence[str]:
        found = await super().suspects(*given, **options)
        return [node for node in found if self.tables.nodes[node].kind is Kind.TASK]


@mutant("cases", "equality")
class RecoverIgnoresTheOutbox(Transitions):
    """A task whose message waits for its broker is published again and again."""

    def recover(self, change: Recover) -> Any:
        node = self.rows.get(change.node)
        if node is not None:
            self.rows.remove_entry(message_key(node))
        return super().recover(change)


@mutant("cases")
class RecoverForgetsTheExpiry(Transitions):
    """A task that was lost starts long after its expiry."""

    def _has_expired(self, node: Node) -> bool:
        return False


@mutant("equality")
class RecoverTakesAnAbandonedGroupAsItIs(Transitions):
    """A group that was given up succeeds with the members that it has."""

    def recover(self, change: Recover) -> Any:
        node = self.rows.get(change.node)
        if node is not None and not node.is_sealed:
            node.is_sealed = True
            self.rows.save(node)
            self.walk.close_if_complete(node)
            return Ok()
        return super().recover(change)


# Unique keys


@mutant("equality", "explorer")
class KeyIsNotGivenBack(Walk):
    """A unique key stays claimed when its task has ended."""

    def finish(
        self, node: Node, state: State, reason: str = "", result: bytes | None = None
    ) -> None:
        unique, node.unique = node.unique, ""
        super().finish(node, state, reason, result)
        node.unique = unique


@mutant("cases")
class RedriveTakesTheKey(Transitions):
    """A redriven task starts although another task has its unique key."""

    def _claim(self, root: Node) -> Any:
        return None if root.has_ended else super()._claim(root)


# Schedules


@mutant("cases", "equality", "explorer")
class FireIgnoresTheVersion(Transitions):
    """Two schedulers that have read the same version both move the schedule on."""

    def fire(self, change: Fire) -> Fired | Lost:
        known = self.rows.schedule(change.schedule)
        return super().fire(replace(change, version=known.version if known else 0))


@mutant("cases", "equality", "explorer")
class FireForgetsTheRows(Transitions):
    """A schedule moves on, and its task is not sent."""

    def fire(self, change: Fire) -> Fired | Lost:
        return super().fire(replace(change, rows=()))


@mutant("cases", "equality")
class LostFireSendsItsTask(Transitions):
    """The late one of two schedulers sends its task all the same."""

    def fire(self, change: Fire) -> Fired | Lost:
        outcome = super().fire(change)
        if outcome == Lost() and change.rows:
            self.add(Add(change.rows))
        return outcome


@mutant("cases", "equality")
class FireForgetsTheDefinition(Transitions):
    """A schedule that fires without a new definition loses the one it has."""

    def fire(self, change: Fire) -> Fired | Lost:
        return super().fire(replace(change, definition=change.definition or b""))


@mutant("cases")
class ScheduleIsReadBeforeTheTransaction(MemoryTaskStore):
    """The version is compared with what was read before other transactions."""

    async def apply(self, changes: Sequence[Change]) -> Applied:
        transaction = MemoryTransaction(self.tables, self.clock.now())
        outcomes = self.make(transaction, changes)
        if any(isinstance(change, Fire) for change in changes):
            await asyncio.sleep(0)
        return Applied(outcomes, transaction.commit())


@mutant("cases")
class AnnouncesOnlyTasks(MemoryTaskStore):
    """The end of a workflow is not announced to those who wait for it."""

    def announce(self, announcement: Announcement) -> None:
        """Leave out what has children."""
        ended = [id_ for id_ in announcement.ended if self.tables.nodes[id_].kind is Kind.TASK]
        super().announce(replace(announcement, ended=ended))


@mutant("cases")
class AnnouncesNoBeginning(MemoryTaskStore):
    """Only endings are announced, so who watches a task does not see it begin."""

    def announce(self, announcement: Announcement) -> None:
        """Leave out what has not ended."""
        super().announce(replace(announcement, moved=()))


@mutant("cases")
class EndedListsMembers(MemoryTaskStore):
    """The list of what has ended has the members of workflows, too."""

    async def ended(
        self, after: float, before: float, limit: int = 100, start: int = 0
    ) -> Sequence[str]:
        found = sorted(
            ((it.ended, it.id) for it in self.tables.nodes.values() if it.has_ended), reverse=True
        )
        names = [name for at, name in found if after <= at < before]
        return names[start : start + limit]


@mutant("cases")
class HeartbeatsStayForGood(MemoryTaskStore):
    """A purge leaves the heartbeats of workers that are gone."""

    async def purge(self, ended_before: float, limit: int = 100) -> int:
        beats = dict(self.tables.beats)
        removed = await super().purge(ended_before, limit)
        self.tables.beats.update(beats)
        return removed


@mutant("cases")
class PurgeRemovesHeartbeatsByTheirBeginning(MemoryTaskStore):
    """A purge looks at when a heartbeat came, not at how long it holds."""

    async def purge(self, ended_before: float, limit: int = 100) -> int:
        removed = await super().purge(ended_before, limit)
        for beat in list(self.tables.beats.values()):
            if beat.at < ended_before:
                del self.tables.beats[beat.worker]
        return removed
