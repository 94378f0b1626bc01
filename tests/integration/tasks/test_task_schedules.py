"""Schedules of an application: in its code, at run time, and sent by a scheduler."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from mqcore import App, ConfigurationError, Settings, UnsupportedFeature, ValidationError, Worker
from mqcore.tasks import (
    InvalidSchedule,
    Missed,
    Overlap,
    Scheduled,
    State,
    Tasks,
    UnknownSchedule,
    chain,
    every,
    group,
)
from mqcore.tasks.schedules.triggers import Cron
from mqcore.testing import VirtualClock, memory_url

if TYPE_CHECKING:
    from conftest import Shop

SCHEDULED = {"clean": Scheduled("shop.clean", every(60), args=[7])}


class Runs(list[Any]):
    """What the tasks were called with."""


@pytest.fixture
def runs(shop: Shop) -> Runs:
    found = Runs()

    @shop.tasks.task(name="shop.clean")
    async def clean(days: int, *, deep: bool = False) -> int:
        found.append((days, deep))
        return days

    @shop.tasks.task(name="shop.double")
    async def double(value: int) -> int:
        found.append(value * 2)
        return value * 2

    return found


def clean(shop: Shop) -> Any:
    task = shop.tasks.find("shop.clean")
    assert task is not None
    return task


async def test_a_decorated_task_is_sent_by_itself(shop: Shop, runs: Runs) -> None:
    same = shop.tasks.schedule(every(60), args=[7], kwargs={"deep": True})(clean(shop))
    assert same is clean(shop)
    async with shop.serve(), shop.tasks.schedules.serve():
        await shop.clock.advance(130)
        assert runs == [(7, True), (7, True)]
        (entry,) = await shop.tasks.schedules.list()
        assert (entry.name, entry.task, entry.owner) == ("shop.clean", "shop.clean", "shop")
        job = shop.tasks.job(entry.last_task)
        assert await job.result() == 7


async def test_schedules_by_the_name_of_their_task(clock: VirtualClock) -> None:
    tasks = Tasks("shop", store=memory_url(), schedules=SCHEDULED)
    found = []

    @tasks.task(name="shop.clean")
    async def clean(days: int) -> None:
        found.append(days)

    app = App("shop", tasks=[tasks])
    async with (
        app.connect(memory_url(), clock=clock, settings=Settings()) as broker,
        Worker(app, broker, grace=0),
        tasks.schedules.serve(),
    ):
        await clock.advance(61)
        assert found == [7]


async def test_a_worker_runs_the_scheduler_where_it_is_asked_to(shop: Shop, runs: Runs) -> None:
    shop.tasks.schedule(every(60), args=[1])(clean(shop))
    async with shop.serve():
        await shop.clock.advance(200)
        assert runs == []
    shop.tasks.schedules.in_worker = True
    async with shop.serve():
        await shop.clock.advance(65)
        assert runs == [(1, False)]


async def test_a_schedule_of_one_user_comes_and_goes_at_run_time(shop: Shop, runs: Runs) -> None:
    async with shop.serve(), shop.tasks.schedules.serve():
        schedules = shop.tasks.schedules
        entry = await schedules.put("user 7", every(60), clean(shop).s(7), overlap="skip")
        assert (entry.overlap, entry.missed) == (Overlap.SKIP, Missed.ONCE)
        await shop.clock.advance(61)
        assert runs == [(7, False)]

        assert (await schedules.pause("user 7")).is_paused
        await shop.clock.advance(120)
        assert len(runs) == 1
        await schedules.resume("user 7")
        await shop.clock.advance(61)
        assert len(runs) == 2

        await schedules.remove("user 7")
        await shop.clock.advance(120)
        assert len(runs) == 2
        with pytest.raises(UnknownSchedule):
            await schedules.get("user 7")


async def test_a_run_by_hand_is_a_job_with_a_typed_result(shop: Shop, runs: Runs) -> None:
    async with shop.serve():
        await shop.tasks.schedules.put("rare", every(86_400), clean(shop).s(3))
        job = await shop.tasks.schedules.run("rare")
        await shop.clock.settle()
        assert await job.result() == 3
        assert await job.state() is State.SUCCEEDED


async def test_a_schedule_sends_a_workflow(shop: Shop, runs: Runs) -> None:
    double: Any = shop.tasks.find("shop.double")
    call = chain(group(double.s(1), double.s(2)), clean(shop).using(priority=8).s(5))
    async with shop.serve(), shop.tasks.schedules.serve():
        entry = await shop.tasks.schedules.put("flow", every(60), call)
        assert entry.task == "group of 2 | shop.clean"
        await shop.clock.advance(62)
        assert sorted(map(repr, runs)) == ["(5, False)", "2", "4"]
        last = (await shop.tasks.schedules.get("flow")).last_task
        assert await shop.tasks.job(last).state() is State.SUCCEEDED


async def test_another_start_of_the_program_takes_the_schedules_of_its_code(
    shop: Shop, runs: Runs
) -> None:
    shop.tasks.schedule(every(60), name="one", args=[1])(clean(shop))
    async with shop.serve(), shop.tasks.schedules.serve():
        await shop.clock.settle()
        assert [it.name for it in await shop.tasks.schedules.list()] == ["one"]

    after = Tasks(
        "shop", store=shop.tasks.store, schedules={"two": Scheduled(clean(shop).s(2), every(5))}
    )
    app = App("shop", tasks=[after])
    async with (
        app.connect(shop.url, clock=shop.clock, settings=Settings()),
        after.schedules.serve(),
    ):
        await shop.clock.settle()
        assert [it.name for it in await after.schedules.list()] == ["two"]


# Bad input


def refused(shop: Shop, *args: Any, **options: Any) -> str:
    def define() -> None:
        shop.tasks.schedule(*args, **options)(clean(shop))
        shop.tasks.schedules.specs()

    with pytest.raises(InvalidSchedule) as caught:
        define()
    return str(caught.value)


def test_what_cannot_work_is_refused_where_it_is_written(shop: Shop, runs: Runs) -> None:
    assert 'Write every(30), cron("30 7 * * 1"' in refused(shop, 30.0, args=[1])
    with pytest.raises(ValidationError):
        shop.tasks.schedule(every(5), args=["7 days"])(clean(shop))
    with pytest.raises(InvalidSchedule, match=r"Write it above @tasks\.task\(\)"):
        shop.tasks.schedule(every(5))(lambda: None)  # type: ignore[type-var]  # that is what is tested
    with pytest.raises(ConfigurationError, match="misfire"):
        shop.tasks.schedule(every(5), misfire=1)  # type: ignore[call-arg]  # as above
    shop.tasks.schedule(every(5), name="twice", args=[1])(clean(shop))
    assert "two schedules have the name 'twice'" in refused(shop, every(5), name="twice", args=[1])
    assert '"once", "skip" or "all"' in refused(shop, every(5), args=[1], missed="none")


def test_a_task_that_is_not_registered_is_named_with_those_that_are(runs: Runs, shop: Shop) -> None:
    shop.tasks.schedules.define("nightly", Scheduled("shop.cleen", every(60)))
    with pytest.raises(InvalidSchedule, match=r"no task 'shop\.cleen'.*are: shop\.clean, shop\.d"):
        shop.tasks.schedules.specs()
    with pytest.raises(InvalidSchedule, match="Write Scheduled"):
        Tasks("shop", schedules={"nightly": every(5)})  # type: ignore[dict-item]  # as above


async def test_a_schedule_sends_a_complete_call(shop: Shop, runs: Runs) -> None:
    double: Any = shop.tasks.find("shop.double")
    async with shop.open():
        with pytest.raises(InvalidSchedule, match=r"for instance clean_up\.s\(7\)"):
            await shop.tasks.schedules.put("a", every(5), double)
        with pytest.raises(InvalidSchedule, match="more than 1,000 members"):
            await shop.tasks.schedules.put("a", every(5), group([double.s(1)] * 1_001))


async def test_schedules_need_a_store(clock: VirtualClock) -> None:
    tasks = Tasks("shop")
    app = App("shop", tasks=[tasks])
    async with app.connect(memory_url(), clock=clock, settings=Settings()):
        with pytest.raises(UnsupportedFeature, match="have no store"):
            await tasks.schedules.list()


async def test_a_process_without_the_library_lists_and_runs_what_others_have_made(
    shop: Shop, runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop.serve(), shop.tasks.schedules.serve():
        await shop.tasks.schedules.put("quarter", Cron("*/15 * * * *"), clean(shop).s(1))
        await shop.tasks.schedules.put("minute", every(60), clean(shop).s(2))
        monkeypatch.setitem(sys.modules, "cronsim", None)
        await shop.clock.advance(905)
        assert len(runs) == 15
        (_, entry) = await shop.tasks.schedules.list()
        assert entry.next_at is not None
        assert entry.next_at <= datetime.fromtimestamp(shop.clock.now(), UTC)
        assert caplog.text.count("needs cronsim: pip install 'mqcore[cron]'") == 1
        await shop.tasks.schedules.run("quarter")
        await shop.clock.settle()
        assert runs[-1] == (1, False)
