"""What an application's tests need: a clock that they move themselves, and a `memory://` of their own.

A test gives one `VirtualClock` to the Broker. A message published with a delay of a day then waits
in a heap of timers, and `await clock.advance(timedelta(days=1))` steps from timer to timer up to
the day's end: after each one it lets everything run that has become runnable, handlers in threads
included. So when `advance` returns, the message has been handled, and milliseconds have passed.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mqcore.clock import seconds
from mqcore.messages.message import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from datetime import timedelta

__all__ = ["VirtualClock", "memory_url"]

_EPOCH = 1_735_689_600.0
"""2025-01-01 UTC."""
_NEAR = 1e-6
"""Timers due this soon (seconds) after the end of an `advance` fire in it: a sum of floats misses its goal by less.
"""
_BLIND_PASSES = 100
"""Passes of a loop that does not show what it has to run."""
_MOST_PASSES = 1_000_000
"""Passes after which something is surely spinning: a tenth of them handles thousands of messages.
"""
_MOST_ROUNDS = 100_000
"""Timers, each started after the one before had fired, after which time surely stands still: seconds of real time.
"""
_FEW = 64
"""Cancelled timers that are not worth a rebuild of the heap."""


@dataclass(slots=True)
class _Timer:
    fire: Callable[[], None] | None
    """None once it is cancelled or over."""


@dataclass(slots=True, eq=False)
class _Work:
    """Something that goes on outside the loop since `began` (real time)."""

    began: float = field(default_factory=time.monotonic)
    waited_for: bool = False


class VirtualClock:
    """A `Clock` that stands still until `advance` moves it.

    `epoch` is what `now()` says at first, in seconds; `monotonic()` starts at 0 and both move
    together. `patience` is how long, in seconds of real time since it began, `advance` waits for
    work in a thread or a process before it goes on without it. A clock belongs to the event loop
    that it is first used in, until that loop is closed.
    """

    real = False

    def __init__(self, *, epoch: float = _EPOCH, patience: float = 0.25) -> None:
        self._epoch = epoch
        self._patience = patience
        self._elapsed = 0.0
        self._timers: list[tuple[float, int, _Timer]] = []
        self._cancelled = 0
        self._order = itertools.count()
        self._work: set[_Work] = set()
        self._ended: asyncio.Future[None] | None = None
        self._passing = 0
        self._advancing = False
        self._home: asyncio.AbstractEventLoop | None = None

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch; may be called from any thread, as `monotonic` may."""
        return self._epoch + self._elapsed

    def monotonic(self) -> float:
        """Seconds that `advance` has moved this clock by."""
        return self._elapsed

    async def sleep(self, delay: float) -> None:
        """Return when `advance` has moved the clock by `delay` seconds; at 0 or less, when others have run once."""
        if delay <= 0:
            await asyncio.sleep(0)
            return
        over = asyncio.Event()
        timer = self._start(delay, over.set)
        try:
            await over.wait()
        finally:
            self._stop(timer)

    @asynccontextmanager
    async def timeout(self, delay: float | None) -> AsyncIterator[object]:
        """Cancel the block when the clock has moved by `delay` seconds, and raise `TimeoutError`; None: never.

        What a cancellation means is left to `asyncio.timeout`: nested timeouts and one from outside
        end as they do there.
        """
        loop = self._loop()
        async with asyncio.timeout(None) as limit:
            if delay is None:
                yield limit
            elif delay <= 0:
                limit.reschedule(loop.time())
                yield limit
            else:
                timer = self._start(delay, lambda: limit.reschedule(loop.time()))
                try:
                    yield limit
                finally:
                    self._stop(timer)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Mark work in a thread or a process: `advance` and `settle` wait for it in real time, once, with patience.

        Entered and left on the event loop.
        """
        work = _Work()
        self._work.add(work)
        try:
            yield
        finally:
            self._work.discard(work)
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(None)

    async def advance(self, delay: float | timedelta) -> None:
        """Move the clock by `delay` (seconds or timedelta) from timer to timer, and let run what each made runnable.

        Timers fire in the order of their time, those of one moment in the order of their start.
        Raises `RuntimeError` when another task is advancing this clock, when something in the loop
        never stops being runnable, and when one moment never ends, because a timer for no time is
        started anew each time; `ValueError` for a negative delay.
        """
        length = seconds(delay)
        if length < 0:
            msg = f"advance({length:g}): a clock is never moved back"
            raise ValueError(msg)
        if self._advancing:
            msg = (
                "this VirtualClock is already being advanced by another task; advance it from "
                "one place at a time"
            )
            raise RuntimeError(msg)
        self._advancing = True
        try:
            await self.settle()
            end = self._elapsed + length
            moment, began, rounds = self._elapsed, next(self._order), 0
            while self._timers and self._timers[0][0] <= end + _NEAR:
                due, number, timer = heapq.heappop(self._timers)
                if timer.fire is None:
                    self._cancelled -= 1
                    continue
                if due > moment + _NEAR:
                    moment, began, rounds = due, next(self._order), 0
                elif (
                    number > began and (rounds := rounds + 1) > _MOST_ROUNDS
                ):  # started in this moment, for this moment
                    raise RuntimeError(_standing_still(self._elapsed))
                self._elapsed = max(self._elapsed, due)
                fire, timer.fire = timer.fire, None
                fire()
                await self.settle()
            self._elapsed = max(self._elapsed, end)
        finally:
            self._advancing = False

    async def settle(self) -> None:
        """Let run what is runnable, threads included, and move nothing.

        Raises `RuntimeError` as `advance` does.
        """
        loop = self._loop()
        await self._pass_until_idle(loop)
        while waited_for := [work for work in self._work if not work.waited_for]:
            oldest = min(waited_for, key=lambda work: work.began)
            left = oldest.began + self._patience - time.monotonic()
            if left <= 0:
                oldest.waited_for = True
                continue
            if self._ended is None or self._ended.done():
                self._ended = loop.create_future()
            await asyncio.wait({self._ended}, timeout=left)
            await self._pass_until_idle(loop)

    async def _pass_until_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the loop go round until it has nothing to run but other tasks that stand here too.

        A step of this very task goes to the end of the ready queue with each `sleep(0)`. What the
        selector found meanwhile and what a thread brought (`call_soon_threadsafe`) stands behind
        it, so an empty queue means that nothing is left.
        """
        ready = getattr(loop, "_ready", None)
        self._passing += 1
        try:
            for passes in itertools.count(1):
                await asyncio.sleep(0)
                if ready is None:
                    if passes >= _BLIND_PASSES:
                        return
                elif len(ready) < self._passing:
                    return
                elif passes >= _MOST_PASSES:
                    msg = (
                        f"the event loop still has something to run after {passes:,} passes at "
                        "virtual time "
                        f"{self._elapsed:g}: a task polls with sleep(0). Let it wait for an "
                        "event or on this clock"
                    )
                    raise RuntimeError(msg)
        finally:
            self._passing -= 1

    def _start(self, delay: float, fire: Callable[[], None]) -> _Timer:
        self._loop()
        timer = _Timer(fire)
        heapq.heappush(self._timers, (self._elapsed + delay, next(self._order), timer))
        return timer

    def _stop(self, timer: _Timer) -> None:
        """Cancel a timer that has not fired.

        Its place in the heap is swept when most places are of such timers.
        """
        if timer.fire is None:
            return
        timer.fire = None
        self._cancelled += 1
        if self._cancelled > _FEW and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].fire is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._home is not loop:
            if self._home is not None and not self._home.is_closed():
                msg = (
                    "this VirtualClock is in use by another event loop; give each loop a clock "
                    "of its own"
                )
                raise RuntimeError(msg)
            self._home = loop
        return loop


def _standing_still(at: float) -> str:
    return (
        f"virtual time stands still at {at:g}: {_MOST_ROUNDS:,} timers one after the other were "
        "started for no time, or "
        "for next to none. A loop waits for a moment that it takes for the next and that has "
        "come already: let it do "
        "what is due before it waits again, or wait for an event"
    )


def memory_url(name: str | None = None) -> str:
    """Return the URL of a fresh, empty `memory://` broker of one's own.

    `name` begins its name, for reading logs.
    """
    return f"memory://{name or 'test'}-{new_id()[:12]}"
