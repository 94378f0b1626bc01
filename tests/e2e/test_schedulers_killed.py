"""`mqcore scheduler` in two processes, one of which is killed: each instant is sent once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.commands import write
from support.waiting import eventually

from mqcore.tasks.schedules.definition import decode, root_id
from mqcore.tasks.store.plugins import default_store_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqcore.tasks.store.seam import Schedule, TaskStore

SHOP = """
from mqcore import App
from mqcore.tasks import Tasks, every

tasks = Tasks("shop", store="sqlite:///tasks.db")
app = App("shop", tasks=[tasks])

@tasks.schedule(every(0.5), name="often", missed="all", limit=1000)
@tasks.task(name="tick")
async def tick() -> None: ...
"""
COMMAND = [sys.executable, "-m", "mqcore", "scheduler", "shop:app", "--url", "sqlite:///queues.db"]


@pytest.fixture
def schedulers(own_folder: None) -> Iterator[list[subprocess.Popen[bytes]]]:
    write("shop.py", SHOP)
    with Path("said").open("wb") as said:
        processes = [subprocess.Popen(COMMAND, stderr=said) for _ in range(2)]
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


async def stored(store: TaskStore) -> Schedule | None:
    found = await store.schedules()
    return found[0] if found else None


@pytest.mark.timeout(240)  # a few seconds on a quiet machine
async def test_a_scheduler_that_is_killed_is_replaced_by_the_other_one(
    schedulers: list[subprocess.Popen[bytes]],
) -> None:
    first, second = schedulers
    store = default_store_plugins().store_for("sqlite")("sqlite:///tasks.db")
    await store.open()

    async def fired(count: int) -> bool:
        schedule = await stored(store)
        return schedule is not None and schedule.version > count

    await eventually(lambda: fired(4), within=90)
    first.kill()
    schedule = await stored(store)
    assert schedule is not None
    reached = schedule.version
    await eventually(lambda: fired(reached + 4), within=90)

    second.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(second.wait)
    said = await asyncio.to_thread(Path("said").read_text)
    assert code == 0, said
    assert "scheduler of tasks shop: often" in said

    schedule = await stored(store)
    assert schedule is not None
    planned = decode(schedule).last.planned
    assert planned is not None
    runs = schedule.version - 1
    ids = [root_id("often", planned - 0.5 * number) for number in range(runs + 1)]
    nodes = await store.nodes(ids)
    assert [node is not None for node in nodes] == [True] * runs + [False]
    await store.close()
