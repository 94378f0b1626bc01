"""Threads for blocking handlers, of which a stuck one costs its own slot and nothing else.

    loop ─ run ─► waiting ─ a free thread takes it ─► ended ─ one wake-up of the loop ─► run returns

A handler's call comes in by `run`, takes a slot, and waits for a daemon thread. The thread stores
whatever comes of it, result or exception of any class, as a plain value, and `run` returns or
raises it where it was awaited. When the caller has gone meanwhile (a time limit, a stop), the
thread cannot be stopped: the slot stays taken until it ends, what it brings is dropped, and the end
of the process does not wait for it. `ThreadPoolExecutor` would.

A switch between threads costs more than a short handler. So the loop wakes one thread, which takes
one call after the other, and wakes a second thread before it starts the first of them. And all
calls that have ended before the loop is back are reported by one wake-up of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ThreadPool", "presentable"]

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Job:
    """One call on its way through a thread. `over` and `gone` are changed on the loop only."""

    call: Callable[[], Any]
    context: contextvars.Context
    awaited: asyncio.Future[None]
    result: Any = None
    error: BaseException | None = None
    over: bool = False
    gone: bool = False
    """The caller went before the end."""


class ThreadPool:
    """Runs at most `size` calls at a time, in daemon threads that are started on demand.

    Used from one event loop. `freed` is called on it whenever calls have ended.
    """

    def __init__(self, size: int, name: str, freed: Callable[[], None] = lambda: None) -> None:
        self.size = size
        self._tell = freed
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[_Job] = deque()
        self._ended: deque[_Job] = deque()
        self._has_reported = False
        """Whether the loop will look at what has ended."""
        self._idle: list[threading.Lock] = []
        """The threads that sleep; releasing a lock wakes its thread."""
        self._is_waking = False
        """Whether a thread is being woken, which will take what waits."""
        self._numbers = itertools.count(1)
        self._threads = 0
        self._taken = 0
        self._stuck = 0
        self._closed = False
        self._freed = asyncio.Event()

    @property
    def free(self) -> int:
        """How many calls could start now."""
        return max(self.size - self._taken, 0)

    @property
    def stuck(self) -> int:
        """How many threads still run for a caller that is gone."""
        return self._stuck

    def resize(self, size: int) -> None:
        """Run at most `size` calls at a time from now on.

        Calls that run go on. Threads that are not needed any more stay idle until `close`.
        """
        self.size = size
        self._freed.set()

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
        if not self.free:
            await self.wait_free()
        if self._closed:
            raise RuntimeError(f"the thread pool {self._name!r} is closed")
        loop = self._loop = asyncio.get_running_loop()
        job = _Job(call, contextvars.copy_context(), loop.create_future())
        self._submit(job)

        try:
            await job.awaited
        finally:
            if not job.over:
                job.gone = True
                self._stuck += 1

        try:
            if job.error is not None:
                raise presentable(job.error)
            result: R = job.result
            return result
        finally:
            # the traceback of its error holds this frame: both would live until the next garbage
            # collection
            del job

    def close(self) -> None:
        """Let idle threads end now, and each other one when its call does. Does not wait."""
        self._closed = True
        while self._idle:
            self._wake_one()

    # On the loop

    def _submit(self, job: _Job) -> None:
        if self._taken == self._threads:
            # This may fail, where the system has no thread left. So the call does not wait yet.
            name = f"{self._name}-{next(self._numbers)}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
            self._threads += 1

        self._waiting.append(job)
        if not self._is_waking:
            self._wake_one()
        self._taken += 1

    def _take_ended(self) -> None:
        """Take in every call that has ended since the last time."""
        self._has_reported = False
        if not self._ended:
            return  # the last wake-up has brought it already

        while self._ended:
            self._end(self._ended.popleft())
        self._freed.set()
        self._tell()

    def _end(self, job: _Job) -> None:
        job.over = True
        self._taken -= 1
        self._stuck -= job.gone
        if not job.awaited.done():
            job.awaited.set_result(None)

    # In a thread. The interpreter makes each step on a list or deque in one piece.

    def _wake_one(self) -> None:
        with contextlib.suppress(IndexError):  # another thread has woken the last one
            lock = self._idle.pop()
            self._is_waking = True
            lock.release()

    def _work(self) -> None:
        """Do one call after another: the body of each thread."""
        lock = threading.Lock()
        lock.acquire()
        while True:
            try:
                job = self._waiting.popleft()
            except IndexError:
                if self._closed:
                    return
                self._sleep(lock)
                continue

            # One wakes the next: calls that block run side by side, and a thread that finds
            # nothing is the exception.
            if self._waiting and not self._is_waking:
                self._wake_one()
            try:
                # What was released, or ran out of time, before it began must not begin (G13).
                if not job.gone:
                    job.result = job.context.run(job.call)
            except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its result; nothing may end the thread
                job.error = error
            self._ended.append(job)
            del job  # an idle thread must not keep a message alive
            self._report()

    def _sleep(self, lock: threading.Lock) -> None:
        """Sleep until there may be a call.

        What was put in before this thread is on the list of the idle would not wake it: so it looks
        again, and leaves the list unless it is being woken already.
        """
        self._idle.append(lock)
        if self._waiting or self._closed:
            try:
                self._idle.remove(lock)
            except ValueError:
                pass
            else:
                return
        lock.acquire()
        self._is_waking = False

    def _report(self) -> None:
        """Wake the loop, unless it will come by itself to see what has ended."""
        if not self._has_reported and self._loop is not None:
            self._has_reported = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._take_ended)


def presentable(error: BaseException) -> BaseException:
    """Return an exception that a coroutine can raise without being misunderstood."""
    if isinstance(error, StopIteration | asyncio.CancelledError):
        presentable = RuntimeError(f"the call raised {type(error).__name__}: {error}".rstrip(": "))
        presentable.__cause__ = error
        return presentable
    return error
