"""A heap whose items may die where they lie."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, TypeVar

__all__ = ["Heap"]

_SPARE = 64
T = TypeVar("T", int, bytes)


class Heap(Generic[T]):
    """Items in the order of their keys, least first; equal keys in the order of the items.

    Nothing is ever removed from the middle: `alive(key, item)` says whether an item still counts,
    and a dead one is dropped when it comes up. So that the dead do not pile up behind a living one,
    all of them are dropped whenever the heap has doubled since the last time. Items are numbers or
    receipts: what is dead here keeps no body in memory.
    """

    __slots__ = ("_alive", "_items", "_limit")

    def __init__(self, alive: Callable[[float, T], bool]) -> None:
        self._alive: Callable[[float, T], bool] = alive
        self._items: list[tuple[float, T]] = []
        self._limit = _SPARE

    def __len__(self) -> int:
        """How many items lie here, the dead among them."""
        return len(self._items)

    def push(self, key: float, item: T) -> None:
        """Add an item.

        The same pair may be there already: whoever pops it the second time finds it dead.
        """
        items = self._items
        heappush(items, (key, item))
        if len(items) > self._limit:
            items[:] = {pair for pair in items if self._alive(*pair)}
            heapify(items)
            self._limit = 2 * len(items) + _SPARE

    def pop(self, last: float = inf) -> T | None:
        """Take out the first living item whose key is at most `last`; None when there is none."""
        items = self._items
        while items and items[0][0] <= last:
            key, item = heappop(items)
            if self._alive(key, item):
                return item
        return None

    def first(self) -> float:
        """Return the least living key, infinity when there is none."""
        items = self._items
        while items:
            key, item = items[0]
            if self._alive(key, item):
                return key
            heappop(items)
        return inf
