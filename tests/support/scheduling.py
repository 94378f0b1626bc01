"""Schedulers as step machines on one store: any of them may die between any two steps.

A step is a call of the store, before it and after it, or a moment in which others go on. The order
is random and follows from the seed. The clocks of the schedulers differ, drift and leap.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mqcore.clock import SystemClock
from mqcore.tasks.model.nodes import Node
from mqcore.tasks.schedules.definition import Missed, root_id
from mqcore.tasks.schedules.manage import Schedules, ScheduleSpec
from mqcore.tasks.schedules.scheduler import Scheduler
from mqcore.tasks.schedules.triggers import cron, every
from mqcore.tasks.store.memory import MemoryTaskStore, Tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mqcore.tasks.model.changes import Change
    from mqcore.tasks.schedules.triggers import Trigger
    from mqcore.tasks.store.seam import Applied, Pending, Schedule

__all__ = ["Fleet", "Report", "SetClock", "SteppedStore", "one_row", "planned_triggers"]

ZONES = (
    "Europe/Oslo",
    "America/New_York",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Antarctica/Troll",
)

Steps = Coroutine[Any, Any, None]


class SetClock(SystemClock):
    """A clock that a test sets; `skew` is what its wall clock is wrong by."""

    real = False

    def __init__(self, time: float = 1_000_000.0) -> None:
        super().__init__()
        self.time = time
        self.skew = 0.0

    def now(self) -> float:
        return self.time + self.skew

    def monotonic(self) -> float:
        return self.time


def one_row(call: str, root: str) -> Sequence[Node]:
    """Return the rows of a single task."""
    return [Node(id=root, name=call, queue="work")]


def planned_triggers() -> dict[str, Trigger]:
    """Return schedules around the hours at which the clocks of six zones change."""
    found: dict[str, Trigger] = {"every": every(14_400)}
    for zone in ZONES:
        found[f"night {zone}"] = cron("30 2 * * *", tz=zone)
        found[f"early {zone}"] = cron("15 1-3 * * *", tz=zone)
        found[f"often {zone}"] = cron("45 */6 * * *", tz=zone)
    return found


class _Moment:
    """Something to await that gives the others a turn."""

    def __await__(self) -> Generator[None, None, None]:
        yield None


class SteppedStore(MemoryTaskStore):
    """The store in memory, whose calls have a moment before and after them."""

    made: Counter[str]
    """How often each outbox entry was made."""

    async def apply(self, changes: Sequence[Change]) -> Applied:
        await _Moment()
        applied = await super().apply(changes)
        self.made.update(applied.keys)
        await _Moment()
        return applied

    async def schedules(self) -> Sequence[Schedule]:
        await _Moment()
        found = await super().schedules()
        await _Moment()
        return found

    async def entries(self, keys: Sequence[str]) -> Sequence[Pending]:
        await _Moment()
        return await super().entries(keys)


@dataclass(eq=False)
class _Process:
    """One process with a scheduler, which may be dead for a while."""

    clock: SetClock
    starts_at: float
    scheduler: Scheduler | None = None
    steps: Steps | None = None
    wakes_at: float = 0.0


@dataclass
class Report:
    """What has happened."""

    planned: int = 0
    fired: int = 0
    kills: int = 0
    steps: int = 0
    wrong: list[str] = field(default_factory=list)
    """Each instant that was not sent exactly once."""


class Fleet:
    """Several schedulers with the same schedules, from `start` to `end` in virtual time."""

    make_scheduler: type[Scheduler] = Scheduler
    make_store: type[SteppedStore] = SteppedStore

    def __init__(
        self,
        triggers: Mapping[str, Trigger],
        *,
        schedulers: int,
        start: float,
        seed: int,
        kill: float = 0.02,
    ) -> None:
        self.triggers = triggers
        self.choose = random.Random(seed)
        self.time = start
        self.start = start
        self.kill = kill
        self.tables = Tables()
        self.made: Counter[str] = Counter()
        self.published: Counter[str] = Counter()
        self.report = Report()
        self.processes = [self._process() for _ in range(schedulers)]

    def _process(self) -> _Process:
        clock = SetClock(self.time)
        clock.skew = self.choose.uniform(-30, 30)
        return _Process(clock, starts_at=self.time)

    def _store(self, clock: SetClock) -> SteppedStore:
        store = self.make_store("memory://fleet", clock, tables=self.tables)
        store.made = self.made
        return store

    async def _publish(self, keys: Sequence[str]) -> None:
        for key in keys:
            await _Moment()
            self.published[key] += 1

    def run(self, end: float) -> Report:
        """Run until the virtual time `end`, then once more without faults."""
        self._plan()
        while self.time < end:
            self._moment()
        for process in self.processes:
            while process.steps is not None:
                self._go_on(process)

        process = _Process(SetClock(self.time), starts_at=self.time)
        last = Scheduler(self._store(process.clock), rows=one_row, publish=self._publish)
        _finish(self._turn(process, last))
        return self._checked(end)

    def _plan(self) -> None:
        clock = SetClock(self.time)
        schedules = Schedules(self._store(clock), rows=one_row, publish=self._publish, clock=clock)
        for name, trigger in self.triggers.items():
            putting = schedules.put(name, ScheduleSpec(trigger, name, Missed.ALL, 1_000))
            _finish(putting)

    def _moment(self) -> None:
        active = [process for process in self.processes if process.steps is not None]
        if active:
            process = self.choose.choice(active)
            if self.choose.random() < self.kill:
                self._die(process)
            else:
                self._go_on(process)
            return

        self.time = max(self.time, min(map(_next_moment, self.processes)))
        for process in self.processes:
            process.clock.time = self.time
            if _next_moment(process) <= self.time:
                self._wake(process)

    def _wake(self, process: _Process) -> None:
        """Begin the next turn of a process, with another clock now and then."""
        chance = self.choose.random()
        if chance < 0.02:
            process.clock.skew = self.choose.choice((-1, 1)) * self.choose.uniform(0, 1_800)
        elif chance < 0.1:
            process.clock.skew = self.choose.uniform(-30, 30)

        if process.scheduler is None:
            process.scheduler = self.make_scheduler(
                self._store(process.clock),
                rows=one_row,
                publish=self._publish,
                look_every=self.choose.choice((900.0, 3_600.0, 7_200.0)),
            )
        process.steps = self._turn(process, process.scheduler)

    async def _turn(self, process: _Process, scheduler: Scheduler) -> None:
        wait = await scheduler.turn()
        await _Moment()
        await scheduler.publish_made()
        process.wakes_at = process.clock.time + wait

    def _go_on(self, process: _Process) -> None:
        self.report.steps += 1
        try:
            process.steps.send(None)  # type: ignore[union-attr]
        except StopIteration:
            process.steps = None

    def _die(self, process: _Process) -> None:
        """Stop a process where it is. Another one takes its place, at once or hours later."""
        self.report.kills += 1
        process.steps.close()  # type: ignore[union-attr]
        process.steps = process.scheduler = None
        process.starts_at = self.time + self.choose.choice((0.0, 5.0, 600.0, 14_400.0))

    def _checked(self, end: float) -> Report:
        """Compare what was made with the instants of the triggers."""
        report, planned = self.report, set()
        for name, trigger in self.triggers.items():
            next_at = self.tables.schedules[name].next_at
            assert next_at is not None
            assert next_at > end

            instant = first = trigger.following(self.start)
            while instant < next_at:
                root = root_id(name, instant)
                planned.add(root)
                report.planned += 1
                report.fired += self.made[f"{root}:0"]
                if self.made[f"{root}:0"] != 1:
                    report.wrong.append(f"{name} {instant}: {self.made[f'{root}:0']} times")
                instant = trigger.following(instant, first)

        report.wrong += [f"not planned: {root}" for root in set(self.tables.nodes) - planned]
        lost = {key for key in self.made if not self.published[key]} - set(self.tables.entries)
        report.wrong += [f"not published: {key}" for key in lost]
        return report


def _next_moment(process: _Process) -> float:
    return process.starts_at if process.scheduler is None else process.wakes_at


def _finish(steps: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine of moments to its end."""
    try:
        while True:
            steps.send(None)
    except StopIteration:
        return
