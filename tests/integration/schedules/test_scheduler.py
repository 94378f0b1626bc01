"""The scheduler on a clock: on time, with changes by others, errors, and clocks that are set."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from support.scheduling import SetClock, one_row

from mqcore.errors import ConfigurationError, PublishFailed
from mqcore.tasks.model.changes import Begin, Change, End
from mqcore.tasks.model.nodes import Node
from mqcore.tasks.model.states import State
from mqcore.tasks.schedules.definition import Missed, Overlap, root_id
from mqcore.tasks.schedules.manage import Schedules, ScheduleSpec
from mqcore.tasks.schedules.scheduler import MakeRows, Scheduler
from mqcore.tasks.schedules.triggers import cron, every
from mqcore.tasks.store.memory import MemoryTaskStore, Tables
from mqcore.tasks.store.seam import Applied, Schedule, StoreError
from mqcore.testing import VirtualClock

MINUTE = ScheduleSpec(every(60), "task")


class Runs:
    """A store with a scheduler, and what it has published."""

    def __init__(
        self, clock: VirtualClock, store: MemoryTaskStore, rows: MakeRows = one_row
    ) -> None:
        self.clock, self.store = clock, store
        self.published: list[str] = []
        self._make = rows
        self._sent: dict[str, tuple[str, float]] = {}
        self.scheduler = Scheduler(store, rows=self._rows, publish=self.publish)
        self.schedules = Schedules(
            store, rows=one_row, publish=self.publish, changed=self.scheduler.wake
        )
        self.others = Schedules(store, rows=one_row, publish=self.publish)
        """Another program."""
        self.start = clock.now()

    async def publish(self, keys: Sequence[str]) -> None:
        self.published += keys

    def times(self, call: str = "task") -> list[float]:
        """Return when each run was sent, in seconds after the start."""
        stored = self.store.tables.nodes
        return [at for root, (of, at) in self._sent.items() if root in stored and of == call]

    def _rows(self, call: str, root: str) -> Sequence[Node]:
        rows = self._make(call, root)
        self._sent[root] = call, round(self.clock.now() - self.start, 6)
        return rows

    async def end(self, root: str) -> None:
        await self.store.apply([Begin(root, 0, 1, "t", "w")])
        await self.store.apply([End(root, 0, "t", State.SUCCEEDED)])


@asynccontextmanager
async def running(
    store: type[MemoryTaskStore] = MemoryTaskStore, rows: MakeRows = one_row
) -> AsyncIterator[Runs]:
    clock = VirtualClock()
    runs = Runs(clock, store("memory://schedules", clock, tables=Tables()), rows)
    task = asyncio.create_task(runs.scheduler.run())
    try:
        await clock.settle()
        yield runs
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_run_is_sent_at_its_instant_and_published() -> None:
    async with running() as runs:
        await runs.schedules.put("minute", MINUTE)
        await runs.clock.advance(200)
        assert runs.times() == [60, 120, 180]
        ids = [root_id("minute", runs.start + second) for second in (60, 120, 180)]
        assert runs.published == [f"{task}:0" for task in ids]


async def test_a_cron_schedule_is_on_time() -> None:
    async with running() as runs:
        await runs.schedules.put("quarter", ScheduleSpec(cron("*/15 * * * *"), "task"))
        await runs.clock.advance(3_600)
        assert runs.times() == [900, 1_800, 2_700, 3_600]


async def test_what_another_program_changes_is_noticed_within_five_seconds() -> None:
    async with running() as runs:
        await runs.clock.advance(1)
        await runs.others.put("often", ScheduleSpec(every(0.5), "task"))
        await runs.clock.advance(4.5)
        assert runs.times()[0] <= 5.0
        seen = len(runs.times())
        await runs.others.pause("often")
        await runs.clock.advance(60)
        assert len(runs.times()) <= seen + 1


async def test_an_idle_scheduler_reads_every_five_seconds() -> None:
    reads = 0

    class Counting(MemoryTaskStore):
        async def schedules(self) -> Sequence[Schedule]:
            nonlocal reads
            reads += 1
            return await super().schedules()

    async with running(Counting) as runs:
        await runs.clock.advance(100)
        assert 18 <= reads <= 22


async def test_a_store_that_is_away_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    is_away = False

    class Away(MemoryTaskStore):
        async def apply(self, changes: Sequence[Change]) -> Applied:
            if is_away:
                raise StoreError("the store is away")
            return await super().apply(changes)

    async with running(Away) as runs:
        await runs.schedules.put("minute", MINUTE)
        is_away = True
        await runs.clock.advance(300)
        assert runs.times() == []
        is_away = False
        await runs.clock.advance(125)
        assert runs.times()[1:] == [360, 420]
        assert 300 <= runs.times()[0] <= 330
    assert "the task store failed: the store is away. It is tried again in 1 s" in caplog.text


async def test_an_answer_that_is_lost_sends_nothing_twice() -> None:
    class Lossy(MemoryTaskStore):
        async def apply(self, changes: Sequence[Change]) -> Applied:
            await super().apply(changes)
            raise StoreError("the answer was lost")

    async with running(Lossy) as runs:
        with pytest.raises(StoreError):
            await runs.schedules.put("minute", MINUTE)
        runs.scheduler.wake()
        await runs.clock.advance(200)
        assert runs.times() == [60, 120, 180]


async def test_what_cannot_be_published_waits_for_the_relay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as runs:
        await runs.schedules.put("minute", MINUTE)

        async def fail(keys: Sequence[str]) -> None:
            raise PublishFailed(f"the broker is away: {len(keys)}")

        runs.scheduler._publish = fail
        await runs.clock.advance(130)
        assert runs.times() == [60, 120]
        assert len(await runs.store.outbox()) == 2
    assert "publishing failed: the broker is away: 1. The relay" in caplog.text


async def test_a_schedule_that_cannot_be_fired_here_holds_up_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def rows(call: str, root: str) -> Sequence[Node]:
        if call == "unknown":
            raise ConfigurationError("there is no task 'unknown' in this process")
        return one_row(call, root)

    async with running(rows=rows) as runs:
        await runs.schedules.put("another", ScheduleSpec(every(60), "unknown"))
        await runs.schedules.put("minute", MINUTE)
        await runs.clock.advance(310)
        assert runs.times() == [60, 120, 180, 240, 300]
        errors = [it for it in caplog.records if it.levelno == logging.ERROR]
        assert ["another" in it.getMessage() for it in errors] == [True]


async def test_a_defect_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    is_broken = True

    def rows(call: str, root: str) -> Sequence[Node]:
        if is_broken:
            raise RuntimeError("a defect")
        return one_row(call, root)

    async with running(rows=rows) as runs:
        await runs.schedules.put("minute", MINUTE)
        await runs.clock.advance(70)
        is_broken = False
        await runs.clock.advance(60)
        assert len(runs.times()) == 2
    assert "a turn failed; it is tried again in 5 s" in caplog.text


# Overlap


async def test_a_queued_run_starts_when_the_one_before_has_ended() -> None:
    async with running() as runs:
        plan = ScheduleSpec(every(60), "task", Missed.ALL, 10, Overlap.QUEUE)
        await runs.schedules.put("minute", plan)
        await runs.clock.advance(200)
        assert runs.times() == [60]
        for second in (60, 120, 180):
            await runs.end(root_id("minute", runs.start + second))
            await runs.clock.advance(2)
        assert len(runs.times()) == 3
        assert runs.times()[1] <= 201


async def test_an_overlapping_run_is_left_out_and_shown() -> None:
    async with running() as runs:
        await runs.schedules.put("minute", ScheduleSpec(every(60), "task", overlap=Overlap.SKIP))
        await runs.clock.advance(190)
        entry = await runs.schedules.get("minute")
        assert runs.times() == [60]
        assert entry.skipped_at is not None
        assert entry.skipped_at.timestamp() == runs.start + 180
        await runs.end(entry.last_task)
        await runs.clock.advance(60)
        assert runs.times() == [60, 240]


# Clocks


def _fleet_of_one(
    clock: SetClock,
) -> tuple[Scheduler, Schedules, MemoryTaskStore]:
    store = MemoryTaskStore("memory://clock", clock, tables=Tables())

    async def publish(keys: Sequence[str]) -> None:
        """What is published does not matter here."""

    scheduler = Scheduler(store, rows=one_row, publish=publish)
    return scheduler, Schedules(store, rows=one_row, publish=publish), store


async def test_a_clock_that_jumps_back_fires_nothing_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = SetClock()
    scheduler, schedules, store = _fleet_of_one(clock)
    await schedules.put("hourly", ScheduleSpec(every(3_600), "task"))

    clock.time += 6
    clock.skew = 5 * 3_600  # it is in the future
    await scheduler.turn()
    assert len(store.tables.nodes) == 1
    clock.skew = 0.0
    for _ in range(5):
        clock.time += 3_600 - 10
        await scheduler.turn()
    assert len(store.tables.nodes) == 1
    assert "later than its next instants" in caplog.text

    entry = await schedules.resume("hourly")
    assert entry.next_at is not None
    assert entry.next_at.timestamp() == clock.now() + 3_600


async def test_a_wait_is_never_longer_than_the_look() -> None:
    clock = SetClock()
    scheduler, schedules, _ = _fleet_of_one(clock)
    assert await scheduler.turn() == 5
    await schedules.put("soon", ScheduleSpec(every(2), "task"))
    scheduler.wake()
    assert await scheduler.turn() == 2
    clock.time += 2.5
    assert await scheduler.turn() == 1.5
