"""The world of a schedule: a simulated broker, what the store answered, and a log."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mqcore.contract.kit import ContractError
from mqcore.tasks.store.seam import Heartbeat

if TYPE_CHECKING:
    from random import Random

    from mqcore.contract.store.harness import StepClock
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.model.states import State
    from mqcore.tasks.store.seam import TaskStore

__all__ = ["Chances", "Copy", "World"]


@dataclass(frozen=True)
class Chances:
    """How likely a fault is, at each step or message."""

    crash: float = 0.0
    duplicate: float = 0.0
    loss: float = 0.0
    cancel: float = 0.0
    redrive: float = 0.0


@dataclass(eq=False)
class Copy:
    """One stored copy of a message."""

    key: str
    task: str
    run: int
    name: str
    attempt: int = 1
    deaths: int = 0
    """How many workers died while they held it."""
    is_postponed: bool = False
    is_redelivered: bool = False
    """Whether the broker hands it out again, because its worker died or released it."""


@dataclass
class World:
    """Everything but the step machines."""

    store: TaskStore
    clock: StepClock
    choose: Random
    chances: Chances
    is_logged: bool = False

    ready: list[Copy] = field(default_factory=list)
    dead_letters: list[Copy] = field(default_factory=list)
    dead_lettered: set[tuple[str, int]] = field(default_factory=set)
    """Each task and run that was ever dead-lettered."""
    published: set[str] = field(default_factory=set)
    """The dedup window of the broker."""
    is_faulty: bool = True
    """Whether faults may happen; at the end of a schedule no more do."""

    nodes: dict[str, Node] = field(default_factory=dict)
    """Each row as it was added."""
    endings: dict[tuple[str, int], State] = field(default_factory=dict)
    """How each run of a task ended, as the store answered."""
    cancelled: list[str] = field(default_factory=list)
    """The nodes whose cancellation the store has accepted."""
    running: dict[str, tuple[int, str]] = field(default_factory=dict)
    """The run and the worker of each running attempt."""
    beats: dict[str, float] = field(default_factory=dict)
    """Until when each worker counts as alive."""
    unique: list[str] = field(default_factory=list)
    """The roots that have claimed the unique key."""
    made: Counter[str] = field(default_factory=Counter)
    """How often an outbox entry of this key was made."""
    ticks: Counter[str] = field(default_factory=Counter)
    """How often each run of the schedule was sent, as the store answered."""
    has_abandoned: bool = False
    """Whether a sender died between two batches."""
    lost: int = 0
    log: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Write a line into the log."""
        if self.is_logged:
            self.log.append(text)

    def happens(self, chance: float) -> bool:
        """Whether a fault of this chance happens now."""
        return self.is_faulty and chance > 0 and self.choose.random() < chance

    def fail(self, expected: str, actual: object) -> None:
        """End the schedule: a promise is broken."""
        raise ContractError(expected, actual)

    async def beat(self, worker: str, ttl: float = 15.0) -> None:
        """Send a heartbeat."""
        self.beats[worker] = self.clock.time + ttl
        await self.store.heartbeat(Heartbeat(worker, ttl))

    def is_running(self, task: str, run: int) -> bool:
        """Whether this run of a task is running in a worker that is alive."""
        known, worker = self.running.get(task, (run, ""))
        return known == run and self.clock.time < self.beats.get(worker, 0.0)

    # The broker

    def publish(self, copy: Copy) -> None:
        """Store a message, unless it is a duplicate. It may also be stored twice, or be lost."""
        if copy.key in self.published:
            self.note(f"publish {copy.key}: duplicate")
            return
        self.published.add(copy.key)
        self.store_copy(copy)

    def store_copy(self, copy: Copy) -> None:
        """Store a message or the successor of a Move, without a look at the dedup window."""
        if self.happens(self.chances.loss):
            self.lost += 1
            self.note(f"lost {copy.key} attempt {copy.attempt}")
            return
        self.ready.append(copy)
        if self.happens(self.chances.duplicate):
            self.ready.append(replace(copy))
        self.note(f"stored {copy.key} attempt {copy.attempt}")

    def redeliver(self, copy: Copy) -> None:
        """Hand a message out again: its worker died, or released it."""
        copy.is_redelivered = True
        self.ready.append(copy)

    def dead_letter(self, copy: Copy) -> None:
        """Store a dead letter."""
        self.dead_letters.append(copy)
        self.dead_lettered.add((copy.task, copy.run))
        self.note(f"dead letter {copy.task} run {copy.run}")

    def is_below_cancelled(self, node: str) -> bool:
        """Whether the cancellation of this node, or of one above it, was accepted."""
        return any(
            node == above or (node.startswith(above) and node[len(above)] in ".~")
            for above in self.cancelled
        )
