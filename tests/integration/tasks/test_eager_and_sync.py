"""Eager mode, the blocking interface, and how tasks are found, named and routed."""

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import mqcore.tasks.sync
from mqcore import (
    App,
    Broker,
    ConfigurationError,
    Postpone,
    RetryPolicy,
    Settings,
    UnsupportedFeature,
    ValidationError,
    Worker,
    fixed,
)
from mqcore.tasks import Job, State, TaskCancelled, TaskContext, TaskFailed, Tasks, Unique, group
from mqcore.testing import VirtualClock, memory_url

from .conftest import Shop

# Eager


async def test_eager_mode_runs_what_is_sent_through_the_same_states() -> None:
    tasks, attempts = Tasks("eager", store="sqlite:///never-opened.db"), list[int]()

    @tasks.task(retry=RetryPolicy(3, fixed(3600)))
    async def flaky(ctx: TaskContext, number: int) -> int:
        attempts.append(ctx.attempt)
        if ctx.attempt < 2:
            raise OSError("no")
        return number

    @tasks.task()
    def total(ctx: TaskContext, numbers: list[int]) -> int:
        ctx.progress(1, 1, "all")
        return sum(numbers)

    async with tasks.eager():
        job = await (group(flaky.s(number) for number in (1, 2)) | total.step()).send()
        assert await job.state() is State.SUCCEEDED
        assert await job.result() == 3
        assert (await tasks.job(f"{job.id}.1").status()).text == "all"
        with pytest.raises(ValidationError):
            await flaky.send("one")  # type: ignore[arg-type]  # that is what is tested
    assert sorted(attempts) == [1, 1, 2, 2]


async def test_an_eager_failure_is_raised_by_its_job() -> None:
    tasks, runs = Tasks("eager"), list[int]()

    @tasks.task(retry=RetryPolicy(2))
    async def broken() -> None:
        raise SystemExit(3)

    @tasks.task(retry=RetryPolicy(1))
    async def later() -> int:
        runs.append(1)
        if len(runs) < 3:
            raise Postpone(60)
        return len(runs)

    async with tasks.eager():
        with pytest.raises(TaskFailed, match="SystemExit"):
            await (await broken.send()).result()
        assert await (await later.send()).result() == 3


# Blocking


@pytest.fixture
async def app_with_a_worker() -> AsyncIterator[tuple[App, str, Any]]:
    tasks = Tasks("blocking", store=memory_url())
    app, url = App("blocking", tasks=[tasks]), memory_url()

    @tasks.task()
    async def add(x: int, y: int) -> int:
        return x + y

    @tasks.task(name="stuck")
    async def stuck() -> None:
        await asyncio.Event().wait()

    async with app.connect(url, settings=Settings()) as broker, Worker(app, broker, grace=0):
        yield app, url, add


async def test_a_blocking_program_sends_and_waits(app_with_a_worker: tuple[App, str, Any]) -> None:
    app, url, add = app_with_a_worker

    def program() -> None:
        with mqcore.tasks.sync.connect(app, url, settings=Settings()) as client:
            job = client.send(add.s(2, 3))
            assert job.result(timeout=60) == 5
            assert job.state() is State.SUCCEEDED
            assert [change.state for change in job.changes()] == [State.SUCCEEDED]
            assert not client.job(add.tasks, job.id).cancel()

            stuck = client.send(add.tasks.registered["stuck"].s())
            while stuck.state() is not State.RUNNING:
                pass
            assert stuck.cancel("from another thread")
            with pytest.raises(TaskCancelled, match="from another thread"):
                stuck.result(timeout=60)

    await asyncio.to_thread(program)


def test_a_blocking_job_has_the_methods_of_a_job() -> None:
    for name, method in vars(Job).items():
        if name.startswith("_"):
            continue
        twin = getattr(mqcore.tasks.sync.Job, name)
        theirs, ours = inspect.signature(method), inspect.signature(twin)
        assert theirs.parameters == ours.parameters, name
        assert str(theirs.return_annotation).replace("AsyncIterator", "Iterator") == str(
            ours.return_annotation
        ), name
    names = {name for name in vars(mqcore.tasks.sync.Job) if not name.startswith("_")}
    assert names == {name for name in vars(Job) if not name.startswith("_")}


# Names, routes and modules


async def test_routes_go_by_name_and_glob_and_the_first_match_counts(shop: Shop) -> None:
    tasks = Tasks("shop", routes={"shop.media.big": "slow", "shop.media.*": "media"})

    @tasks.task(name="shop.media.resize")
    async def resize() -> None: ...

    @tasks.task(name="shop.other", queue="own")
    async def other() -> None: ...

    assert [tasks.route(name) for name in ("shop.media.big", "shop.media.x", "shop.x")] == [
        "slow",
        "media",
        "default",
    ]
    assert tasks.queues == {"slow", "media", "default", "own"}
    assert resize.s().plan.queue == "media"  # type: ignore[union-attr]  # it is one task
    assert resize.using(queue="other").s().plan.queue == "other"  # type: ignore[union-attr]  # as above
    assert other.s().plan.queue == "own"  # type: ignore[union-attr]  # as above


async def test_a_queue_that_only_calls_choose_is_consumed_when_it_is_named(
    clock: VirtualClock,
) -> None:
    shop = Shop(clock, queues=["lopri"])

    @shop.tasks.task()
    async def add(x: int, y: int) -> int:
        return x + y

    assert shop.tasks.queues == {"default", "lopri"}
    async with shop.serve(queues=["lopri"]):
        job = await add.using(queue="lopri").send(2, 2)
        assert await job.result() == 4
        waiting = await add.send(2, 2)
        assert await waiting.state() is State.QUEUED


def test_queues_are_a_list_of_names() -> None:
    with pytest.raises(ConfigurationError, match="queues= takes a list of names"):
        Tasks("shop", queues="lopri")
    with pytest.raises(ConfigurationError, match="'low prio'"):
        Tasks("shop", queues=["low prio"])


async def test_modules_are_included_and_discovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from found_tasks import tasks\n\n\n@tasks.task()\ndef {0}() -> str:\n    return '{0}'\n"
    for package in ("found_shop", "found_blog", "found_none"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "found_tasks.py").write_text(
        "from mqcore.testing import memory_url\nfrom mqcore.tasks import Tasks\n"
        "tasks = Tasks('found', store=memory_url(), include=['found_shop.jobs'])\n"
        "tasks.autodiscover('found_blog', 'found_none')\n"
    )
    (tmp_path / "found_shop" / "jobs.py").write_text(code.format("bill"))
    (tmp_path / "found_blog" / "tasks.py").write_text(code.format("post"))
    monkeypatch.syspath_prepend(tmp_path)
    from found_tasks import tasks  # type: ignore[import-not-found]  # noqa: PLC0415 - it is written above

    app = App("found", tasks=[tasks])
    async with app.connect(memory_url(), settings=Settings()) as broker, Worker(app, broker):
        assert set(tasks.registered) == {"found_shop.jobs.bill", "found_blog.tasks.post"}
        from found_shop.jobs import bill  # type: ignore[import-not-found]  # noqa: PLC0415 - as above

        assert await (await bill.send()).result(timeout=60) == "bill"
    for name in [name for name in sys.modules if name.startswith("found_")]:
        monkeypatch.delitem(sys.modules, name)


async def test_without_a_store_tasks_are_sent_and_forgotten() -> None:
    tasks, ran = Tasks("plain"), asyncio.Event()
    app = App("plain", tasks=[tasks])

    @tasks.task()
    async def work(number: int) -> None:
        assert number == 1
        ran.set()

    async with app.connect(memory_url(), settings=Settings()) as broker, Worker(app, broker):
        job = await work.send(1)
        await asyncio.wait_for(ran.wait(), 60)
        with pytest.raises(UnsupportedFeature, match="have no store"):
            await job.result()
        with pytest.raises(UnsupportedFeature, match="need a store"):
            await group(work.s(1), work.s(1)).send()


async def test_what_cannot_be_a_task_is_refused_when_it_is_registered(shop: Shop) -> None:
    tasks = shop.tasks
    with pytest.raises(ConfigurationError, match="TaskContext is the first parameter"):

        @tasks.task()
        async def late(x: int, ctx: TaskContext) -> None: ...

    with pytest.raises(ConfigurationError, match="unique= names z"):

        @tasks.task(unique=Unique(by=("z",)))
        async def unique(x: int) -> None: ...

    with pytest.raises(ConfigurationError, match="process=True is for blocking functions"):

        @tasks.task(process=True)
        async def process() -> None: ...

    with pytest.raises(ConfigurationError, match="did you mean 'queue'"):
        tasks.task(queu="x")(lambda: None)  # type: ignore[call-arg]  # that is what is tested


async def test_tasks_of_an_app_that_is_not_connected_are_refused(shop: Shop) -> None:
    @shop.tasks.task()
    async def fine() -> None: ...

    with pytest.raises(ConfigurationError, match="not connected in this event loop"):
        await fine.send()
    async with Broker.connect(memory_url(), settings=Settings()) as broker:
        with pytest.raises(ConfigurationError, match="middleware or tasks that this broker"):
            Worker(shop.app, broker)


async def test_a_task_that_is_called_runs_here(shop: Shop) -> None:
    @shop.tasks.task()
    async def double(ctx: TaskContext, x: int) -> int:
        ctx.progress(1)
        return 2 * x

    @shop.tasks.task()
    def half(x: int) -> float:
        return x / 2

    assert await double(4) == 8
    assert half(4) == 2
