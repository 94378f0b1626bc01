"""Workers in processes of their own are killed at random: every workflow ends as it should."""

import asyncio
import random
import sys
from asyncio.subprocess import Process
from pathlib import Path

import pytest
from support.killed_tasks import __file__ as program
from support.killed_tasks import make, workflow

from mqcore import Settings
from mqcore.tasks import State

KILLS, WORKFLOWS = 6, 25
LONG = 240.0


async def start(*urls: str) -> Process:
    return await asyncio.create_subprocess_exec(sys.executable, program, *urls)


@pytest.mark.timeout(600)
async def test_every_workflow_ends_with_its_result(tmp_path: Path) -> None:
    urls = f"sqlite:///{tmp_path}/broker.db", f"sqlite:///{tmp_path}/tasks.db"
    app, tasks = make(urls[1])
    choose = random.Random(7)
    workers: list[Process] = []
    async with app.connect(urls[0], settings=Settings()) as broker:
        try:
            workers += [await start(*urls) for _ in range(2)]
            sent = []
            for number in range(WORKFLOWS):
                call, result = workflow(tasks, number)
                sent.append((await call.send(), result))

            for _ in range(KILLS):
                await asyncio.sleep(choose.uniform(0.5, 2.0))  # a moment that nothing chooses
                victim = workers.pop(0)
                victim.kill()
                await victim.wait()
                workers.append(await start(*urls))

            async with asyncio.timeout(LONG):
                results = await asyncio.gather(*(job.result() for job, _ in sent))
            assert results == [result for _, result in sent]
            assert {await job.state() for job, _ in sent} == {State.SUCCEEDED}
            assert await tasks.connected().store.suspects(float("inf")) == []
            assert await broker.dead_letters("default").list() == []
        finally:
            for worker in workers:
                worker.kill()
                await worker.wait()
