"""Threads for blocking handlers, of which a stuck one costs its own slot and nothing else.

A handler's call comes in by `run`, takes a slot, and is put into a queue that daemon threads read.
The thread keeps whatever comes of it, result or exception of any class, as a plain value, and hands
it to the loop; `run` returns or raises it where it was awaited. When the caller has gone meanwhile
(a time limit, a stop), the thread cannot be stopped: the slot stays taken until it ends, what it
brings is dropped, and the end of the process does not wait for it. `ThreadPoolExecutor` would.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ThreadPool"]

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Job:
    """One call on its way through a thread. `over` and `gone` are touched on the loop only."""

    call: Callable[[], Any]
    context: contextvars.Context
    loop: asyncio.AbstractEventLoop
    awaited: asyncio.Future[None]
    result: Any = None
    error: BaseException | None = None
    over: bool = False
    gone: bool = False
    """The caller went before the end."""


class ThreadPool:
    """Runs at most `size` calls at a time, in daemon threads that are started on demand.

    Used from one event loop. `freed` is called on it whenever a call has ended.
    """

    def __init__(self, size: int, name: str, freed: Callable[[], None] = lambda: None) -> None:
        self.size = size
        self._tell = freed
        self._name = name
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._numbers = itertools.count(1)
        self._threads = 0
        self._taken = 0
        self._stuck = 0
        self._closed = False
        self._freed = asyncio.Event()

    @property
    def free(self) -> int:
        """How many calls could start now."""
        return self.size - self._taken

    @property
    def stuck(self) -> int:
        """How many threads still run for a caller that is gone."""
        return self._stuck

    async def wait_free(self) -> None:
        """Return when a slot is free. It stays so until the caller awaits something else."""
        while not self.free:
            self._freed.clear()
            await self._freed.wait()

    async def run(self, call: Callable[[], R]) -> R:
        """Call `call` in a thread, with a copy of the context variables, and return its value.

        Waits for a free slot first. Raises what the call raised, `SystemExit` and
        `KeyboardInterrupt` included, in this coroutine and nowhere else. `StopIteration` and
        `asyncio.CancelledError` cannot travel so without meaning something else; they come as the
        cause of a `RuntimeError`, so a cancellation that comes out of here is always the caller's
        own. `RuntimeError` also when the pool is closed.
        """
        await self.wait_free()
        if self._closed:
            raise RuntimeError(f"the thread pool {self._name!r} is closed")
        loop = asyncio.get_running_loop()
        job = _Job(call, contextvars.copy_context(), loop, loop.create_future())
        self._submit(job)

        try:
            await job.awaited
        finally:
            if not job.over:
                job.gone = True
                self._stuck += 1

        try:
            if job.error is not None:
                raise _presentable(job.error)
            result: R = job.result
            return result
        finally:
            # the traceback of its error holds this frame: both would live until the next garbage
            # collection
            del job

    def close(self) -> None:
        """Let idle threads end now, and each other one when its call does. Does not wait."""
        if not self._closed:
            self._closed = True
            for _ in range(self._threads):
                self._queue.put(None)

    def _submit(self, job: _Job) -> None:
        if self._taken == self._threads:
            work = threading.Thread(
                target=_work, args=(self._queue, self._end), name=self._next_name(), daemon=True
            )
            work.start()
            self._threads += 1
        self._taken += 1
        self._queue.put(job)

    def _next_name(self) -> str:
        return f"{self._name}-{next(self._numbers)}"

    def _end(self, job: _Job) -> None:
        """On the loop: the thread has come back."""
        job.over = True
        self._taken -= 1
        self._stuck -= job.gone
        self._freed.set()
        self._tell()
        if not job.awaited.done():
            job.awaited.set_result(None)


def _work(queue: SimpleQueue[_Job | None], end: Callable[[_Job], None]) -> None:
    """Do one job after another: the body of each thread."""
    while (job := queue.get()) is not None:
        try:
            job.result = job.context.run(job.call)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its result; nothing may end the thread
            job.error = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            job.loop.call_soon_threadsafe(end, job)
        del job  # an idle thread must not keep a message alive


def _presentable(error: BaseException) -> BaseException:
    """Return an exception that a coroutine can raise without being misunderstood."""
    if isinstance(error, StopIteration | asyncio.CancelledError):
        presentable = RuntimeError(f"the call raised {type(error).__name__}: {error}".rstrip(": "))
        presentable.__cause__ = error
        return presentable
    return error
