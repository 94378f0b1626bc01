"""One clock for all timers of core.

Broker, Worker and the memory backend share one `Clock`. In production it is `SystemClock`. In tests
it is `mqcore.testing.VirtualClock`, with which a delay of a day passes in milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

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


class SystemClock:
    """The system's clock, and asyncio's timers."""

    real = True

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
        """Return `asyncio.timeout(delay)`."""
        return asyncio.timeout(delay)

    def busy(self) -> AbstractContextManager[object]:
        """Do nothing: real time passes by itself."""
        return nullcontext()


def seconds(value: float | timedelta) -> float:
    """Return a number of seconds or a `timedelta` as seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)
