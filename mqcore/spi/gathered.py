"""Calls that wait for one thread together: the later ones join the first that has not begun.

A transaction costs as much for one message as for fifty. While the thread is busy with one, what
comes meanwhile becomes the next one, as databases do with the commits of several sessions.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

__all__ = ["Gathered", "Group"]

T = TypeVar("T")
R = TypeVar("R")


class Group(Generic[T, R]):
    """The batches of one call."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.waiting = 0
        """How many callers wait for its answer."""
        self.answer: asyncio.Task[Sequence[R]]
        self._lock = threading.Lock()
        self._is_closed = False

    def join(self, batch: Sequence[T]) -> int | None:
        """Add a batch; return the place of its first item, or None when the call has begun."""
        with self._lock:
            if self._is_closed:
                return None
            place = len(self.items)
            self.items.extend(batch)
        return place

    def close(self) -> list[T]:
        """Take no more batches, and return the items; the call begins, or never will."""
        with self._lock:
            self._is_closed = True
        return self.items


class Gathered(Generic[T, R]):
    """Makes one call of all batches that wait at the same time. Used on one event loop.

    `call(group, timeout)` does the work. It calls `group.close()` at the moment when it begins, on
    any thread, and returns a result for each item, in their order.
    """

    def __init__(
        self, call: Callable[[Group[T, R], float], Coroutine[object, object, Sequence[R]]]
    ) -> None:
        self._call = call
        self._group: Group[T, R] | None = None

    async def add(self, batch: Sequence[T], timeout: float) -> Sequence[R]:
        """Return the results of this batch, with the time limit of the call that it joins.

        That one began to wait earlier, so it ends earlier as well. A caller that is cancelled
        leaves its batch in the call, unless it was the only one.
        """
        group, place = self._group, None
        if group is not None:
            place = group.join(batch)
        if group is None or place is None:
            group = self._group = Group()
            place = group.join(batch) or 0
            group.answer = asyncio.create_task(self._answer(group, timeout))

        group.waiting += 1
        try:
            results = await asyncio.shield(group.answer)
        except asyncio.CancelledError:
            if group.waiting == 1:
                group.answer.cancel()
            raise
        finally:
            group.waiting -= 1
        return results[place : place + len(batch)]

    async def _answer(self, group: Group[T, R], timeout: float) -> Sequence[R]:
        try:
            return await self._call(group, timeout)
        finally:
            group.close()
