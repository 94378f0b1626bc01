"""How long to wait before something that failed is tried again.

`Backoff` is what a retry policy says of messages. `RetryWait` is for core's own loops: its wait
doubles with each failure up to a cap. It starts again only after a period of real use: a server
that accepts connections and then fails every request would otherwise be connected to again dozens
of times a second.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqcore.errors import ConfigurationError
from mqcore.rules.checks import check_seconds

if TYPE_CHECKING:
    from datetime import timedelta

    from mqcore.clock import Clock

__all__ = [
    "LONGEST_WAIT",
    "STEADY",
    "Backoff",
    "RetryWait",
    "exponential",
    "fixed",
    "linear",
]

LONGEST_WAIT = 10.0 * 365 * 86_400
"""Ten years in seconds. An exponential stops there, before a float overflows."""

STEADY = 5.0
"""Seconds of use after which a failure is the first of its series."""


class RetryWait:
    """The waits of one retry loop: between `first` and `last` seconds, with full jitter."""

    def __init__(self, first: float, last: float, clock: Clock) -> None:
        """The first failure is followed by a wait of up to `first` seconds."""
        self._first, self._last, self._clock = first, last, clock
        self._wait = first
        self._working_since: float | None = None

    def working(self) -> None:
        """Record that the work succeeds from now on."""
        self._working_since = self._clock.monotonic()

    def next(self, at_least: float = 0.0) -> float:
        """Return the seconds to wait after a failure.

        The wait, before jitter, is at least `at_least` seconds.
        """
        since, self._working_since = self._working_since, None
        if since is not None and self._clock.monotonic() - since >= STEADY:
            self._wait = self._first

        wait, self._wait = max(self._wait, at_least), min(self._wait * 2, self._last)
        return random.uniform(0, wait)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next attempt.

    `base * factor ** (attempt - 1) + step * (attempt - 1)`, at most `cap` seconds.

    With `jitter` the wait is drawn evenly from 0 to that figure ("full jitter"), so that what
    failed together does not come back together. Made by `fixed`, `linear` and `exponential`.
    """

    base: float
    step: float = 0.0
    factor: float = 1.0
    cap: float = LONGEST_WAIT
    jitter: bool = False

    def __post_init__(self) -> None:
        """Refuse figures that cannot be waited for."""
        figures = (self.base, self.step, self.factor, self.cap)
        are_numbers = all(
            isinstance(each, (int, float)) and not isinstance(each, bool) for each in figures
        )
        if not (
            are_numbers
            and all(0 <= each <= LONGEST_WAIT for each in (self.base, self.step, self.cap))
            and 1 <= self.factor < math.inf
            and isinstance(self.jitter, bool)
        ):
            raise ConfigurationError(
                f"backoff {self!r:.200} is not usable: base, step and cap are 0 seconds to ten "
                "years, the factor is a number "
                "from 1, and jitter is True or False"
            )

    def wait(self, attempt: int, chance: float = 1.0) -> float:
        """Seconds to wait after `attempt` (from 1) failed.

        `chance`, from 0 to 1, is the draw that jitter uses.
        """
        try:
            ceiling = min(
                self.cap, self.base * self.factor ** (attempt - 1) + self.step * (attempt - 1)
            )
        except OverflowError:
            ceiling = self.cap if self.base else min(self.cap, self.step * (attempt - 1))
        return ceiling * chance if self.jitter else ceiling


def fixed(delay: float | timedelta, *, jitter: bool = False) -> Backoff:
    """Wait `delay` seconds each time."""
    return Backoff(_duration("delay", delay), jitter=jitter)


def linear(
    step: float | timedelta, *, cap: float | timedelta = 3600.0, jitter: bool = True
) -> Backoff:
    """Wait `step` seconds more each time, at most `cap`."""
    each = _duration("step", step)
    return Backoff(each, step=each, cap=_duration("cap", cap), jitter=jitter)


def exponential(
    base: float | timedelta,
    *,
    cap: float | timedelta = 60.0,
    factor: float = 2.0,
    jitter: bool = True,
) -> Backoff:
    """Wait `base` seconds, then `factor` times as long each time, at most `cap`."""
    return Backoff(_duration("base", base), factor=factor, cap=_duration("cap", cap), jitter=jitter)


def _duration(name: str, value: float | timedelta) -> float:
    return check_seconds(name, value, "backoff", zero=True)
