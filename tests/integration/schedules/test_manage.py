"""Schedules are listed and changed while schedulers run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from support.scheduling import SetClock, one_row

from mqcore.tasks.schedules.definition import Missed, Overlap
from mqcore.tasks.schedules.errors import InvalidSchedule, UnknownSchedule
from mqcore.tasks.schedules.manage import Schedules, ScheduleSpec
from mqcore.tasks.schedules.scheduler import Scheduler
from mqcore.tasks.schedules.triggers import cron, every
from mqcore.tasks.store.memory import MemoryTaskStore, Tables

NIGHTLY = ScheduleSpec(cron("30 2 * * *", tz="Europe/Oslo"), "report")
BEGIN = datetime(2026, 3, 27, 12, tzinfo=UTC).timestamp()


class Store:
    def __init__(self) -> None:
        self.clock = SetClock(BEGIN)
        self.store = MemoryTaskStore("memory://manage", self.clock, tables=Tables())
        self.published: list[str] = []
        self.changes = 0
        self.schedules = Schedules(
            self.store, rows=one_row, publish=self.publish, changed=self.changed
        )

    async def publish(self, keys: Sequence[str]) -> None:
        self.published += keys

    def changed(self) -> None:
        self.changes += 1

    async def version(self) -> int:
        return (await self.store.schedules())[0].version


@pytest.fixture
def at() -> Store:
    return Store()


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def test_a_schedule_is_created_and_listed(at: Store) -> None:
    entry = await at.schedules.put("nightly", NIGHTLY, owner="shop")
    assert await at.schedules.list() == [entry] == [await at.schedules.get("nightly")]
    assert (entry.name, entry.call, entry.owner, entry.is_paused) == (
        "nightly",
        "report",
        "shop",
        False,
    )
    assert entry.next_at == moment("2026-03-28 01:30")
    assert (entry.last_at, entry.last_task, entry.skipped_at) == (None, "", None)
    assert str(entry.trigger) == "30 2 * * * Europe/Oslo"
    assert at.changes == 1


async def test_the_next_instants_are_shown(at: Store) -> None:
    entry = await at.schedules.put("nightly", NIGHTLY)
    assert entry.instants(3) == [
        moment("2026-03-28 01:30"),
        moment("2026-03-29 01:00"),  # 02:30 does not exist, so it is 03:00
        moment("2026-03-30 00:30"),
    ]
    assert len(entry.instants()) == 10
    assert entry.instants(1, after=moment("2026-10-25 00:30")) == [moment("2026-10-26 01:30")]
    with pytest.raises(InvalidSchedule, match="has no time zone"):
        entry.instants(after=datetime(2026, 10, 25))  # noqa: DTZ001 - that is what is tested
    with pytest.raises(InvalidSchedule, match="from 1 to 1,000"):
        entry.instants(0)


async def test_a_paused_schedule_shows_its_instants_too(at: Store) -> None:
    await at.schedules.put("nightly", NIGHTLY)
    entry = await at.schedules.pause("nightly")
    assert (entry.is_paused, entry.next_at) == (True, None)
    assert entry.instants(1, after=moment("2026-03-27 12:00")) == [moment("2026-03-28 01:30")]
    assert entry.instants(1)[0] > datetime.now(UTC) - timedelta(seconds=5)


async def test_the_same_plan_again_changes_nothing(at: Store) -> None:
    await at.schedules.put("often", ScheduleSpec(every(60), "task"))
    at.clock.time += 30
    entry = await at.schedules.put("often", ScheduleSpec(every(60), "task"))
    assert (await at.version(), at.changes) == (1, 1)
    assert entry.next_at == datetime.fromtimestamp(BEGIN + 60, UTC)


async def test_other_arguments_keep_the_instant_and_another_trigger_does_not(at: Store) -> None:
    await at.schedules.put("often", ScheduleSpec(every(60), "task"))
    at.clock.time += 30
    entry = await at.schedules.put("often", ScheduleSpec(every(60), "other", Missed.SKIP))
    assert (entry.call, entry.missed) == ("other", Missed.SKIP)
    assert entry.next_at == datetime.fromtimestamp(BEGIN + 60, UTC)
    entry = await at.schedules.put("often", ScheduleSpec(every(90), "other"))
    assert entry.next_at == datetime.fromtimestamp(BEGIN + 120, UTC)


async def test_a_pause_outlives_the_next_start_of_the_program(at: Store) -> None:
    await at.schedules.declare("shop", {"nightly": NIGHTLY})
    await at.schedules.pause("nightly")
    other = ScheduleSpec(every(60), "task", overlap=Overlap.SKIP)
    await at.schedules.declare("shop", {"nightly": other})
    entry = await at.schedules.get("nightly")
    assert (entry.is_paused, entry.next_at, entry.overlap) == (True, None, Overlap.SKIP)
    at.clock.time += 10
    entry = await at.schedules.resume("nightly")
    assert entry.next_at == datetime.fromtimestamp(BEGIN + 70, UTC)


async def test_what_the_code_no_longer_defines_is_removed(at: Store) -> None:
    await at.schedules.declare(
        "shop", {"nightly": NIGHTLY, "often": ScheduleSpec(every(60), "task")}
    )
    await at.schedules.put("mine", NIGHTLY)
    await at.schedules.declare("other", {"theirs": NIGHTLY})
    await at.schedules.declare("shop", {"often": ScheduleSpec(every(60), "task")})
    assert [entry.name for entry in await at.schedules.list()] == ["mine", "often", "theirs"]
    with pytest.raises(UnknownSchedule, match=r"'nightly'.*there are: mine, often, theirs"):
        await at.schedules.get("nightly")

    await at.schedules.declare("shop", {"nightly": NIGHTLY})
    assert (await at.schedules.get("nightly")).next_at == moment("2026-03-28 01:30")


async def test_a_removed_schedule_keeps_its_version(at: Store) -> None:
    """A scheduler that has read it before cannot fire a later one of that name by its version."""
    await at.schedules.put("often", ScheduleSpec(every(60), "task"))
    await at.schedules.remove("often")
    assert await at.schedules.list() == []
    await at.schedules.put("often", ScheduleSpec(every(60), "task"))
    assert await at.version() == 3
    for call in (at.schedules.pause, at.schedules.remove, at.schedules.run, at.schedules.resume):
        with pytest.raises(UnknownSchedule, match="no schedule 'other'"):
            await call("other")


async def test_a_run_by_hand_is_sent_at_once(at: Store) -> None:
    await at.schedules.put("nightly", NIGHTLY)
    await at.schedules.pause("nightly")
    roots = [await at.schedules.run("nightly") for _ in range(2)]
    assert at.published == [f"{root}:0" for root in roots]
    assert len(set(roots)) == 2
    entry = await at.schedules.get("nightly")
    assert (entry.last_task, entry.is_paused) == (roots[1], True)


async def test_a_change_while_a_scheduler_fires_is_made_after_it(at: Store) -> None:
    await at.schedules.put("often", ScheduleSpec(every(60), "task"))
    scheduler = Scheduler(at.store, rows=one_row, publish=at.publish)
    stored = at.store.schedules
    is_late = True

    async def read() -> Sequence[object]:
        nonlocal is_late
        found = await stored()
        if is_late:
            is_late = False
            at.clock.time += 60
            await scheduler.turn()  # moves it on between the read and the change
        return found

    at.store.schedules = read  # type: ignore[method-assign, assignment]  # the race that is tested
    await at.schedules.pause("often")
    entry = await at.schedules.get("often")
    assert (entry.is_paused, await at.version()) == (True, 3)
    assert entry.last_at == datetime.fromtimestamp(BEGIN + 60, UTC)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", None])
async def test_a_name_that_cannot_be_used_is_refused(at: Store, name: str) -> None:
    with pytest.raises(InvalidSchedule, match="cannot be named"):
        await at.schedules.put(name, NIGHTLY)
