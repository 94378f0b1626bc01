"""Eager mode: what is sent runs here and now, through the same checks, encoding and states.

    async with tasks.eager():
        job = await add.send(2, 3)          # it has run when send returns
        assert await job.result() == 5

It has a store of its own in memory, and no broker. A delay is not waited for, nor is the wait
before a retry. Blocking tasks run in the event loop's thread.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from mqcore.clock import SystemClock
from mqcore.errors import Postpone
from mqcore.rules.results import ChildRunFailed
from mqcore.tasks.connected import Connected
from mqcore.tasks.plans import check_depth
from mqcore.tasks.results import Results
from mqcore.tasks.run import run_async, run_in_thread
from mqcore.tasks.store.memory import MemoryTaskStore, Tables
from mqcore.tasks.writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from mqcore.consuming.context import Context
    from mqcore.tasks.api import Tasks
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.run import Run
    from mqcore.tasks.store.seam import Pending, TaskStore

__all__ = ["EagerConnection", "eager"]

_MOST_RUNS = 1_000
"""How often a task runs that postpones itself again and again."""


@dataclass(frozen=True)
class _Delivery:
    redelivered: bool = False


@dataclass
class _Facts:
    """What a run needs of the context of its message."""

    queue: str
    attempt: int
    redriven: int = 0
    priority: int = 0
    state: Any = None
    payload: Any = None
    delivery: _Delivery = _Delivery()


class EagerConnection(Connected):
    """A connection that runs a message in place of publishing it."""

    def __init__(self, tasks: Tasks, store: TaskStore | None = None) -> None:
        """Without a store it has one of its own in memory."""
        super().__init__(tasks)
        self.has_store = True
        self.clock = SystemClock()
        self.store = store or MemoryTaskStore(clock=self.clock, tables=Tables())

    async def open(self) -> None:
        """Open the store, and have the tasks sent through this connection in this loop."""
        self.loop = asyncio.get_running_loop()
        await self.store.open()
        self.results = Results(self.store, self.clock)
        self.writer = Writer(self.store, self.publish, self._changed)
        self.tasks.eager_connections.append(self)

    async def close(self) -> None:
        """Give up what is still waited for, and close the store."""
        self.tasks.eager_connections.remove(self)
        await self.results.close()
        await self.writer.close()
        await self.store.close()

    def limits_of(self, run: Run) -> tuple[None, None]:  # noqa: ARG002 - as of every connection
        """Rates and slots are left out, as delays are."""
        return None, None

    @property
    def is_without_worker(self) -> bool:
        """What is sent runs here."""
        return False

    def _check(self, rows: Sequence[Node]) -> None:
        check_depth(rows)

    async def publish(self, pending: Pending) -> None:
        """Run the task, and again after a failure as its policy says."""
        node = pending.node
        if node is None or node.has_ended:
            return
        call, _ = self._message(node, pending.entry.run)
        attempt = 1
        for _ in range(_MOST_RUNS):
            ctx = cast("Context", _Facts(node.queue, attempt))
            try:
                await self.runs.run_call(call, ctx, self.call)
            except ChildRunFailed:
                attempt += 1
            except Postpone:
                continue
            except (KeyboardInterrupt, asyncio.CancelledError):
                raise
            except BaseException:  # noqa: BLE001 - the table has it, and the job raises it
                return
            else:
                return

    async def call(self, ctx: Context) -> object:
        """Call the task's function in this thread."""
        run = ctx.payload
        return await run_async(run) if run.task.mode == "async" else run_in_thread(run)


@asynccontextmanager
async def eager(tasks: Tasks) -> AsyncIterator[None]:
    """Run what is sent inside the block here; see `Tasks.eager`."""
    tasks.load()
    connected = EagerConnection(tasks)
    await connected.open()
    try:
        yield
    finally:
        await connected.close()
