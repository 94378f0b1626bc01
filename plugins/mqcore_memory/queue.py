"""One queue: a plain state machine, told the time by its caller.

    put ──► delayed ──due──► ready ──claim──► leased ──remove──► gone
                               ▲                │
                               └──── release ───┘   (also when the lease ends: a takeover)

A message keeps its *place* in its level of priority while it is leased, and comes back to it. What
is delayed gets its place when it falls due. Before anything else is asked of a queue it must be
told the time, with `tick(now)`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from math import inf
from typing import Literal

from mqcore.spi import Delivery, Entry, Message, QueueSpec
from mqcore_memory.dedup import Window
from mqcore_memory.heap import Heap
from mqcore_memory.waiting import Holder, Waiters

__all__ = ["TICK", "Copy", "MemoryQueue"]

TICK = 1e-6
"""What is due within a microsecond is due: a timer for a certain moment may fire one rounding error before it.
"""
_LEVELS = 11


@dataclass(slots=True, eq=False)
class Copy:
    """One stored copy of a message.

    `place` is 0 until it has one in its level; `due` is 0 but for delayed ones.

    `noted`: whoever holds it has noted that a handler starts. `started`: one who was lost with it
    had.
    """

    number: int
    message: Message
    stored: float
    state: Literal["ready", "delayed", "leased"] = "ready"
    place: int = 0
    due: float = 0.0
    redelivered: bool = False
    takeovers: int = 0
    noted: bool = False
    started: bool = False
    receipt: bytes = b""
    until: float = 0.0
    holder: Holder | None = None


class MemoryQueue:
    """The copies in one queue, in all the orders in which they are asked for.

    `numbers` and `receipts` are the store's: no two copies in it share a number, no two claims a
    receipt. A temporary queue has an `owner`. Whoever changes a queue ends with `nudge`.
    """

    def __init__(
        self, spec: QueueSpec, window: Window, numbers: Iterator[int], receipts: Iterator[bytes]
    ) -> None:
        self.spec = spec
        self.window = window
        self.owner: Holder | None = None
        self.idle_since = 0.0
        self.consumers: set[Holder] = set()
        self.waiters = Waiters()
        self.ready = self.delayed = self.published = self.settled = self.dropped = 0
        self.copies: dict[int, Copy] = {}
        self.leases: dict[bytes, Copy] = {}
        self._numbers, self._last = numbers, 0
        self._receipts = receipts
        self._levels: list[Heap[int]] = [Heap(self._stands) for _ in range(_LEVELS)]  # by place
        self._delays: Heap[int] = Heap(self._waits)  # by due time
        self._ends: Heap[bytes] = Heap(self._holds)  # by the end of the lease
        self._expiries: Heap[int] = Heap(self._exists)  # by expiry
        self._ages: Heap[int] = Heap(
            self._exists
        )  # by the time of storing, where there is a retention

    # Time

    def tick(self, now: float) -> None:
        """Let time do its work: leases end, delays fall due in their order, old dead letters and old names go."""
        now += TICK
        while (receipt := self._ends.pop(now)) is not None:
            self.release(self.leases[receipt], lost=True)
        while (number := self._delays.pop(now)) is not None:
            copy = self.copies[number]
            self.delayed -= 1
            copy.place = next(self._numbers)
            self._stand(copy)
        if self.spec.retention is not None:
            while (number := self._ages.pop(now - self.spec.retention)) is not None:
                if (copy := self.copies[number]).state != "leased":
                    self._forget(copy)
        self.window.trim(now)

    def nudge(self) -> None:
        """Wake whoever has something to do after a change."""
        self.waiters.nudge(self.ready, self.next_event())

    def next_event(self) -> float:
        """Return when time will next change what can be claimed."""
        return min(self._delays.first(), self._ends.first())

    def alter(self, spec: QueueSpec) -> None:
        """Go by another spec from now on; what is stored keeps its place and its expiry."""
        ageless, self.spec = self.spec.retention is None, spec
        if ageless and spec.retention is not None:
            for copy in self.copies.values():
                self._ages.push(copy.stored, copy.number)

    # In

    def put(self, message: Message, now: float, delay: float = 0.0) -> None:
        """Store a message that is the queue's own.

        One that expires inside its delay is due then, to be buried.
        """
        number = self._last = next(self._numbers)
        copy = self.copies[number] = Copy(number, message, now)
        self.published += 1
        if delay > TICK:
            copy.due = (
                now + delay if message.expires_at is None else min(now + delay, message.expires_at)
            )
            self._delay(copy)
        else:
            copy.place = number
            self._stand(copy)
        self._index(copy)

    def remember(self, message: Message, now: float) -> None:
        """Know the copy that was just stored by its name, when it is published again (G1).

        Not the successor of a Move: its source went in the same step and cannot ask again, and
        another copy of the same id may.
        """
        self.window.add(message.copy_name, self._last, now)

    def evict(self) -> Message:
        """Take away the oldest ready message of the lowest priority; there must be one."""
        copy = self.copies[
            next(number for level in self._levels if (number := level.pop()) is not None)
        ]
        self._forget(copy)
        return copy.message

    # Out

    def claim(self, holder: Holder, limit: int, now: float) -> list[Delivery]:
        """Lease up to `limit` ready messages, the highest priority first, and no more than the holder may have."""
        claimed: list[Delivery] = []
        room = min(limit, holder.prefetch - holder.held)
        until = now + holder.lease
        for level in reversed(self._levels):
            while self.ready and len(claimed) < room and (number := level.pop()) is not None:
                claimed.append(self._lease(self.copies[number], holder, until, now))
        return claimed

    def sweep(self, holder: Holder, limit: int, until: float, now: float) -> list[Delivery]:
        """Lease up to `limit` expired messages, the earliest expired first."""
        swept: list[Delivery] = []
        while len(swept) < limit and (number := self._expiries.pop(now + TICK)) is not None:
            if (copy := self.copies[number]).state != "leased":
                swept.append(self._lease(copy, holder, until, now))
        return swept

    def take(self, holder: Holder, keys: Sequence[str], until: float, now: float) -> list[Delivery]:
        """Lease what these keys of `browse` name, where it is still there and not leased."""
        numbers = dict.fromkeys(_position(key)[-1] for key in keys)
        copies = [
            copy
            for number in numbers
            if (copy := self.copies.get(number)) and copy.state != "leased"
        ]
        return [self._lease(copy, holder, until, now) for copy in copies]

    def browse(self, limit: int, after: str | None, now: float) -> list[Entry]:
        """Show a page: the ready in the order of delivery, then the delayed by due time.

        The leased are not shown.
        """
        start = _position(after) if after is not None else _START
        found = ((_place_of(copy), copy) for copy in self.copies.values() if copy.state != "leased")
        page = nsmallest(
            limit, (pair for pair in found if pair[0] > start), key=lambda pair: pair[0]
        )
        return [
            Entry(
                "/".join(map(repr, place)),
                copy.message,
                copy.state,
                max(0.0, copy.due - now) if copy.due else 0.0,
            )
            for place, copy in page
        ]

    def purge(self) -> int:
        """Remove all that is not leased; the number removed."""
        gone = [copy for copy in self.copies.values() if copy.state != "leased"]
        for copy in gone:
            self._forget(copy)
        return len(gone)

    # Claims

    def release(self, copy: Copy, *, lost: bool) -> None:
        """End a claim: the message goes back to its old place, or to the rest of its delay.

        One that is lost is counted (G4).
        """
        self._let_go(copy)
        copy.redelivered = True
        copy.takeovers += lost
        copy.started, copy.noted = copy.started or (lost and copy.noted), False
        if copy.place:
            self._stand(copy)
        else:
            self._delay(copy)
        self._index(copy)

    def remove(self, copy: Copy) -> None:
        """End a claim and the copy: settled."""
        self._let_go(copy)
        del self.copies[copy.number]
        self.settled += 1

    def renew(self, receipt: bytes, until: float) -> bool:
        """Move the end of a claim; False when it has ended already."""
        copy = self.leases.get(receipt)
        if copy is None:
            return False
        copy.until = until
        self._ends.push(until, receipt)
        return True

    def note_start(self, receipt: bytes) -> bool:
        """Note that a handler starts with a claim; False when that has ended already."""
        copy = self.leases.get(receipt)
        if copy is not None:
            copy.noted = True
        return copy is not None

    def abandon(self, holder: Holder) -> None:
        """Take back all that a holder has, as after a crash."""
        for copy in [copy for copy in self.leases.values() if copy.holder is holder]:
            self.release(copy, lost=True)

    # The small steps

    def _stand(self, copy: Copy) -> None:
        copy.state = "ready"
        copy.due = 0.0
        self.ready += 1
        self._levels[min(max(copy.message.priority, 0), _LEVELS - 1)].push(copy.place, copy.number)

    def _delay(self, copy: Copy) -> None:
        copy.state = "delayed"
        self.delayed += 1
        self._delays.push(copy.due, copy.number)

    def _index(self, copy: Copy) -> None:
        if copy.message.expires_at is not None:
            self._expiries.push(copy.message.expires_at, copy.number)
        if self.spec.retention is not None:
            self._ages.push(copy.stored, copy.number)

    def _lease(self, copy: Copy, holder: Holder, until: float, now: float) -> Delivery:
        self._leave_line(copy)
        receipt = next(self._receipts)
        copy.state, copy.receipt, copy.until, copy.holder = "leased", receipt, until, holder
        holder.held += 1
        self.leases[receipt] = copy
        self._ends.push(until, receipt)
        left = None if copy.message.expires_at is None else copy.message.expires_at - now
        if left is not None and left <= TICK:
            left = min(left, 0.0)
        return Delivery(
            copy.message, receipt, left, copy.redelivered, copy.takeovers, started=copy.started
        )

    def _let_go(self, copy: Copy) -> None:
        del self.leases[copy.receipt]
        if copy.holder is not None:
            copy.holder.held -= 1
            copy.holder = None

    def _forget(self, copy: Copy) -> None:
        self._leave_line(copy)
        del self.copies[copy.number]

    def _leave_line(self, copy: Copy) -> None:
        if copy.state == "ready":
            self.ready -= 1
        else:
            self.delayed -= 1

    # Whether an item of a heap still counts

    def _stands(self, place: float, number: int) -> bool:
        copy = self.copies.get(number)
        return copy is not None and copy.state == "ready" and copy.place == place

    def _waits(self, due: float, number: int) -> bool:
        copy = self.copies.get(number)
        return copy is not None and copy.state == "delayed" and copy.due == due

    def _holds(self, until: float, receipt: bytes) -> bool:
        copy = self.leases.get(receipt)
        return copy is not None and copy.until == until

    def _exists(self, _key: float, number: int) -> bool:
        return number in self.copies


Position = tuple[int, float, float, int]
"""Where `browse` shows a copy: behind all ready ones or not, its priority and place or its due time, its number.
"""
_START: Position = (0, 0.0, 0.0, 0)
_END: Position = (3, inf, inf, 0)


def _place_of(copy: Copy) -> Position:
    if copy.state == "ready":
        return (1, float(-copy.message.priority), float(copy.place), copy.number)
    return (2, copy.due, 0.0, copy.number)


def _position(key: str) -> Position:
    """Read a key; one that nobody here has written is behind everything and names nothing."""
    try:
        line, first, second, number = key.split("/")
        return (int(line), float(first), float(second), int(number))
    except ValueError:
        return _END
