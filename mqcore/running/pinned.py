"""One thread of a pool for several calls in a row, inside a context manager.

A blocking handler with a transaction of its own needs it: the session is opened, used, committed
and closed in one thread, as sessions and connections of many libraries demand, and the event loop
decides in between.
"""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mqcore.running.threads import presentable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from mqcore.running.threads import ThreadPool

__all__ = ["PinnedThread", "current_thread"]

R = TypeVar("R")
T = TypeVar("T")


class _Call:
    """One call on its way through the thread. `is_over` and `is_gone` are changed on the loop."""

    def __init__(self, call: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.loop = loop
        self.context = contextvars.copy_context()
        self.awaited: asyncio.Future[None] = loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_over = self.is_gone = False

    def run(self) -> None:
        """Call it, unless its caller has gone; on the thread."""
        try:
            if not self.is_gone:
                self.result = self.context.run(self.call)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its result
            self.error = error
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        """Wake the caller; on the loop."""
        self.is_over = True
        if not self.awaited.done():
            self.awaited.set_result(None)


class PinnedThread(Generic[T]):
    """A thread that has entered a context manager, and leaves it at the end.

    Used from one task. A call that is abandoned goes on: the thread leaves the context when it has
    ended, and its slot in the pool stays taken until then.
    """

    def __init__(self, pool: ThreadPool, context: AbstractContextManager[T]) -> None:
        """Nothing runs yet; `enter` takes a thread."""
        self._pool = pool
        self._manager = context
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._last: _Call | None = None
        self._serving: asyncio.Task[None] | None = None

    async def enter(self) -> T:
        """Enter the context manager in the thread and return what it gives."""
        loop = asyncio.get_running_loop()
        entered = self._last = _Call(_nothing, loop)
        self._serving = loop.create_task(self._pool.run(lambda: self._serve(entered)))
        await asyncio.wait([self._serving, entered.awaited], return_when="FIRST_COMPLETED")
        if self._serving.done():  # it could not be entered
            entered.end()
            await self._serving
        result: T = entered.result
        return result

    async def run(self, call: Callable[[], R]) -> R:
        """Call `call` in the thread; raise what it raises, as `ThreadPool.run` does."""
        job = self._last = _Call(call, asyncio.get_running_loop())
        self._calls.put(job)
        try:
            await job.awaited
        finally:
            job.is_gone = not job.is_over

        try:
            if job.error is not None:
                raise presentable(job.error)
            result: R = job.result
            return result
        finally:
            del job  # the traceback of its error holds this frame

    async def leave(self) -> None:
        """Leave the context manager in the thread. It does not wait for a call that still runs."""
        serving = self._serving
        if serving is None:
            return
        self._calls.put(None)
        if self._last is not None and not self._last.is_over:
            serving.cancel()
            return
        await serving

    def _serve(self, entered: _Call) -> None:
        with self._manager as entered.result:
            entered.loop.call_soon_threadsafe(entered.end)
            while (job := self._calls.get()) is not None:
                job.run()
                del job


current_thread: contextvars.ContextVar[PinnedThread[Any] | None] = contextvars.ContextVar(
    "mqcore_thread", default=None
)
"""The thread in which the handler of this task runs, where it has one."""


def _nothing() -> None:
    """What the call that stands for entering does."""
