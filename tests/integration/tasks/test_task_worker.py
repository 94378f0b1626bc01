"""`task_worker`: the pytest fixture for tasks, and what it does to an app."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path

import pytest

from mqcore import App, RetryPolicy, fixed
from mqcore.tasks import ResultTimeout, TaskContext, TaskFailed, Tasks, every
from mqcore.tasks.testing import TaskWorker

Start = Callable[..., AbstractAsyncContextManager[TaskWorker]]


class Shop:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "shop.db"
        self.tasks = Tasks("shop", store=f"sqlite:///{self.file}")
        self.app = App("shop", tasks=[self.tasks])
        self.ticks: list[int] = []

        @self.tasks.task(retry=RetryPolicy(3, fixed(600)))
        async def third(ctx: TaskContext) -> int:
            if ctx.attempt < 3:
                raise ConnectionError("away")
            return ctx.attempt

        @self.tasks.task(retry=RetryPolicy(2, fixed(60)))
        def fail() -> None:
            raise LookupError("nothing there")

        @self.tasks.schedule(every(3600), name="hourly")
        @self.tasks.task()
        async def tick() -> None:
            self.ticks.append(1)

        self.third, self.fail = third, fail


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


async def test_delays_and_retries_pass_at_once(shop: Shop, task_worker: Start) -> None:
    async with task_worker(shop.app) as worker:
        job = await shop.third.using(delay=timedelta(hours=2)).send()
        assert await worker.result(job) == 3
        assert worker.clock.monotonic() == 2 * 3600 + 2 * 600


async def test_the_error_of_a_task_is_raised(shop: Shop, task_worker: Start) -> None:
    async with task_worker(shop.app) as worker:
        job = await shop.fail.send()
        with pytest.raises(TaskFailed, match="retries_exhausted: LookupError: nothing there"):
            await worker.result(job)


async def test_schedules_fire_as_the_clock_moves(shop: Shop, task_worker: Start) -> None:
    async with task_worker(shop.app) as worker:
        await worker.advance(timedelta(hours=3))
    assert len(shop.ticks) == 3
    async with task_worker(shop.app, scheduler=False) as worker:
        await worker.advance(timedelta(hours=3))
    assert len(shop.ticks) == 3


async def test_what_does_not_end_in_time_is_an_error(shop: Shop, task_worker: Start) -> None:
    async with task_worker(shop.app, scheduler=False) as worker:
        job = await shop.third.using(delay=600).send()
        with pytest.raises(ResultTimeout, match="within 60 s of virtual time; it is scheduled"):
            await worker.result(job, within=60)
        assert worker.clock.monotonic() == 60
        assert await worker.result(job) == 3


async def test_each_block_begins_empty_and_the_store_is_not_touched(
    shop: Shop, task_worker: Start
) -> None:
    before = shop.tasks.store
    async with task_worker(shop.app) as worker:
        job = await shop.third.send()
        assert worker.broker is not None
    async with task_worker(shop.app):
        with pytest.raises(Exception, match="not in the store"):
            await shop.tasks.job(job.id).state()
    assert (shop.tasks.store, shop.tasks.schedules.in_worker) == (before, False)
    assert not shop.file.exists()


async def test_eager_tasks_have_run_when_they_were_sent(shop: Shop, task_worker: Start) -> None:
    async with task_worker(shop.app, eager=True) as worker:
        job = await shop.third.using(delay=3600).send()
        assert (await job.state()).value == "succeeded"
        assert await worker.result(job) == 3
        assert worker.broker is None
