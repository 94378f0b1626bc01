"""The changes, one function each. `apply_changes` is what a store calls inside its transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from mqcore.tasks.model.changes import (
    Add,
    Back,
    Begin,
    Cancel,
    Change,
    End,
    Fire,
    Gone,
    More,
    Progress,
    Recover,
    Replace,
    Sent,
    Spread,
)
from mqcore.tasks.model.nodes import Kind, replacement_id
from mqcore.tasks.model.outcomes import (
    Added,
    Asked,
    Busy,
    Cancelled,
    Closed,
    Conflict,
    Done,
    Ended,
    Exists,
    Fired,
    Later,
    Lost,
    Ok,
    Outcome,
    Refused,
    Stale,
    Started,
    Terminal,
    Unknown,
)
from mqcore.tasks.model.states import LIVE, NEXT_RUN, State
from mqcore.tasks.transitions.limits import line_key
from mqcore.tasks.transitions.rows import Schedule, message_key, slice_key
from mqcore.tasks.transitions.walk import SLICE, Walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.transitions.rows import Rows

__all__ = ["ABANDONED", "SEAL_WITHIN", "Transitions", "apply_changes"]

SEAL_WITHIN = 60.0
"""Seconds between two batches of a group after which its sender counts as dead."""

ABANDONED = "abandoned: its sender has stopped adding members"

EXPIRED = "expired: its message was lost"

_METHODS = {kind: kind.__name__.lower() for kind in get_args(Change)}
"""The method of each kind of change."""


def apply_changes(rows: Rows, changes: Sequence[Change], slice_size: int = SLICE) -> list[Outcome]:
    """Make the changes in their order and return an outcome for each.

    The store has locked `roots_of(changes)` before, and commits afterwards.
    """
    transitions = Transitions(rows, slice_size)
    return [transitions.make(change) for change in changes]


class Transitions:
    """The changes of one transaction."""

    def __init__(self, rows: Rows, slice_size: int = SLICE) -> None:
        self.rows = rows
        self.walk = Walk(rows, slice_size)

    def make(self, change: Change) -> Outcome:
        """Make one change with all that follows from it."""
        outcome: Outcome = getattr(self, _METHODS[type(change)])(change)
        self.walk.run()

        # Whether a node has been cancelled is known when everything below it was visited.
        if isinstance(change, Cancel) and isinstance(outcome, Asked):
            node = self.rows.get(change.node)
            return Cancelled() if node is not None and node.has_ended else outcome
        return outcome

    # Sending

    def add(self, change: Add) -> Added | Exists | Conflict:
        """Insert a tree and release its root."""
        root = change.rows[0]
        if self.rows.get(root.id) is not None:
            return Exists()
        conflict = self._claim(root)
        if conflict is not None and not change.waits:
            return conflict

        self._insert(change.rows)
        if conflict is not None:
            self._line_up(root.id)
        else:
            self._release(root.id)
        return Added()

    def _line_up(self, root: str) -> None:
        """Have a task wait until its unique key is free."""
        if (node := self.rows.get(root)) is not None:
            node.move_to(State.QUEUED)
            node.due = self.rows.now + node.delay
            self.walk.limits.line_up(node)
            self.rows.save(node)

    def _insert(self, rows: Sequence[Node]) -> None:
        for row in rows:
            self.rows.add(row)
            if not row.is_sealed and (group := self.rows.get(row.id)) is not None:
                group.seal_by = self.rows.now + SEAL_WITHIN
                self.rows.save(group)

    def _release(self, node: str) -> None:
        if (found := self.rows.get(node)) is not None:
            self.walk.release(found)

    def _claim(self, root: Node) -> Conflict | None:
        """Claim the unique key of a root, or return who has it."""
        if not root.unique:
            return None
        holder = self.rows.holder(root.unique)
        if holder is None:
            self.rows.claim(root.unique, root.id)
        return Conflict(holder) if holder not in {None, root.id} else None

    def more(self, change: More) -> Ok | Closed:
        """Insert further members of a group. A batch that is repeated is inserted once."""
        group = self.rows.get(change.group)
        if group is None or group.has_ended or group.is_sealed:
            return Closed()

        fresh = [row for row in change.rows if self.rows.get(row.id) is None]
        members = [row for row in fresh if row.parent == group.id]
        self._insert(fresh)
        group.size += len(members)
        group.is_sealed = change.seal
        group.seal_by = self.rows.now + SEAL_WITHIN
        self.rows.save(group)

        if group.state is State.RUNNING and members:
            first, last = members[0].index, members[-1].index
            self.walk.treat(group, first, last + 1)
        self.walk.close_if_complete(group)
        return Ok()

    def fire(self, change: Fire) -> Fired | Lost:
        """Move a schedule on, and send its task. Only one of several schedulers has the version.

        Nothing is sent while the task's unique key belongs to another open task.
        """
        known = self.rows.schedule(change.schedule)
        if (known.version if known else 0) != change.version:
            return Lost()

        definition = change.definition
        if definition is None:
            definition = known.definition if known else b""
        self.rows.put_schedule(
            Schedule(change.schedule, change.version + 1, change.next_at, definition)
        )
        if change.rows:
            self.add(Add(change.rows))
        return Fired()

    def sent(self, change: Sent) -> Ok:
        """Remove outbox entries."""
        for key in change.keys:
            self.rows.remove_entry(key)
        return Ok()

    # Running

    def begin(
        self, change: Begin
    ) -> Started | Terminal | Cancelled | Stale | Unknown | Busy | Later | Conflict:
        """Start an attempt.

        The number of the attempt does not matter: after a crash between a retry and its message,
        the message of the attempt before comes back, and must not be refused. Only the run and the
        token fence.
        """
        node = self.rows.get(change.task)
        if node is None and change.run > 0:
            node = self._restore(change)
        if node is None:
            return Unknown()
        return (
            self._refusal(node, change)
            or self._conflict(node)
            or self._wait(node, change)
            or self._start(node, change)
        )

    def _conflict(self, node: Node) -> Later | Conflict | None:
        """Claim the unique key of a task; return what stands against that."""
        conflict = self._claim(node)
        is_in_line = node.slot == line_key(node) and node.state in LIVE
        return Later(None) if conflict and is_in_line else conflict

    def _refusal(self, node: Node, change: Begin) -> Terminal | Stale | Busy | Cancelled | None:
        """Return why an attempt must not start."""
        if node.kind is not Kind.TASK:
            return Terminal(State.DELEGATED)
        if change.run < node.run or node.state is State.WAITING:
            return Stale()

        is_next_run = change.run > node.run
        if node.has_ended and not (is_next_run and node.state in NEXT_RUN):
            return Terminal(node.state)
        if self._runs_elsewhere(node, change):
            return Busy()
        if self.walk.is_cancelled(node):
            if not node.has_ended:
                self.walk.finish(node, State.CANCELLED)
            return Cancelled()
        return None

    def _runs_elsewhere(self, node: Node, change: Begin) -> bool:
        """Whether the message is a further copy of one whose attempt is running."""
        if change.is_redelivered or node.state is not State.RUNNING:
            return False
        is_repeated = node.token == change.token  # the answer to the first one was lost
        return node.run == change.run and not is_repeated and self.rows.is_alive(node.worker)

    def _restore(self, change: Begin) -> Node | None:
        """Insert the row of a redriven task again, which was removed at the end of its retention.

        Its workflow was removed with it, so it runs alone.
        """
        if change.missing is None:
            return None
        row = change.missing.copy()
        row.state, row.run, row.parent = State.FAILED, change.run - 1, ""
        self.rows.add(row)
        return self.rows.get(row.id)

    def _wait(self, node: Node, change: Begin) -> Later | None:
        """Have a task wait for a slot, then for its turn; return None where it may start."""
        limits, is_in_line = self.walk.limits, bool(node.slot)
        if node.state is State.RUNNING and node.token == change.token:
            return None  # the answer to the first one was lost
        if node.slot and (change.slot is None or change.slot.key != node.slot):
            limits.leave(node)  # the code has another limit than before

        if change.slot and not limits.enter(node, change.slot, change.worker):
            later = Later(None)
        elif change.rate and (turn := limits.turn(node, change.rate)):
            later = Later(turn - self.rows.now)
            node.due = turn
            if change.slot:
                limits.enter(node, change.slot, "")  # it keeps its slot without a worker
        else:
            return None

        if not is_in_line or change.attempt > node.attempt:
            node.attempt = change.attempt
        self._open(node, change, State.QUEUED)
        node.token = node.worker = ""
        self.rows.save(node)
        return later

    def _open(self, node: Node, change: Begin, state: State) -> None:
        """Move a task to a state, in its next run where the message is of that one."""
        if node.has_ended:
            node.state = state  # the one way out of a terminal state: the next run
        elif state is State.RUNNING or node.state in {State.SCHEDULED, State.RUNNING}:
            node.move_to(state)
        if change.run > node.run:
            node.run, node.copies, node.progress_number = change.run, 0, 0

    def _start(self, node: Node, change: Begin) -> Started:
        self._open(node, change, State.RUNNING)
        node.turn = 0.0
        node.attempt, node.token, node.worker = change.attempt, change.token, change.worker
        node.due = self.rows.now
        self.rows.save(node)
        return Started(node.copy())

    def _held(self, task: str, run: int, token: str) -> Node | None:
        """Return the row of an attempt, if that attempt still holds it."""
        node = self.rows.get(task)
        if node is None or node.kind is not Kind.TASK or node.state is not State.RUNNING:
            return None
        return node if (node.run, node.token) == (run, token) else None

    def end(self, change: End) -> Ended | Refused:
        """End an attempt and its task."""
        node = self._held(change.task, change.run, change.token)
        if node is None:
            return Refused()
        self.walk.finish(node, change.state, change.reason, change.result)
        return Ended()

    def gone(self, change: Gone) -> Ended | Refused | Busy:
        """End a task whose message ended without a run here.

        A duplicate may expire while the first copy is running. The state cannot show whether that
        run is alive, so the heartbeat of its worker decides.
        """
        node = self.rows.get(change.task)
        if node is None or node.kind is not Kind.TASK:
            return Refused()
        if node.state not in LIVE or node.run != change.run:
            return Refused()
        if node.state is State.RUNNING and self.rows.is_alive(node.worker):
            return Busy()
        self.walk.finish(node, change.state, change.reason)
        return Ended()

    def back(self, change: Back) -> Ok | Refused | Cancelled:
        """Leave an attempt, for a retry or a postponement."""
        node = self._held(change.task, change.run, change.token)
        if node is None:
            return Refused()
        if self.walk.is_cancelled(node):
            self.walk.finish(node, State.CANCELLED)
            return Cancelled()

        node.move_to(change.state)
        node.token = node.worker = ""
        node.due = self.rows.now + change.delay
        self.walk.limits.leave(node, for_good=False)
        self.rows.save(node)
        return Ok()

    def replace(self, change: Replace) -> Ok | Refused | Cancelled:
        """Delegate a task to another call, which is its only child."""
        node = self._held(change.task, change.run, change.token)
        if node is None:
            return Refused()
        if self.walk.is_cancelled(node):
            self.walk.finish(node, State.CANCELLED)
            return Cancelled()

        node.move_to(State.DELEGATED)
        node.kind = Kind.REPLACED
        node.token = node.worker = ""
        self.walk.limits.leave(node, for_good=False)
        self.rows.save(node)
        self._insert(change.rows)
        self._release(replacement_id(node.id))
        return Ok()

    def progress(self, change: Progress) -> Ok | Refused:
        """Store the progress of an attempt."""
        node = self._held(change.task, change.run, change.token)
        if node is None or change.number <= node.progress_number:
            return Refused()
        node.progress, node.progress_number = change.value, change.number
        self.rows.save(node)
        return Ok()

    # From outside

    def cancel(self, change: Cancel) -> Asked | Terminal | Unknown:
        """Cancel a node and what is below it."""
        node = self.rows.get(change.node)
        if node is None:
            return Unknown()
        if node.has_ended:
            return Terminal(node.state)
        self.walk.cancel(node, change.reason)
        return Asked()

    def spread(self, change: Spread) -> Ok | Done:
        """Treat the next slice of a group's members.

        The entry says where the next slice starts. A slice that starts elsewhere was treated by
        another process, or a cancellation has started again at the first member.
        """
        key = slice_key(change.group)
        entry, group = self.rows.entry(key), self.rows.get(change.group)
        if entry is None or entry.start != change.start:
            return Done()
        if group is None:  # its workflow was removed at the end of its retention
            self.rows.remove_entry(key)
            return Done()

        stop = change.start + self.walk.slice_size
        self.walk.treat(group, change.start, stop)
        if stop < group.size:
            self.walk.put_slice(group, stop)
        else:
            self.rows.remove_entry(key)
        return Ok()

    def recover(self, change: Recover) -> Ok | Refused:
        """Publish a lost message again, or give up an abandoned group."""
        node = self.rows.get(change.node)
        if node is None:
            return Refused()
        if not node.is_sealed and not node.has_ended and node.seal_by < self.rows.now:
            self.walk.cancel(node, ABANDONED)
            return Ok()

        is_late = node.kind is Kind.TASK and node.state in LIVE and node.due < change.before
        if not is_late or (node.state is State.RUNNING and self.rows.is_alive(node.worker)):
            return Refused()

        # What waits in the outbox is not lost; the broker may be away. The first message of a task
        # that is running was published, whether or not its entry has been removed.
        may_wait = node.copies > 0 or node.state is not State.RUNNING
        if may_wait and self.rows.entry(message_key(node)) is not None:
            node.due = self.rows.now
            self.rows.save(node)
            return Refused()

        if self._has_expired(node):
            self.walk.finish(node, State.EXPIRED, EXPIRED)
            return Ok()

        # A queue without a consumer must not fill up with copies.
        node.due = self.rows.now + node.copies * max(self.rows.now - change.before, 0.0)
        node.copies += 1
        self.rows.save(node)
        self.walk.publish(node)
        return Ok()

    def _has_expired(self, node: Node) -> bool:
        """Whether the message of a task that has not started, if there is one, has expired.

        A redrive clears the expiry.
        """
        if node.ttl is None or node.run or node.state not in {State.SCHEDULED, State.QUEUED}:
            return False
        return node.due - node.delay + node.ttl <= self.rows.now
