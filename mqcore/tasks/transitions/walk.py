"""What follows from a change: later steps are released, endings are counted, flows are closed.

    end of a node ── count ──► its parent goes on or ends ── count ──► …     upward
    release, cancel, skip ──► the members or the current step ──► …          downward

The steps wait in a queue and run one after the other, so the depth of a tree is not bounded by the
depth of Python's stack.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from mqcore.tasks.model.nodes import (
    FOLLOWING,
    ON_DONE,
    CancelFlag,
    Kind,
    Policy,
    child_id,
    replacement_id,
)
from mqcore.tasks.model.states import ENDED, State
from mqcore.tasks.transitions.limits import Limits
from mqcore.tasks.transitions.rows import OutboxEntry, message_key, slice_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.transitions.rows import Rows

__all__ = ["SLICE", "Walk"]

SLICE = 1_000
"""How many members are treated in one transaction.

Releasing a group of 100,000 at once blocked Redis for 1.8 seconds.
"""
_ABANDONED = "cancelled before its last members were added"


class Walk:
    """The consequences of one transaction's changes."""

    def __init__(self, rows: Rows, slice_size: int = SLICE) -> None:
        self.rows = rows
        self.limits = Limits(rows)
        self.slice_size = slice_size
        self._room = slice_size
        """How many further members this transaction may treat."""
        self._steps: deque[tuple[Callable[[Node], None], Node]] = deque()

    def run(self) -> None:
        """Do everything that is left to do."""
        while self._steps:
            step, node = self._steps.popleft()
            step(node)

    # Upward

    def finish(
        self, node: Node, state: State, reason: str = "", result: bytes | None = None
    ) -> None:
        """End a node, and have its parent count that."""
        node.move_to(state)
        node.result = result  # also removes that of an earlier run
        if reason or node.cancel is CancelFlag.NO:
            node.reason = reason
        node.token = node.worker = ""
        node.turn = 0.0
        node.ended = self.rows.now
        self.rows.save(node)

        if node.unique:
            self.limits.hand_over(node)
        self.limits.leave(node)
        if node.follows:
            self._steps.append((self.follow, node))
        if node.parent and node.index >= 0:
            self._steps.append((self.count, node))

    def follow(self, node: Node) -> None:
        """Send the calls that follow the end of a node, each of them once.

        A task that is redriven ends again: what was sent then is not sent once more.
        """
        for kind, place in FOLLOWING.items():
            call = self.rows.get(child_id(node.id, place)) if node.follows & kind else None
            if call is None:
                continue
            is_wanted = kind == ON_DONE or node.state in {State.FAILED, State.EXPIRED}
            if not is_wanted or node.state is State.SKIPPED:
                self._steps.append((self.skip, call))
            elif call.state is State.WAITING:
                call.input = node.id
                self.rows.save(call)
                self._steps.append((self.release, call))

    def count(self, node: Node) -> None:
        """Let the parent of an ended node take note of it, for the first time only."""
        parent = self.rows.get(node.parent)
        if parent is None:
            return
        if node.is_counted:
            self.count_again(parent, node)
            return

        node.is_counted = True
        self.rows.save(node)

        if parent.has_ended:
            return
        if parent.kind is Kind.GROUP:
            self._count_member(parent, node)
        elif parent.kind is Kind.CHAIN:
            self._count_step(parent, node)
        else:
            self.finish(parent, node.state, node.reason)

    def count_again(self, parent: Node, node: Node) -> None:
        """Take note of a member that has ended again, after a redrive.

        If it succeeded now and its group is still open, the failure is forgotten. In every other
        place the workflow has gone on without it, and the member ran alone.
        """
        is_open = parent.kind is Kind.GROUP and not parent.has_ended
        if is_open and node.state is State.SUCCEEDED:
            parent.bad -= 1
            self.rows.save(parent)

    def _count_member(self, group: Node, member: Node) -> None:
        has_failed = member.state is not State.SUCCEEDED
        group.done += 1
        group.bad += has_failed
        self.rows.save(group)

        if has_failed and group.policy is Policy.CANCEL and group.cancel is CancelFlag.NO:
            reason = f"{member.id} ended as {member.state}"
            self.cancel(group, reason, CancelFlag.FAILURE)
        self.close_if_complete(group)

    def _count_step(self, chain: Node, step: Node) -> None:
        chain.done += 1
        self.rows.save(chain)

        # A step that was running when its chain was cancelled may succeed: the next one must not
        # start.
        if self.is_cancelled(chain):
            self._end_chain(chain, State.CANCELLED, chain.reason)
        elif step.state is not State.SUCCEEDED:
            self._end_chain(chain, step.state, step.reason)
        elif chain.done < chain.size:
            self._release_step(chain, input=step.id)
        else:
            self._end_chain(chain, State.SUCCEEDED)

    def _end_chain(self, chain: Node, state: State, reason: str = "") -> None:
        for step in self.rows.children(chain.id, chain.done, chain.size):
            self._steps.append((self.skip, step))
        self.finish(chain, state, reason)

    def close_if_complete(self, group: Node) -> None:
        """End a group when all its members have ended."""
        if group.state is not State.RUNNING or not group.is_sealed or group.done < group.size:
            return

        if group.cancel is CancelFlag.FAILURE:
            state = State.FAILED
        elif self.is_cancelled(group):
            state = State.CANCELLED
        elif group.bad and group.policy is not Policy.COLLECT:
            state = State.FAILED
        else:
            state = State.SUCCEEDED
        self.finish(group, state)

    def is_cancelled(self, node: Node) -> bool:
        """Whether a node, or one above it, is to be cancelled."""
        above: Node | None = node
        while above is not None:
            if above.cancel is not CancelFlag.NO:
                return True
            has_parent = above.parent and above.index >= 0  # a call that follows goes on
            above = self.rows.get(above.parent) if has_parent else None
        return False

    # Downward

    def release(self, node: Node) -> None:
        """Start a node whose turn has come: publish a task, start what is inside a flow."""
        if node.state is not State.WAITING:
            return
        if node.cancel is not CancelFlag.NO:
            self.finish(node, State.CANCELLED)
            self._skip_below(node)
            return

        if node.kind is Kind.TASK:
            node.due = self.rows.now + node.delay
            node.move_to(State.SCHEDULED if node.delay > 0 else State.QUEUED)
            self.rows.save(node)
            self.publish(node)
            return

        node.move_to(State.RUNNING)
        self.rows.save(node)
        if node.kind is Kind.GROUP:
            self._treat_members(node)
            self.close_if_complete(node)
        elif node.size:
            self._release_step(node, input=node.input)
        else:
            self.finish(node, State.SUCCEEDED)

    def publish(self, node: Node) -> None:
        """Have the message of a task published after the commit."""
        self.rows.put_entry(
            OutboxEntry(message_key(node), node.id, node.run, written=self.rows.now)
        )

    def _release_step(self, chain: Node, input: str) -> None:  # noqa: A002 - the field's name
        step = self.rows.get(child_id(chain.id, chain.done))
        if step is not None:
            step.input = input
            self.rows.save(step)
            self._steps.append((self.release, step))

    def cancel(self, node: Node, reason: str, flag: CancelFlag = CancelFlag.ASKED) -> None:
        """Cancel a node with everything below it.

        A waiting step only gets the flag, which is read when its turn comes: ending it now would
        count it before the steps before it. A running task gets the flag too; its worker reads it.
        """
        if node.has_ended or node.cancel is CancelFlag.ASKED:
            return
        node.cancel, node.reason = flag, reason
        is_abandoned = not node.is_sealed
        if is_abandoned:
            node.is_sealed, node.reason = True, reason or _ABANDONED
        self.rows.save(node)

        if node.state in {State.SCHEDULED, State.QUEUED, State.RETRYING}:
            self.finish(node, State.CANCELLED)
        elif node.state is not State.WAITING:
            self._cancel_below(node)

    def _cancel_below(self, node: Node) -> None:
        if node.kind is Kind.GROUP:
            self._treat_members(node)
            self.close_if_complete(node)
        elif node.kind is not Kind.TASK:
            is_chain = node.kind is Kind.CHAIN
            current = child_id(node.id, node.done) if is_chain else replacement_id(node.id)
            if (below := self.rows.get(current)) is not None:
                self._steps.append((self._cancel_with_parent, below))

    def _cancel_with_parent(self, node: Node) -> None:
        self.cancel(node, "its workflow was cancelled")

    def skip(self, node: Node) -> None:
        """End a node whose turn will never come, with everything below it."""
        if node.state is State.WAITING:
            node.move_to(State.SKIPPED)
            node.ended = self.rows.now
            self.rows.save(node)
            self._skip_below(node)

    def _skip_below(self, flow: Node) -> None:
        if flow.follows and flow.state is State.SKIPPED:
            self._steps.append((self.follow, flow))
        if flow.kind is Kind.GROUP:
            self._treat_members(flow)
        elif flow.kind is Kind.CHAIN:
            for step in self.rows.children(flow.id, flow.done, flow.size):
                self._steps.append((self.skip, step))

    # The members of a group

    def _treat_members(self, group: Node) -> None:
        """Treat all members of a small group now, and those of a large one slice by slice."""
        if group.size <= self._room:
            self._room -= group.size
            self.treat(group, 0, group.size)
            self.rows.remove_entry(slice_key(group.id))
        else:
            self.put_slice(group, 0)

    def put_slice(self, group: Node, start: int) -> None:
        """Have the members from `start` on treated in a transaction of their own."""
        self.rows.put_entry(
            OutboxEntry(slice_key(group.id), group.id, start=start, written=self.rows.now)
        )

    def treat(self, group: Node, start: int, stop: int) -> None:
        """Do with these members what the state of the group asks for."""
        for member in self.rows.children(group.id, start, stop):
            if group.state in ENDED:
                self._steps.append((self.skip, member))
                continue

            if group.cancel is not CancelFlag.NO:
                self.cancel(member, "its workflow was cancelled")
            if member.state is State.WAITING:
                member.input = group.input
                self.rows.save(member)
                self._steps.append((self.release, member))
