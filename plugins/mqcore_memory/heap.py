"""A heap whose items may become invalid while they are in it."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, TypeVar

__all__ = ["Heap"]

_SPARE = 64
T = TypeVar("T", int, bytes)


class Heap(Generic[T]):
    """Items in the order of their keys, least first; equal keys in the order of the items.

    An item is never removed from the middle. `alive(key, item)` says whether an item is still
    valid, and an invalid one is dropped when it reaches the top. All invalid items are dropped when
    the heap has doubled, so that they do not pile up below a valid one. Items are numbers or
    receipts: an invalid one keeps no body in memory.
    """

    __slots__ = ("_alive", "_items", "_limit")

    def __init__(self, alive: Callable[[float, T], bool]) -> None:
        self._alive: Callable[[float, T], bool] = alive
        self._items: list[tuple[float, T]] = []
        self._limit = _SPARE

    def __len__(self) -> int:
        """The number of items, invalid ones included."""
        return len(self._items)

    def push(self, key: float, item: T) -> None:
        """Add an item.

        The same pair may be in the heap already: the second `pop` of it finds it invalid.
        """
        items = self._items
        heappush(items, (key, item))
        if len(items) > self._limit:
            items[:] = {pair for pair in items if self._alive(*pair)}
            heapify(items)
            self._limit = 2 * len(items) + _SPARE

    def pop(self, last: float = inf) -> T | None:
        """Remove and return the first valid item whose key is at most `last`; None without one."""
        items = self._items
        while items and items[0][0] <= last:
            key, item = heappop(items)
            if self._alive(key, item):
                return item
        return None

    def first(self) -> float:
        """Return the least valid key, or infinity without one."""
        items = self._items
        while items:
            key, item = items[0]
            if self._alive(key, item):
                return key
            heappop(items)
        return inf
