"""For tests of an application: a clock that the test advances, and a `memory://` of its own.

A test gives a `VirtualClock` to its broker. A message published with a delay of a day then waits on
a heap of timers, and `await clock.advance(timedelta(days=1))` fires one timer after the other.
After each timer everything runs that can run, handlers in threads included. When `advance` returns,
the message has been handled, and only milliseconds of real time have passed.
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
"""Seconds after the end of an `advance` within which a timer still fires.

A sum of floats is inexact by less than this.
"""
_BLIND_PASSES = 100
"""How often `settle` passes through an event loop that does not show its ready callbacks."""
_MOST_PASSES = 1_000_000
"""Passes after which a task must be polling: a tenth of them handles thousands of messages."""
_MOST_ROUNDS = 100_000
"""How many timers may be started and fire at one moment, one after the other.

More of them take seconds of real time: something starts timers for no time.
"""
_FEW = 64
"""The heap is not rebuilt for fewer cancelled timers than this."""


@dataclass(slots=True)
class _Timer:
    fire: Callable[[], None] | None
    """None after it has fired or was cancelled."""


@dataclass(slots=True, eq=False)
class _Work:
    """Work outside the event loop. `began` is in real time."""

    began: float = field(default_factory=time.monotonic)
    waited_for: bool = False


class VirtualClock:
    """A `Clock` that moves only when `advance` is called.

    `epoch` is what `now()` returns at first, in seconds. `monotonic()` starts at 0. `patience` is
    how many seconds of real time `advance` waits for work in a thread or a process, counted from
    the start of that work; then it continues without it. A clock belongs to the event loop in which
    it is first used, until that loop is closed.
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
        """Return the virtual wall-clock time in seconds. May be called from any thread."""
        return self._epoch + self._elapsed

    def monotonic(self) -> float:
        """Return how many seconds the clock was advanced. May be called from any thread."""
        return self._elapsed

    async def sleep(self, delay: float) -> None:
        """Return when the clock was advanced by `delay` seconds.

        At 0 or less, return after other tasks have run once.
        """
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
        """Cancel the block when the clock was advanced by `delay` seconds; raise `TimeoutError`.

        None means never. `asyncio.timeout` does the cancelling, so nested timeouts and
        cancellations from outside behave as they do there.
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
        """Mark work in a thread or a process; `advance` and `settle` wait for it in real time.

        Enter and leave it on the event loop.
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
        """Move the clock by `delay` (seconds or timedelta), one timer after the other.

        Timers fire in the order of their time, and those of the same time in the order in which
        they were started. After each timer, everything runs that can run. Raises `ValueError` for a
        negative delay. Raises `RuntimeError` when another task is advancing this clock, when a task
        never stops running, and when timers for no time are started again and again.
        """
        await self._advance(delay, lambda: False)

    async def advance_until(
        self, reached: Callable[[], bool], within: float | timedelta = 86_400.0
    ) -> bool:
        """Advance timer by timer until `reached()` is true, and return whether it is.

        The clock then stands at the time of the last timer that was fired. `within` is how far it
        moves at most, a day by default. Raises what `advance` raises.
        """
        return await self._advance(within, reached)

    async def _advance(self, delay: float | timedelta, reached: Callable[[], bool]) -> bool:
        length = seconds(delay)
        if length < 0:
            raise ValueError(f"advance({length:g}): a clock cannot go back")
        if self._advancing:
            raise RuntimeError(
                "this VirtualClock is already being advanced by another task; advance it from one "
                "place at a time"
            )

        self._advancing = True

        try:
            await self.settle()
            if reached():
                return True
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
                if reached():
                    return True
            self._elapsed = max(self._elapsed, end)
        finally:
            self._advancing = False
        return False

    async def settle(self) -> None:
        """Let everything run that can run, threads included, without advancing the clock.

        Raises `RuntimeError` as `advance` does.
        """
        loop = self._loop()
        await self._pass_until_idle(loop)

        while waited_for := [work for work in self._work if not work.waited_for]:
            oldest = min(waited_for, key=lambda work: work.began)
            remaining = oldest.began + self._patience - time.monotonic()
            if remaining <= 0:
                oldest.waited_for = True
                continue
            if self._ended is None or self._ended.done():
                self._ended = loop.create_future()
            await asyncio.wait({self._ended}, timeout=remaining)
            await self._pass_until_idle(loop)

    async def _pass_until_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Yield to the event loop until it has nothing to run but other tasks that wait here too.

        Each `sleep(0)` moves this task to the end of the loop's ready queue. The selector's results
        and callbacks from threads (`call_soon_threadsafe`) are queued behind it. So an empty queue
        means that nothing is left to run.
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
                    raise RuntimeError(
                        f"the event loop still has something to run after {passes:,} passes at "
                        f"virtual time {self._elapsed:g}: a task polls with sleep(0). Let it wait "
                        "for an event or on this clock"
                    )
        finally:
            self._passing -= 1

    def _start(self, delay: float, fire: Callable[[], None]) -> _Timer:
        self._loop()
        timer = _Timer(fire)
        heapq.heappush(self._timers, (self._elapsed + delay, next(self._order), timer))
        return timer

    def _stop(self, timer: _Timer) -> None:
        """Cancel a timer that has not fired.

        The heap is rebuilt without cancelled timers when they are the majority.
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
                raise RuntimeError(
                    "this VirtualClock is in use by another event loop; give each loop a clock of "
                    "its own"
                )
            self._home = loop
        return loop


def _standing_still(at: float) -> str:
    return (
        f"virtual time stands still at {at:g}: {_MOST_ROUNDS:,} timers were started one after the "
        "other for no time, or almost none. A loop waits for a time that has already come. Let it "
        "do what is due before it waits again, or wait for an event"
    )


def memory_url(name: str | None = None) -> str:
    """Return the URL of a new, empty `memory://` broker.

    `name` is the beginning of the broker's name, which logs show.
    """
    return f"memory://{name or 'test'}-{new_id()[:12]}"
