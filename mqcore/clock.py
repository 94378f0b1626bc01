"""One clock for every timer of core.

Broker, Worker and the memory backend are given the same `Clock`. In production it is `SystemClock`;
in an application's tests it is `mqcore.testing.VirtualClock`, and a delay of a day passes in
milliseconds.
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
    """What core asks of time. All values are seconds."""

    real: bool
    """Whether real time drives it.

    Where it does not, leases are renewed in the caller's own loop.
    """

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch: for records that people read, and for ages across processes."""

    def monotonic(self) -> float:
        """Time that never steps back: for every deadline inside one process."""

    async def sleep(self, delay: float) -> None:
        """Return after `delay` seconds."""

    def timeout(self, delay: float | None) -> AbstractAsyncContextManager[object]:
        """Cancel the block after `delay` seconds (None: never) and raise `TimeoutError` from it, as `asyncio.timeout` does."""

    def busy(self) -> AbstractContextManager[object]:
        """Mark work that goes on outside the event loop (a thread, a process), so that a virtual clock waits for it."""


class SystemClock:
    """The machine's clock and asyncio's own timers."""

    real = True

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """`time.monotonic()`."""
        return time.monotonic()

    async def sleep(self, delay: float) -> None:
        """`asyncio.sleep`."""
        await asyncio.sleep(delay)

    def timeout(self, delay: float | None) -> AbstractAsyncContextManager[object]:
        """`asyncio.timeout`."""
        return asyncio.timeout(delay)

    def busy(self) -> AbstractContextManager[object]:
        """Real time passes by itself: nothing to mark."""
        return nullcontext()


def seconds(value: float | timedelta) -> float:
    """Seconds as a float from what a user may pass for a duration."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)
