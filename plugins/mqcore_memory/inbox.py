"""The messages that consumers with `once=` have handled."""

from collections.abc import Sequence
from heapq import heappop, heappush
from threading import Lock

__all__ = ["HandledNames"]

_STEP = 100
"""How many names whose time has ended are removed at each record."""


class HandledNames:
    """Names, each until its window has ended. Used from any thread; times are monotonic."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._until: dict[str, float] = {}
        self._order: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._until)

    def has(self, names: Sequence[str], now: float) -> list[bool]:
        """Return which names are recorded."""
        with self._lock:
            return [self._until.get(name, now) > now for name in names]

    def add(self, names: Sequence[str], now: float, window: float) -> None:
        """Record names for `window` seconds, and remove some whose time has ended."""
        with self._lock:
            for name in names:
                self._until[name] = now + window
                heappush(self._order, (now + window, name))
            for _ in range(_STEP):
                if not self._order or self._order[0][0] > now:
                    break
                until, name = heappop(self._order)
                if self._until.get(name) == until:
                    del self._until[name]
