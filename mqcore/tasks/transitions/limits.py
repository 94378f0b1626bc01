"""Rates and slots: when a task may start (T10).

A rate is a bucket with two times. `next` is the turn that the next task gets, `used` the time until
which the starts so far have used the rate. A task that comes too early is given its turn, comes
back at that time, and starts, so it waits once. When workers were away, many turns are over:
`used` lets one task start after the other, and the rest get further turns.

Slots are the list of their holders, and a line of tasks that wait. A task that leaves a slot hands
it to the first in line, whose message is published then. No task polls, and none overtakes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mqcore.tasks.model.states import LIVE, State
from mqcore.tasks.transitions.rows import OutboxEntry

if TYPE_CHECKING:
    from mqcore.tasks.model.limits import RateLimit, SlotLimit
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.transitions.rows import Rows

__all__ = ["Limits", "line_key", "wake_key"]

EARLY = 0.05
"""Seconds by which a message may be early for its turn: clocks differ, and numbers are rounded."""
ROUNDED = 1e-4
"""Seconds by which two times that are meant to be the same may differ."""
STEP = 1e-6
"""Seconds between two that come into a line at the same time."""
UNUSED = 2.0
"""Seconds without a start after which the turns of a rate that were given count as unused.

A workflow that was cancelled has many such turns. They hold no other task up.
"""


@dataclass
class Slots:
    """The holders of the slots of one key. Empty slots are not stored."""

    count: int = 0
    held: list[tuple[str, str, bool]] = field(default_factory=list)
    """Task, worker, and whether it keeps its slot between its attempts.

    The worker is empty while the task does not run: it was handed the slot, or keeps it.
    """
    last: float = 0.0
    """Since when the last one in the line waits: no two wait since the same time."""

    def has(self, task: str) -> bool:
        """Whether a task holds a slot."""
        return any(holder == task for holder, _, _ in self.held)

    def put(self, task: str, worker: str, *, keeps: bool) -> None:
        """Give a task a slot, or write again who has it."""
        entry = (task, worker, keeps)
        for place, (holder, _, _) in enumerate(self.held):
            if holder == task:
                self.held[place] = entry
                return
        self.held.append(entry)

    def remove(self, task: str) -> None:
        """Take the slot of a task away."""
        self.held = [each for each in self.held if each[0] != task]


class Limits:
    """The limits of one transaction."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    # Rates

    def turn(self, node: Node, rate: RateLimit) -> float | None:
        """Let a task start, or return the time at which it may. It is noted in the row."""
        now, tolerance = self.rows.now, (rate.burst - 1) * rate.interval
        next_turn, used = self._bucket(rate.key)
        if node.turn > now + EARLY:
            return node.turn

        if node.turn and used - tolerance <= max(now, node.turn) + ROUNDED:
            is_late = now - node.turn >= rate.interval
            used = max(used, now if is_late else node.turn) + rate.interval
            node.turn = 0.0
            self._put_bucket(rate.key, max(next_turn, used), used)
            return None

        if used + UNUSED < now:
            next_turn = min(next_turn, now)
        next_turn = max(next_turn, used)
        turn = max(next_turn - tolerance, now)
        next_turn = max(next_turn, now) + rate.interval
        if turn <= now:
            node.turn, used = 0.0, max(used, now) + rate.interval
        else:
            node.turn = turn
        self._put_bucket(rate.key, next_turn, used)
        return node.turn or None

    def _bucket(self, key: str) -> tuple[float, float]:
        stored = self.rows.limit(key)
        if stored is None:
            return 0.0, 0.0
        next_turn, used = json.loads(stored)
        return float(next_turn), float(used)

    def _put_bucket(self, key: str, next_turn: float, used: float) -> None:
        times = [repr(next_turn), repr(used)]  # as text: Lua's JSON would round a number
        self.rows.put_limit(key, json.dumps(times).encode(), next_turn)

    # Slots

    def enter(self, node: Node, limit: SlotLimit, worker: str) -> bool:
        """Give a task a slot for its attempt, or a place in the line."""
        slots = self._slots(limit.key)
        slots.count = limit.count
        if limit.takes_over:
            slots.held = [each for each in slots.held if self._holds(node, *each)]
        self._fill(slots, limit.key, node)

        may_start = slots.has(node.id) or len(slots.held) < slots.count
        if may_start:
            slots.put(node.id, worker, keeps=limit.keeps)
        elif node.slot != limit.key or node.state is State.RUNNING:
            # One that was running has lost its slot to another task when its worker died.
            slots.last = max(self.rows.now, slots.last + STEP)
            self.rows.add_waiter(limit.key, node.id, slots.last)
        node.slot = limit.key
        self._put_slots(limit.key, slots)
        return may_start

    def _holds(self, node: Node, holder: str, worker: str, keeps: bool) -> bool:  # noqa: FBT001 - an entry
        """Whether a holder still has its slot: that of a dead worker has lost it."""
        return keeps or not worker or holder == node.id or self.rows.is_alive(worker)

    def leave(self, node: Node, *, for_good: bool = True) -> None:
        """Take a task out of its slots, and hand its place to the first in line.

        Between two attempts (not `for_good`) a task may keep its slot.
        """
        key = node.slot
        if not key:
            return
        slots = self._slots(key)
        if not for_good and (node.id, True) in {(task, keeps) for task, _, keeps in slots.held}:
            slots.put(node.id, "", keeps=True)
        else:
            node.slot = ""
            self.rows.remove_waiter(key, node.id)
            slots.remove(node.id)
            self._fill(slots, key)
        self._put_slots(key, slots)

    def _fill(self, slots: Slots, key: str, present: Node | None = None) -> None:
        """Hand free slots to those in line, and have their messages published.

        The one that is `present` has its message.
        """
        while len(slots.held) < slots.count:
            first = self.rows.first_waiter(key)
            if first is None:
                return
            task, since = first
            self.rows.remove_waiter(key, task)
            if present is not None and task == present.id:
                slots.put(task, "", keeps=False)
                continue

            if self._wake(key, task, since):
                slots.put(task, "", keeps=False)

    def _wake(self, key: str, task: str, since: float) -> bool:
        """Have the message of a task that was in line published, unless it has ended."""
        node = self.rows.get(task)  # of another tree, which is not locked: it is only read
        if node is None or node.state not in LIVE or node.slot != key:
            return False
        entry = OutboxEntry(wake_key(node, since), task, node.run, written=self.rows.now)
        self.rows.put_entry(entry)
        return True

    # Unique keys (T9)

    def line_up(self, node: Node) -> None:
        """Put a task into the line for its unique key."""
        node.slot = line_key(node)
        slots = self._slots(node.slot)
        slots.last = max(self.rows.now, slots.last + STEP)
        self.rows.add_waiter(node.slot, node.id, slots.last)
        value = json.dumps([0, [], repr(slots.last)]).encode()
        self.rows.put_limit(node.slot, value, slots.last)

    def hand_over(self, node: Node) -> None:
        """Give the unique key of an ended task to the first in line for it."""
        if self.rows.holder(node.unique) != node.id:
            return
        self.rows.unclaim(node.unique, node.id)
        key = line_key(node)
        while (first := self.rows.first_waiter(key)) is not None:
            task, since = first
            self.rows.remove_waiter(key, task)
            if self._wake(key, task, since):
                self.rows.claim(node.unique, task)
                return

    def _slots(self, key: str) -> Slots:
        stored = self.rows.limit(key)
        if stored is None:
            return Slots()
        count, held, last = json.loads(stored)
        return Slots(count, [(task, worker, keeps) for task, worker, keeps in held], float(last))

    def _put_slots(self, key: str, slots: Slots) -> None:
        value = [slots.count, slots.held, repr(slots.last)]
        self.rows.put_limit(key, json.dumps(value).encode() if slots.held else None)


def line_key(node: Node) -> str:
    """Return the key of the line for the unique key of a task."""
    return f"unique:{node.unique}"


def wake_key(node: Node, since: float) -> str:
    """Return the id of the message of a task that was in line since this time."""
    return f"{node.id}:{node.run}:w{since * 1e6:.0f}"
