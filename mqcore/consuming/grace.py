"""The time that an orderly end may take: a grace period, then a short tail (G13).

A drain has one `Grace`, shared by everything that ends in it: handlers, settlements, subscriptions
and the connection. The grace goes by the clock. The tail goes by real time, because a broker that
does not answer must not hold up the end of a process.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqcore.clock import Clock

__all__ = [
    "ANSWERED",
    "CLEANED_UP",
    "CLOSED",
    "DISCONNECTED",
    "LEFT",
    "UNSUBSCRIBED",
    "Grace",
]

CLEANED_UP, ANSWERED, UNSUBSCRIBED, CLOSED, DISCONNECTED, LEFT = 0.25, 0.5, 0.65, 0.75, 0.85, 0.95
"""Seconds after the grace by which each step has ended: handlers that were cancelled, answers to
settlements, subscriptions, the lifespan, the connection, the store of tasks. The promise is 1 s."""
_STEP = 1.0
"""Seconds that a step which waits for no handler may take while the grace is not over."""


class Grace:
    """A deadline that everything on the way out shares."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        """Begin now; `seconds` is the grace."""
        self._clock = clock
        self._until = clock.monotonic() + seconds
        self._over = asyncio.Event()
        self._ended = 0.0
        if seconds <= 0:
            self.hurry()

    @property
    def over(self) -> bool:
        """Whether the grace has ended and the tail runs."""
        if not self._over.is_set() and self._clock.monotonic() >= self._until:
            self.hurry()
        return self._over.is_set()

    def hurry(self) -> None:
        """End the grace now."""
        if not self._over.is_set():
            self._ended = asyncio.get_running_loop().time()
            self._over.set()

    @property
    def is_past(self) -> bool:
        """Whether the tail has been over for a while, so that what ends now has time again."""
        return self.over and asyncio.get_running_loop().time() > self._ended + 2 * _STEP

    def left(self, tail: float) -> float:
        """Real seconds that a step may take that has to end `tail` seconds after the grace."""
        if not self.over:
            return _STEP
        return max(self._ended + tail - asyncio.get_running_loop().time(), 0.0)

    @property
    def for_closing(self) -> float:
        """Seconds of the clock that the lifespan may take to close.

        They are the rest of the grace, and the part of the tail that is the lifespan's.
        """
        if self.over:
            return max(self.left(CLOSED), CLOSED - UNSUBSCRIBED)
        return self._until - self._clock.monotonic() + CLOSED

    async def wait(self, work: Iterable[asyncio.Future[Any]], tail: float) -> bool:
        """Wait until all of it has ended, or `tail` seconds after the grace; whether it has ended.

        Nothing is cancelled.
        """
        return await self._wait(work, tail, None)

    async def wait_for_answers(self, work: Iterable[asyncio.Future[Any]], tail: float) -> bool:
        """Wait for what the broker has to answer, as `wait`.

        A drain does not advance a virtual clock meanwhile, so there this takes a step of real time.
        """
        return await self._wait(work, tail, None if self._clock.real else _STEP)

    async def _wait(
        self, work: Iterable[asyncio.Future[Any]], tail: float, patience: float | None
    ) -> bool:
        pending = {each for each in work if not each.done()}
        if pending and not self.over:
            pending = await self._inside(pending, patience)
        if pending:
            _, pending = await asyncio.wait(pending, timeout=self.left(tail))
        return not pending

    async def _inside(
        self, pending: set[asyncio.Future[Any]], patience: float | None
    ) -> set[asyncio.Future[Any]]:
        """Wait until everything has ended, or the grace has ended, by itself or by `hurry`."""
        over = asyncio.ensure_future(self._over.wait())
        try:
            with suppress(TimeoutError):
                async with (
                    asyncio.timeout(patience),
                    self._clock.timeout(self._until - self._clock.monotonic()),
                ):
                    while pending and not over.done():
                        await asyncio.wait({over, *pending}, return_when=asyncio.FIRST_COMPLETED)
                        pending = {each for each in pending if not each.done()}
        finally:
            over.cancel()

        pending = {each for each in pending if not each.done()}
        if pending:
            self.hurry()
        return pending
