"""How long to wait before something that failed is tried again.

The wait doubles with each failure up to a cap. It starts again only after a period of real use: a
server that accepts connections and then fails every request would otherwise be connected to again
dozens of times a second.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mqcore.clock import Clock

__all__ = ["STEADY", "RetryWait"]

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
