"""An event loop in a daemon thread, on which `mqcore.sync` runs.

`run` passes a coroutine to the loop and waits for its result in the caller's thread. `close` runs a
last coroutine, lets the calls of other threads end, and ends the thread. After a close or a fork, a
call gets an error and never waits for a thread that does not exist.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
import weakref
from collections import deque
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from mqcore.connection.forks import close_in_children
from mqcore.errors import ConfigurationError, ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["LoopThread"]

R = TypeVar("R")
_LAST_CALLS = 1.0
"""Seconds that calls of other threads get to end after the last coroutine."""


class LoopThread:
    """The thread of one event loop.

    The first call starts it. `close` ends it, and so does the garbage collection of this object.
    """

    def __init__(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`last` is what `close` runs on the loop. It must hold no reference to this object."""
        self._last = last
        self._lock = threading.RLock()  # a signal handler may close at any point of the main thread
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()
        self._stopped: Future[None] = Future()
        self._closing = False
        self._posted: deque[Callable[[], object]] = deque()
        self._is_waking = False

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on the loop, and return its result or raise its error.

        Ctrl-C cancels it. After `close` it runs on a temporary loop, so that the closed object can
        raise its own error. Raises `ConfigurationError` in a thread that runs an event loop, and
        `ConnectionLost` when the thread ends before the call or does not exist after a fork.
        """
        future: Future[R] | None = None

        try:
            _refuse_to_block_a_loop()
            with self._lock:
                if not self._closing:
                    future = asyncio.run_coroutine_threadsafe(work, self._running())
            if future is not None:
                return future.result()
            self._stopped.exception()  # waits for the end
            with self._lock:
                return asyncio.run(work)
        except CancelledError:
            raise ConnectionLost(
                "this broker was closed while the call waited; connect a new one"
            ) from None
        finally:
            if future is None:
                work.close()
            else:
                future.cancel()

    def submit(self, work: Coroutine[Any, Any, R]) -> Future[R]:
        """Start a coroutine on the loop. The caller waits, in whatever way its thread can.

        Raises `ConnectionLost` after `close` and after a fork.
        """
        with self._lock:
            if not self._closing:
                return asyncio.run_coroutine_threadsafe(work, self._running())
        work.close()
        raise ConnectionLost("this broker was closed; connect a new one")

    def post(self, call: Callable[[], object]) -> None:
        """Call a function on the loop soon, without waiting; a burst of calls wakes the loop once.

        Calls are made in their order. Raises `ConnectionLost` after the end of the thread.
        """
        self._posted.append(call)
        if self._is_waking:
            return
        with self._lock:
            loop = self._running()
            self._is_waking = True
            try:
                loop.call_soon_threadsafe(self._make_posted_calls)
            except RuntimeError:
                raise ConnectionLost("this broker is closed; connect a new one") from None

    def _make_posted_calls(self) -> None:
        """Make the calls that wait. The flag goes first: what is posted from now on wakes again.

        Each is a call of the loop's own, so an error of one is reported and ends no other.
        """
        self._is_waking = False
        loop = asyncio.get_running_loop()
        for _ in range(len(self._posted)):
            loop.call_soon(self._posted.popleft())

    def close(self) -> None:
        """Run the last coroutine and end the thread. Raises the coroutine's error.

        May be called again.
        """
        if sys.is_finalizing() or self._left_behind():
            return
        _refuse_to_block_a_loop()
        with self._lock:
            if not self._closing:
                loop = self._running()
                self._closing = True
                loop.call_soon_threadsafe(self._stop.set)
        self._stopped.result()

    def _running(self) -> asyncio.AbstractEventLoop:
        if sys.is_finalizing() or self._left_behind():
            raise ConnectionLost(
                "the thread of this broker does not exist after a fork or at the interpreter's "
                "exit; connect a broker in each process"
            )

        if self._loop is None:
            self._loop = loop = asyncio.new_event_loop()
            close_in_children(loop)
            arguments = (loop, self._last, self._stop, self._stopped)
            self._thread = threading.Thread(
                target=_serve, args=arguments, name="mqcore-sync", daemon=True
            )
            self._thread.start()
            weakref.finalize(
                self, _abandon, loop, self._stop, self._stopped, self._thread
            ).atexit = False

        return self._loop

    def _left_behind(self) -> bool:
        return self._thread is not None and not self._thread.is_alive() and not self._stopped.done()


def _refuse_to_block_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError(
        "mqcore.sync blocks, and an event loop is running in this thread: use mqcore.Broker here, "
        "or call from a thread without an event loop"
    )


def _serve(
    loop: asyncio.AbstractEventLoop,
    last: Callable[[], Coroutine[Any, Any, None]],
    stop: asyncio.Event,
    stopped: Future[None],
) -> None:
    """Serve calls until `stop`, run the last coroutine, and set its result. Runs in the thread."""
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(_until(stop, last))
    except BaseException as error:  # noqa: BLE001 - the caller of close gets it
        stopped.set_exception(error)
    else:
        stopped.set_result(None)


async def _until(stop: asyncio.Event, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await stop.wait()
    try:
        await last()
    finally:
        if calls := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(calls, timeout=_LAST_CALLS)


def _abandon(
    loop: asyncio.AbstractEventLoop,
    stop: asyncio.Event,
    stopped: Future[None],
    thread: threading.Thread,
) -> None:
    """Stop the thread of an object that was garbage collected.

    This may run in any thread, so it does not wait for the end.
    """
    if thread.is_alive() and not stop.is_set() and not stopped.done():
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)
        warnings.warn(
            "a Broker of mqcore.sync was never closed; use `with`", ResourceWarning, stacklevel=2
        )
