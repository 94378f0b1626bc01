"""One queue as a state machine. Its caller passes the time.

    put ──► delayed ──due──► ready ──claim──► leased ──remove──► gone
                               ▲                │
                               └──── release ───┘   (also when the lease ends: a takeover)

A message keeps its *place* in its priority level while it is leased, and returns to it. A delayed
message gets its place when it falls due. Call `tick(now)` before any other method.
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
"""Seconds by which a message may be early: a timer may fire one rounding error too soon."""
_LEVELS = 11


@dataclass(slots=True, eq=False)
class Copy:
    """One stored copy of a message.

    `place` is 0 until the copy has a place in its level. `due` is 0 unless it is delayed. `noted`:
    its holder has noted that a handler starts. `started`: a holder that was lost had noted so.
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
    """The copies in one queue, in every order that is needed.

    `numbers` and `receipts` come from the store: no two copies share a number, and no two claims a
    receipt. A temporary queue has an `owner`. Call `nudge` after a change.
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
        self._levels: list[Heap[int]] = [
            Heap(self._is_ready_at) for _ in range(_LEVELS)
        ]  # by place
        self._delays: Heap[int] = Heap(self._is_due_at)  # by due time
        self._ends: Heap[bytes] = Heap(self._is_leased_until)  # by the end of the lease
        self._expiries: Heap[int] = Heap(self._is_stored)  # by expiry
        self._ages: Heap[int] = Heap(
            self._is_stored
        )  # by the time of storing, where there is a retention

    # Time

    def tick(self, now: float) -> None:
        """End leases, make delayed messages ready, and remove old dead letters and old names."""
        now += TICK
        while (receipt := self._ends.pop(now)) is not None:
            self.release(self.leases[receipt], lost=True)
        while (number := self._delays.pop(now)) is not None:
            copy = self.copies[number]
            self.delayed -= 1
            copy.place = next(self._numbers)
            self._make_ready(copy)
        if self.spec.retention is not None:
            while (number := self._ages.pop(now - self.spec.retention)) is not None:
                if (copy := self.copies[number]).state != "leased":
                    self._forget(copy)
        self.window.trim(now)

    def nudge(self) -> None:
        """Wake the consumers that have something to do after a change."""
        self.waiters.nudge(0 if self._is_taken else self.ready, self.next_event())

    def next_event(self) -> float:
        """Return when time will next change what can be claimed."""
        return min(self._delays.first(), self._ends.first())

    def alter(self, spec: QueueSpec) -> None:
        """Use another spec from now on. Stored messages keep their places and expiries."""
        ageless, self.spec = self.spec.retention is None, spec
        if ageless and spec.retention is not None:
            for copy in self.copies.values():
                self._ages.push(copy.stored, copy.number)

    # In

    def put(self, message: Message, now: float, delay: float = 0.0) -> None:
        """Store a message, which must belong to the queue (a copy).

        A message that expires during its delay falls due at its expiry, so that core dead-letters
        it.
        """
        number = self._last = next(self._numbers)
        copy = self.copies[number] = Copy(number, message, now)
        self.published += 1
        if delay > TICK:
            copy.due = (
                now + delay if message.expires_at is None else min(now + delay, message.expires_at)
            )
            self._make_delayed(copy)
        else:
            copy.place = number
            self._make_ready(copy)
        self._index(copy)

    def remember(self, message: Message, now: float) -> None:
        """Remember the name of the copy that was stored last, for publishes (G1).

        The successor of a Move is not remembered. Its source was removed in the same step, so the
        Move is not repeated, and another copy of the same id may come.
        """
        self.window.add(message.copy_name, self._last, now)

    def evict(self) -> Message:
        """Remove and return the oldest ready message of the lowest priority. There must be one."""
        copy = self.copies[
            next(number for level in self._levels if (number := level.pop()) is not None)
        ]
        self._forget(copy)
        return copy.message

    # Out

    def claim(self, holder: Holder, limit: int, now: float) -> list[Delivery]:
        """Lease up to `limit` ready messages, the highest priority first.

        A holder never has more than its `prefetch`.
        """
        claimed: list[Delivery] = []
        if self._is_taken:
            return claimed
        room = min(limit, holder.prefetch - holder.held)
        until = now + holder.lease
        for level in reversed(self._levels):
            while self.ready and len(claimed) < room and (number := level.pop()) is not None:
                claimed.append(self._lease(self.copies[number], holder, until, now))
        return claimed

    @property
    def _is_taken(self) -> bool:
        """Whether a claim holds on a queue of role `relay`, which gives nothing more then."""
        return self.spec.role == "relay" and bool(self.leases)

    def sweep(self, holder: Holder, limit: int, until: float, now: float) -> list[Delivery]:
        """Lease up to `limit` expired messages, the earliest expiry first."""
        swept: list[Delivery] = []
        while len(swept) < limit and (number := self._expiries.pop(now + TICK)) is not None:
            if (copy := self.copies[number]).state != "leased":
                swept.append(self._lease(copy, holder, until, now))
        return swept

    def take(self, holder: Holder, keys: Sequence[str], until: float, now: float) -> list[Delivery]:
        """Lease the copies that these keys of `browse` name, unless they are gone or leased."""
        numbers = dict.fromkeys(_position(key)[-1] for key in keys)
        copies = [
            copy
            for number in numbers
            if (copy := self.copies.get(number)) and copy.state != "leased"
        ]
        return [self._lease(copy, holder, until, now) for copy in copies]

    def browse(self, limit: int, after: str | None, now: float) -> list[Entry]:
        """Return a page: the ready messages in the order of delivery, then the delayed by due time.

        Leased messages are not shown.
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
        """Remove all copies that are not leased; return how many."""
        gone = [copy for copy in self.copies.values() if copy.state != "leased"]
        for copy in gone:
            self._forget(copy)
        return len(gone)

    # Claims

    def release(self, copy: Copy, *, lost: bool) -> None:
        """End a claim: the message returns to its old place, or to the rest of its delay.

        A lost claim counts as a takeover (G4).
        """
        self._end_lease(copy)
        copy.redelivered = True
        copy.takeovers += lost
        copy.started, copy.noted = copy.started or (lost and copy.noted), False
        if copy.place:
            self._make_ready(copy)
        else:
            self._make_delayed(copy)
        self._index(copy)

    def remove(self, copy: Copy) -> None:
        """End a claim and remove the copy: it is settled."""
        self._end_lease(copy)
        del self.copies[copy.number]
        self.settled += 1

    def renew(self, receipt: bytes, until: float) -> bool:
        """Set the end of a claim; return False when it has ended already."""
        copy = self.leases.get(receipt)
        if copy is None:
            return False
        copy.until = until
        self._ends.push(until, receipt)
        return True

    def note_start(self, receipt: bytes) -> bool:
        """Note that a handler starts with a claim; return False when it has ended already."""
        copy = self.leases.get(receipt)
        if copy is not None:
            copy.noted = True
        return copy is not None

    def abandon(self, holder: Holder) -> None:
        """Return all claims of a holder to the queue, as after a crash."""
        for copy in [copy for copy in self.leases.values() if copy.holder is holder]:
            self.release(copy, lost=True)

    # Steps

    def _make_ready(self, copy: Copy) -> None:
        copy.state = "ready"
        copy.due = 0.0
        self.ready += 1
        self._levels[min(max(copy.message.priority, 0), _LEVELS - 1)].push(copy.place, copy.number)

    def _make_delayed(self, copy: Copy) -> None:
        copy.state = "delayed"
        self.delayed += 1
        self._delays.push(copy.due, copy.number)

    def _index(self, copy: Copy) -> None:
        if copy.message.expires_at is not None:
            self._expiries.push(copy.message.expires_at, copy.number)
        if self.spec.retention is not None:
            self._ages.push(copy.stored, copy.number)

    def _lease(self, copy: Copy, holder: Holder, until: float, now: float) -> Delivery:
        self._leave_queue(copy)
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

    def _end_lease(self, copy: Copy) -> None:
        del self.leases[copy.receipt]
        if copy.holder is not None:
            copy.holder.held -= 1
            copy.holder = None

    def _forget(self, copy: Copy) -> None:
        self._leave_queue(copy)
        del self.copies[copy.number]

    def _leave_queue(self, copy: Copy) -> None:
        if copy.state == "ready":
            self.ready -= 1
        else:
            self.delayed -= 1

    # Whether an item of a heap is valid

    def _is_ready_at(self, place: float, number: int) -> bool:
        copy = self.copies.get(number)
        return copy is not None and copy.state == "ready" and copy.place == place

    def _is_due_at(self, due: float, number: int) -> bool:
        copy = self.copies.get(number)
        return copy is not None and copy.state == "delayed" and copy.due == due

    def _is_leased_until(self, until: float, receipt: bytes) -> bool:
        copy = self.leases.get(receipt)
        return copy is not None and copy.until == until

    def _is_stored(self, _key: float, number: int) -> bool:
        return number in self.copies


Position = tuple[int, float, float, int]
"""Where `browse` shows a copy: 1 for ready or 2 for delayed, then its order there, its number."""
_START: Position = (0, 0.0, 0.0, 0)
_END: Position = (3, inf, inf, 0)


def _place_of(copy: Copy) -> Position:
    if copy.state == "ready":
        return (1, float(-copy.message.priority), float(copy.place), copy.number)
    return (2, copy.due, 0.0, copy.number)


def _position(key: str) -> Position:
    """Read a key. One that `browse` did not write is after every copy and names none."""
    try:
        line, first, second, number = key.split("/")
        return (int(line), float(first), float(second), int(number))
    except ValueError:
        return _END
