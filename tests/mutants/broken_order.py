"""Mutants of priority and order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mutants.mutant import changed, mutant

from mqcore.spi import Delivery, Failed, Message, Outgoing
from mqcore_memory.backend import MemorySubscription
from mqcore_memory.heap import Heap
from mqcore_memory.queue import Copy, MemoryQueue
from mqcore_memory.store import MemoryStore, Touched
from mqcore_memory.waiting import Holder


class _OnLevels(MemoryQueue):
    """A queue that finds a message's level in its own way."""

    def level(self, copy: Copy) -> int:
        return copy.message.priority

    def _make_ready(self, copy: Copy) -> None:
        copy.state, copy.due = "ready", 0.0
        self.ready += 1
        self._levels[self.level(copy)].push(copy.place, copy.number)


@mutant("G8", "priority.the_highest_goes_first")
class LowestFirst(_OnLevels):
    """The lowest number goes first."""

    def level(self, copy: Copy) -> int:
        return 10 - copy.message.priority


@mutant("G8", "priority.the_highest_goes_first")
class PriorityIgnored(_OnLevels):
    """PRIORITY is claimed, and all go in the order of publishing."""

    def level(self, copy: Copy) -> int:
        return 5


@mutant("G8", "priority.the_highest_goes_first")
class TwoLevels(_OnLevels):
    """There are but a low and a high level, as in an old quorum queue."""

    def level(self, copy: Copy) -> int:
        return int(copy.message.priority >= 5)


@mutant("G8", "priority.what_was_confirmed_first_does_not_go_first")
class LearnsOfALevelLate(MemoryQueue):
    """Which levels have messages is asked only after the next claim.

    As by a consumer with a subscription for each level.
    """

    news: int | None = None

    def put(self, message: Message, now: float, delay: float = 0.0) -> None:
        super().put(message, now, delay)
        self.news = message.priority if delay == 0 else None

    def claim(self, holder: Holder, limit: int, now: float) -> list[Delivery]:
        news, self.news = self.news, None
        rest = [number for number in range(11) if number != news and self._levels[number]._items]
        if news is None or not rest:
            return super().claim(holder, limit, now)
        late, self._levels[news] = self._levels[news], Heap(self._stands)
        claimed = super().claim(holder, limit, now)
        self._levels[news] = late
        return claimed


@mutant("G8", "priority.priority_survives_a_crash_and_a_move")
class PriorityLostByRelease(_OnLevels):
    """What comes back stands among the lowest, as in a queue that returns without the priority."""

    def level(self, copy: Copy) -> int:
        return 0 if copy.redelivered else copy.message.priority


@mutant("G8", "priority.priority_survives_a_delay")
class PriorityLostByDelay(MemoryQueue):
    """What was delayed has the default priority afterwards."""

    def put(self, message: Message, now: float, delay: float = 0.0) -> None:
        super().put(replace(message, priority=5) if delay else message, now, delay)


@mutant("G8", "priority.a_moved_message_has_the_priority_that_the_move_says")
class PriorityLostByMove(MemoryStore):
    """The successor has the default priority."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        return super()._store_successor(entry, changed(out, priority=5), now, touched)


@mutant("G8", "priority.a_high_message_passes_all_that_nobody_has_yet")
class BuffersUnsorted(MemorySubscription):
    """The driver fetches up to the prefetch and hands messages on in order of arrival."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._buffer: deque[Delivery] = deque()

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        if not self._buffer:
            self._buffer.extend(await super().receive(int(self._holder.prefetch), timeout))
        return [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]


@mutant("G9", "delivery.messages_keep_their_order")
class LastInFirstOut(MemoryQueue):
    """Inside a level the order is last in, first out."""

    def _make_ready(self, copy: Copy) -> None:
        copy.place = -abs(copy.place)
        super()._make_ready(copy)


@mutant("G9", "delivery.messages_keep_their_order")
class SortsByBody(MemoryQueue):
    """Inside a level the order is not that of publishing."""

    def put(self, message: Message, now: float, delay: float = 0.0) -> None:
        super().put(message, now, delay)
        copy = self.copies[max(self.copies)]
        if copy.state == "ready":
            copy.place = copy.number ^ 3
            self._levels[message.priority].push(copy.place, copy.number)


@mutant("G8", "priority.priority_survives_a_crash_and_a_move")
class PriorityLostByTakeover(_OnLevels):
    """A dead consumer's messages come back with the highest priority."""

    def level(self, copy: Copy) -> int:
        return 10 if copy.takeovers else copy.message.priority
