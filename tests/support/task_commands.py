"""An application with tasks, for the tests of the commands about them, and its worker."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from support.commands import write
from support.waiting import eventually

from mqcore import Settings, Worker

URL = "sqlite:///queues.db"
SHOP = """
import asyncio
from mqcore import App, RetryPolicy
from mqcore.tasks import TaskContext, Tasks, group

tasks = Tasks("shop", store="sqlite:///tasks.db")
app = App("shop", tasks=[tasks])
fresh = App("fresh", tasks=[Tasks("fresh", store="sqlite:///fresh.db")])
started = []

@tasks.task(name="add")
async def add(x: int, y: int) -> int:
    return x + y

@tasks.task(name="slow")
async def slow(ctx: TaskContext) -> None:
    ctx.progress(1, 3, "one of three")
    started.append(ctx.id)
    await asyncio.Event().wait()

@tasks.task(name="fail", retry=RetryPolicy(1))
async def fail() -> str:
    if len(started) == 1:
        return "mended"
    started.append("once")
    raise ValueError("no such room")
"""


def written_shop(name: str) -> Any:
    """Write the application into the working directory, and return its module."""
    write(f"{name}.py", SHOP)
    return importlib.import_module(name)


async def worked(shop: Any, done: Any) -> None:
    """Run a worker until `done` returns a true value."""
    async with (
        shop.app.connect(URL, settings=Settings()) as broker,
        Worker(shop.app, broker, grace=0),
    ):
        await eventually(done, within=60)


def work(shop: Any, *jobs: str) -> None:
    """Run a worker until these tasks have ended."""

    async def done() -> bool:
        nodes = await shop.tasks.connected().store.nodes(jobs)
        return all(node is not None and node.has_ended for node in nodes)

    asyncio.run(worked(shop, done))
