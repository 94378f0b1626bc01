"""A thread that runs the calls of an event loop, one after the other.

A call that the thread has not begun can be withdrawn: it certainly had no effect. A call that has
begun cannot be stopped. Its caller goes on when it is cancelled or its time ends, and the call is
undone when it ends.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mqcore.errors import ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.clock import Clock

__all__ = ["CallNotBegun", "CallNotEnded", "CallThread"]

R = TypeVar("R")


class CallNotBegun(TimeoutError):
    """The thread had not begun the call when its time ended: it had no effect and never will."""


class CallNotEnded(TimeoutError):
    """The thread was running the call when its time ended: it may have had an effect."""


class _Call(Generic[R]):
    """One call on its way through the thread. `lock` guards `state` and `is_abandoned`."""

    def __init__(self, work: Callable[[], R], undo: Callable[[R], object] | None) -> None:
        self.work, self.undo = work, undo
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self.lock = threading.Lock()
        self.state = "waiting"  # running, ended, withdrawn
        self.is_abandoned = False
        self.result: R
        self.error: BaseException | None = None
        self.cleanup = ExitStack()

    def run(self) -> None:
        """Do the work; on the thread."""
        with self.lock:
            if self.state == "withdrawn":
                return
            self.state = "running"

        try:
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 - it is the answer of the call
            self.error = error

        with self.lock:
            self.state = "ended"
            must_undo = self.is_abandoned
        if must_undo:
            self.run_undo()
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._end)

    def run_undo(self) -> None:
        """Take back the effect of a call whose caller has gone; on the thread."""
        if self.undo is not None and self.error is None:
            with suppress(Exception):  # a lease ends by itself
                self.undo(self.result)

    def _end(self) -> None:
        self.cleanup.close()
        if not self.ended.done():
            self.ended.set_result(None)


class CallThread:
    """One daemon thread that runs calls in their order.

    `clock` gets notice that work goes on outside of the loop, so that a virtual clock waits for it.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self._clock = clock
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._is_closed = False
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def run(
        self,
        work: Callable[[], R],
        *,
        timeout: float | None = None,
        undo: Callable[[R], object] | None = None,
    ) -> R:
        """Run `work` on the thread and return its result, or raise its exception.

        Raises `CallNotBegun` or `CallNotEnded` after `timeout` seconds, and `ConnectionLost` after
        `close`. When the caller is cancelled, or its time ends, a call that has not begun never
        begins. For one that has begun, `undo` runs on the thread with its result.
        """
        if self._is_closed:
            raise ConnectionLost("the connection is closed; open it first")
        call = _Call(work, undo)
        call.cleanup.enter_context(self._clock.busy())
        self._calls.put(call.run)

        try:
            async with asyncio.timeout(timeout):  # a thread works in real time
                await call.ended
        except BaseException as error:
            has_begun = self._abandon(call)
            if not isinstance(error, TimeoutError):
                raise
            if has_begun:
                raise CallNotEnded("the broker has not answered in time") from None
            raise CallNotBegun("the broker was busy, and the call was not begun") from None

        if call.error is not None:
            raise call.error
        return call.result

    def post(self, work: Callable[[], object]) -> asyncio.Future[None]:
        """Run `work` on the thread in any case, and ignore its result and its exception.

        The future is done when it has ended. Cancelling the future does not withdraw the work.
        """
        call = _Call(work, None)
        call.cleanup.enter_context(self._clock.busy())
        self._calls.put(call.run)
        return call.ended

    def close(self) -> None:
        """Take no more calls. The thread ends after those that it has."""
        if not self._is_closed:
            self._is_closed = True
            self._calls.put(None)

    def _abandon(self, call: _Call[Any]) -> bool:
        """Withdraw a call, or see to its undoing; return whether it had begun."""
        with call.lock:
            state = call.state
            if state == "waiting":
                call.state = "withdrawn"
            call.is_abandoned = True

        if state == "waiting":
            call.cleanup.close()
        elif state == "ended":  # its caller was cancelled in the moment of the answer
            self._calls.put(call.run_undo)
        return state != "waiting"

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # an idle thread must not keep a message alive
