"""One clock for all timers of core.

Broker, Worker and the memory backend share one `Clock`. In production it is `SystemClock`. In tests
it is `mqcore.testing.VirtualClock`, with which a delay of a day passes in milliseconds.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType

__all__ = ["Clock", "SystemClock", "seconds"]


@runtime_checkable
class Clock(Protocol):
    """What core needs from a clock. All values are in seconds."""

    real: bool
    """Whether the clock follows real time.

    If it does not, leases are renewed in the caller's own event loop.
    """

    def now(self) -> float:
        """Return the wall-clock time, in seconds since the epoch.

        It is for records that people read, and for ages that several processes compare.
        """

    def monotonic(self) -> float:
        """Return a time that never goes back, for deadlines within one process."""

    async def sleep(self, delay: float) -> None:
        """Return after `delay` seconds."""

    def timeout(self, delay: float | None) -> AbstractAsyncContextManager[object]:
        """Cancel the block after `delay` seconds, and raise `TimeoutError` from it.

        None means never. It behaves as `asyncio.timeout`.
        """

    def busy(self) -> AbstractContextManager[object]:
        """Mark work outside the event loop, in a thread or a process.

        A virtual clock waits for such work.
        """


_NOTHING = nullcontext()


class SystemClock:
    """The system's clock, and asyncio's timers."""

    real = True

    def __init__(self) -> None:
        self._alarm: _Alarm | None = None

    def now(self) -> float:
        """Return `time.time()`."""
        return time.time()

    def monotonic(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()

    async def sleep(self, delay: float) -> None:
        """Wait as `asyncio.sleep` does."""
        await asyncio.sleep(delay)

    def timeout(self, delay: float | None) -> AbstractAsyncContextManager[object]:
        """Limit a block in real time, as `asyncio.timeout` does.

        All limits of one event loop share one timer.
        """
        loop, alarm = asyncio.get_running_loop(), self._alarm
        if alarm is None or alarm.loop is not loop:
            alarm = self._alarm = _Alarm(loop)
        return _Limit(alarm, delay)

    def busy(self) -> AbstractContextManager[object]:
        """Do nothing: real time passes by itself."""
        return _NOTHING


class _Alarm:
    """The one timer of an event loop's limits.

    Almost every limit is left long before its end. A timer of its own costs more than the whole
    check around it: it is pushed on the loop's heap, cancelled and swept later. So the timer is set
    for the earliest end only, and moved when it rings.
    """

    __slots__ = ("_due", "_limits", "_timer", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._limits: dict[_Limit, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    def add(self, limit: _Limit, when: float) -> None:
        self._limits[limit] = when
        if when < self._due:
            self._set(when)

    def remove(self, limit: _Limit) -> None:
        self._limits.pop(limit, None)

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = self.loop.call_at(when, self._ring), when

    def _ring(self) -> None:
        self._timer, self._due = None, math.inf
        now = self.loop.time()

        try:
            for limit in [limit for limit, when in self._limits.items() if when <= now]:
                del self._limits[limit]
                limit.expire()
        finally:  # a future of the application may refuse to be cancelled: the others go on
            if self._limits:
                self._set(min(self._limits.values()))


class _Limit:
    """What `asyncio.timeout` does, with the loop's one timer; may be entered once."""

    __slots__ = ("_alarm", "_cancelling", "_delay", "_expired", "_task")

    def __init__(self, alarm: _Alarm, delay: float | None) -> None:
        self._alarm = alarm
        self._delay = delay
        self._expired = False
        self._task: asyncio.Task[object] | None = None

    async def __aenter__(self) -> Self:
        task = asyncio.current_task(self._alarm.loop)
        if task is None:
            raise RuntimeError("a limit of time can only be used inside of a task")
        self._task, self._cancelling = task, task.cancelling()

        if self._delay is not None:
            self._alarm.add(self, self._alarm.loop.time() + self._delay)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        self._alarm.remove(self)

        # A cancellation from outside counts for more than ours: it must not become a TimeoutError.
        if self._expired and task is not None:
            outside = task.uncancel() > self._cancelling
            if not outside and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise TimeoutError from error

    def expire(self) -> None:
        """End the block now."""
        if self._task is not None and not self._expired:
            self._expired = True
            self._task.cancel()

    def expired(self) -> bool:
        """Whether the time is over."""
        return self._expired

    def reschedule(self, when: float | None) -> None:
        """Move the end to `when`, a time of the event loop's clock; None: no end."""
        self._alarm.remove(self)
        if when is not None:
            self._alarm.add(self, when)


def seconds(value: float | timedelta) -> float:
    """Return a number of seconds or a `timedelta` as seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)
