"""Several workers on one task store in Redis, killed while they begin and end tasks."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.waiting import eventually

from mqcore.contract.store.workflows import ChainPlan, GroupPlan, Plan, TaskPlan, rows_of
from mqcore.tasks.spi import State, changes
from mqcore_redis.tasks import RedisTaskStore

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable

    from .conftest import Private

PROGRAM = Path(__file__).parents[2] / "support" / "task_worker.py"
WORKERS, KILLS, LINES = 3, 5, 40
ROOTS, MEMBERS = 16, 20
PATIENCE = 120.0

pytestmark = pytest.mark.timeout(300)  # ten seconds on a quiet machine

_MEMBER = ChainPlan([TaskPlan(), GroupPlan([TaskPlan()] * 2)])
PLAN: Plan = ChainPlan([GroupPlan([*[TaskPlan()] * MEMBERS, _MEMBER]), TaskPlan()])


class Workers:
    """Processes, and which tasks they say to have ended."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._started = 0
        self._readers: dict[Process, asyncio.Task[None]] = {}
        self.ended: Counter[str] = Counter()

    async def start(self) -> None:
        """Start one more."""
        self._started += 1
        words = (str(PROGRAM), self._url, f"worker{self._started}")
        process = await asyncio.create_subprocess_exec(
            sys.executable, *words, stdout=asyncio.subprocess.PIPE
        )
        self._readers[process] = asyncio.create_task(self._read(process))

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.ended[line.decode().strip()] += 1

    async def kill(self, count: int = 1) -> None:
        """Kill the oldest ones, as an operating system does."""
        for process in list(self._readers)[:count]:
            process.send_signal(signal.SIGKILL)
            await process.wait()
            await self._readers.pop(process)


async def test_every_workflow_ends_and_each_task_once_when_workers_are_killed(
    private: Callable[..., Private],
) -> None:
    url = private().url
    store, workers = RedisTaskStore(url), Workers(url)
    await store.open()
    roots = [f"root{number}" for number in range(ROOTS)]
    try:
        for root in roots:
            await store.apply([changes.Add(rows_of(PLAN, root))])
        for _ in range(WORKERS):
            await workers.start()

        for number in range(1, KILLS + 1):
            await eventually(lambda lines=number * LINES: workers.ended.total() >= lines, PATIENCE)
            await workers.kill()
            await workers.start()

        async def has_ended() -> bool:
            nodes = await store.nodes(roots)
            return all(node and node.has_ended for node in nodes) and not await store.outbox()

        await eventually(has_ended, PATIENCE)
    finally:
        await workers.kill(WORKERS)

    try:
        await check(store, roots)
        # a worker that was killed between an ending and its line has not told of it
        assert max(workers.ended.values()) == 1
    finally:
        await store.close()


async def check(store: RedisTaskStore, roots: list[str]) -> None:
    """Each row has succeeded, and each group has counted its members once."""
    ids = [row.id for root in roots for row in rows_of(PLAN, root)]
    nodes = await store.nodes(ids)
    assert {node and node.state for node in nodes} == {State.SUCCEEDED}
    counts = {(node.size, node.done, node.bad) for node in nodes if node and node.size}
    assert counts == {(MEMBERS + 1, MEMBERS + 1, 0), (2, 2, 0)}
