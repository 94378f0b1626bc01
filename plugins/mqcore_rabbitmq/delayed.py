"""What this instance has delayed and is not due yet: all that can be known of it, for the ladder's queues are everybody's."""

from collections import defaultdict
from math import ceil

__all__ = ["Delayed"]

_PARTS = 16
"""Parts of a second by which due times are counted together: as many as the ladder tells apart."""


class Delayed:
    """How many messages wait for each queue, by due time; kept small by counting in parts of a second."""

    def __init__(self) -> None:
        self._due: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def add(self, queue: str, due: float) -> None:
        """Count one more that falls due at this time."""
        self._due[queue][ceil(due * _PARTS)] += 1

    def count(self, queue: str, now: float) -> int:
        """Return how many are not due yet."""
        if queue not in self._due:
            return 0
        self._due[queue] = defaultdict(
            int, {at: number for at, number in self._due[queue].items() if at > now * _PARTS}
        )
        return sum(self._due[queue].values())

    def clear(self, queue: str) -> None:
        """Count nothing any more: the queue was purged or deleted."""
        self._due.pop(queue, None)
