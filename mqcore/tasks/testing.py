"""For tests of an application's tasks: a worker in the test's process, on a virtual clock.

    async with task_worker(app) as worker:
        job = await send_invoice.using(delay=3600).send(42)
        assert await worker.result(job) == "invoice 42"

It is also a pytest fixture of the same name.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeVar

from mqcore.clock import seconds
from mqcore.config.settings import Settings
from mqcore.tasks.api import Tasks
from mqcore.tasks.errors import ResultTimeout
from mqcore.testing import VirtualClock, memory_url
from mqcore.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import timedelta

    from mqcore.app import App
    from mqcore.broker import Broker
    from mqcore.tasks.job import Job

__all__ = ["TaskWorker", "task_worker"]

R = TypeVar("R")
_PATIENCE = 10.0
"""Seconds of real time that a blocking task may take before the clock moves on without it."""


class TaskWorker:
    """What `task_worker` yields: the clock of the worker, and its broker; None in eager mode."""

    def __init__(self, clock: VirtualClock, broker: Broker | None) -> None:
        """Made by `task_worker`."""
        self.clock = clock
        self.broker = broker

    async def advance(self, delay: float | timedelta) -> None:
        """Move the clock; what is due meanwhile has happened when it returns."""
        await self.clock.advance(delay)

    async def result(self, job: Job[R], within: float | timedelta = 86_400.0) -> R:
        """Move the clock until a job has ended, and return its result or raise its error.

        Raises `ResultTimeout` for one that has not ended `within` this time, a day by default.
        """
        if self.broker is None:
            return await job.result()
        waiting = asyncio.ensure_future(job.result())
        try:
            if await self.clock.advance_until(waiting.done, within):
                return await waiting
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        raise ResultTimeout(
            f"task {job.id} has not ended within {seconds(within):g} s of virtual time; it is "
            f"{await job.state()}"
        )


@asynccontextmanager
async def task_worker(
    app: App,
    *,
    eager: bool = False,
    scheduler: bool = True,
    clock: VirtualClock | None = None,
) -> AsyncIterator[TaskWorker]:
    """Run a worker of an app here, with its broker and the stores of its tasks in memory.

    The clock is virtual, and moves when the test says so. `scheduler`: whether the schedules of the
    tasks fire. `eager`: there is no worker, and what is sent has run when `send` returns. The app
    has its own stores again after the block.
    """
    clock = clock or VirtualClock(patience=_PATIENCE)
    parts = [part for part in app.tasks if isinstance(part, Tasks)]
    async with AsyncExitStack() as stack:
        if eager:
            for tasks in parts:
                await stack.enter_async_context(tasks.eager())
            yield TaskWorker(clock, None)
            return

        for tasks in parts:
            stack.enter_context(_in_memory(tasks, scheduler=scheduler))
        broker = app.connect(memory_url(app.name), clock=clock, settings=Settings())
        await stack.enter_async_context(broker)
        await stack.enter_async_context(Worker(app, broker))
        yield TaskWorker(clock, broker)


@contextmanager
def _in_memory(tasks: Tasks, *, scheduler: bool) -> Iterator[None]:
    """Give tasks a store in memory for a while, if they have one."""
    before = tasks.store, tasks.schedules.in_worker
    tasks.store = None if tasks.store is None else memory_url(tasks.name)
    tasks.schedules.in_worker = scheduler and tasks.store is not None
    try:
        yield
    finally:
        tasks.store, tasks.schedules.in_worker = before
