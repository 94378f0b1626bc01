"""Tasks in a process of their own: results, deaths, soft limits, and cancellation that kills."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.process_tasks import app, double, endless, here, killer, pid, reports, slow

from mqcore import Settings, Worker
from mqcore.tasks import State, TaskCancelled, TaskFailed
from mqcore.testing import memory_url

LONG = 60.0


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    async with (
        app.connect(memory_url(), settings=Settings()) as broker,
        Worker(app, broker, grace=0, concurrency=2) as worker,
    ):
        yield worker


@pytest.mark.usefixtures("worker")
async def test_it_runs_in_another_process_and_its_result_comes_back() -> None:
    job = await pid.send(1, 2, 3)
    process, id_, total = await job.result(LONG)
    assert process != os.getpid()
    assert (id_, total) == (job.id, 6)


@pytest.mark.usefixtures("worker")
async def test_it_is_a_step_of_a_workflow_as_any_other_task() -> None:
    job = await (here.s(1) | double.step() | here.step()).send()
    assert await job.result(LONG) == 5


@pytest.mark.usefixtures("worker")
async def test_the_death_of_its_process_is_a_failure_of_the_task_alone() -> None:
    job = await killer.send()
    with pytest.raises(TaskFailed, match="killed by SIGKILL") as caught:
        await job.result(LONG)
    assert caught.value.reason == "crashed"
    assert await (await double.send(4)).result(LONG) == 8


@pytest.mark.usefixtures("worker")
async def test_a_soft_timeout_is_raised_in_the_process() -> None:
    assert await (await slow.send()).result(LONG) == "in time"


@pytest.mark.usefixtures("worker")
async def test_a_cancelled_task_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    job = await endless.send(str(path))
    async with asyncio.timeout(LONG):
        while not (path.exists() and path.read_text()):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
    await job.cancel("enough")
    with pytest.raises(TaskCancelled, match="enough"):
        await job.result(LONG)
    assert await job.state() is State.CANCELLED
    process = int(path.read_text())
    async with asyncio.timeout(LONG):
        while _lives(process):  # noqa: ASYNC110 - the system tells nothing
            await asyncio.sleep(0.01)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("worker")
async def test_progress_from_there_is_refused_with_the_reason() -> None:
    job = await reports.send()
    with pytest.raises(TaskFailed, match="progress from process=True tasks is not possible"):
        await job.result(LONG)
