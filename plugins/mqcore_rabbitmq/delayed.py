"""What this instance has delayed and is not due yet: all that can be known of it, for the ladder's queues are everybody's."""

from math import ceil

__all__ = ["Delayed"]

_FEW = 1_000
"""Due times of a queue that are not worth a look."""
_PARTS = 16
"""Parts of a second by which due times are counted together: as many as the ladder tells apart."""


class Delayed:
    """How many messages wait for each queue, by due time; kept small by counting in parts of a second."""

    def __init__(self) -> None:
        self._due: dict[str, dict[int, int]] = {}
        self._most: dict[str, int] = {}

    def add(self, queue: str, due: float, now: float) -> None:
        """Count one more that falls due at this time; those that have are forgotten whenever their number has doubled."""
        waiting = self._due.setdefault(queue, {})
        at = ceil(due * _PARTS)
        waiting[at] = waiting.get(at, 0) + 1
        if len(waiting) > self._most.get(queue, _FEW):
            self.count(queue, now)
            self._most[queue] = max(_FEW, 2 * len(self._due[queue]))

    def count(self, queue: str, now: float) -> int:
        """Return how many are not due yet."""
        waiting = {
            at: number for at, number in self._due.get(queue, {}).items() if at > now * _PARTS
        }
        if queue in self._due:
            self._due[queue] = waiting
        return sum(waiting.values())

    def clear(self, queue: str) -> None:
        """Count nothing any more: the queue was purged or deleted."""
        self._due.pop(queue, None)
        self._most.pop(queue, None)
