"""Publishing, leasing and settling, the same on both databases.

Each call is one transaction, so a Move is one step: the successor is there exactly when its source
is gone (G3).
"""

import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import NamedTuple

from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    Clock,
    Delivery,
    Entry,
    ErrorKind,
    Failed,
    Move,
    Outcome,
    Outgoing,
    Release,
    Settled,
    Settlement,
    Stored,
    overflowed,
)
from mqcore_sql import statements as sql
from mqcore_sql.database import Database
from mqcore_sql.options import SqlOptions
from mqcore_sql.queues import QueueRow, Queues
from mqcore_sql.records import (
    Claimed,
    Row,
    delivery_of,
    encode,
    lease_of,
    name_of,
    rank_of,
    read,
)
from mqcore_sql.rotation import is_due, lengthen, rotate

__all__ = ["Consumer", "Store", "refusal", "row_of"]

_DUPLICATE = Stored(duplicate=True)
_TOUCH = 60.0
"""Seconds between two notes that a temporary queue has a consumer."""
_FRESH = 2.0
"""Seconds for which the period that was read is not read again."""
_RANKS = range(11)
_FOREVER = 1e12
"""Seconds; what ends later than that never ends, and would not fit into a column."""


class Consumer:
    """One consumer: its queue as it was when it subscribed, and its lease in microseconds."""

    def __init__(self, queue: QueueRow, lease: float) -> None:
        self.queue = queue
        self.lease = round(lease * 1e6)
        self.touched = 0.0


class _Planned(NamedTuple):
    """A message of a batch that may be stored, and its position in the batch."""

    position: int
    queue: QueueRow
    row: Row
    counts: bool
    """Whether it is refused when its queue is full: publishes without a delay are."""


class Store:
    """The messages in one database."""

    def __init__(
        self, database: Database, queues: Queues, options: SqlOptions, clock: Clock
    ) -> None:
        self._db = database
        self._clock = clock
        self._queues = queues
        self._options = options
        self._window = self._period = round(options.dedup_window * 1e6)
        self._looked = -inf
        """When `next_events` was asked."""
        self.is_dirty = False
        """Whether this connection has changed something since `next_events` was asked."""

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[None]:
        """Return a context for one transaction."""
        with self._db.transaction(durable=durable):
            yield
        self.is_dirty = True

    # In

    def publish(self, batch: Sequence[Outgoing]) -> list[Outcome]:
        """Store a batch; return an outcome for each item."""
        self._db.check_room()
        with self.writing():
            targets = self._targets(batch)
            if self._is_over():
                self._queues.epoch, self._period = rotate(self._db, self._period)
            outcomes: list[Outcome] = [STORED] * len(batch)
            planned: list[_Planned] = []

            for index, out in enumerate(batch):
                queue = self._target(out, targets)
                if isinstance(queue, Failed):
                    outcomes[index] = queue
                else:
                    planned.append(self._plan(index, out, queue))

            accepted = self._accept(planned, outcomes)
            stored = self._insert([one.row for one in accepted])
            for number, one in enumerate(accepted):
                if number not in stored:
                    outcomes[one.position] = _DUPLICATE
            self._evict(one.queue for one in accepted if one.counts)
            return outcomes

    def prepare(self) -> None:
        """Let other processes know our window for deduplication."""
        self._period = lengthen(self._db, self._window)

    def forget_names(self) -> None:
        """Empty a table of old names when its time has come, also without a publish."""
        # An idle process has just read the period, together with what is due next.
        has_read = self._clock.monotonic() - self._looked < _FRESH
        if self._is_over() if has_read else is_due(self._db, self._period):
            with self.writing(durable=False):
                self._queues.epoch, self._period = rotate(self._db, self._period)

    def _is_over(self) -> bool:
        """Return whether the period that was read last has ended."""
        return self._queues.epoch < self._queues.now // self._period

    def _plan(self, index: int, out: Outgoing, queue: QueueRow) -> _Planned:
        row = row_of(out, queue, name_of(out.message))
        counts = queue.max_length is not None and out.message.hop == 0 and row.delay == 0
        return _Planned(index, queue, row, counts)

    def _accept(self, planned: Sequence[_Planned], outcomes: list[Outcome]) -> list[_Planned]:
        """Return what is stored unless its name is known; write the outcomes of the rest."""
        full = {
            one.queue.id: one.queue
            for one in planned
            if one.counts and one.queue.overflow == "reject"
        }
        room, known = self._room(full), self._known(planned, full)
        accepted: list[_Planned] = []
        names: set[tuple[int, bytes | None]] = set()

        for number, one in enumerate(planned):
            name = one.queue.id, one.row.name
            if name in names or number in known:
                outcomes[one.position] = _DUPLICATE  # also in a full queue (G1)
                continue
            if one.counts and room.get(one.queue.id, 1) <= 0:
                outcomes[one.position] = Failed(
                    ErrorKind.FULL,
                    f"queue {one.queue.name!r} holds max_length={one.queue.max_length:,} ready "
                    "messages",
                )
                continue
            names.add(name)
            accepted.append(one)
            if one.queue.id in room and one.row.delay == 0:
                room[one.queue.id] -= 1
        return accepted

    def _room(self, queues: dict[int, QueueRow]) -> dict[int, int]:
        """Return how many more messages full or nearly full queues take."""
        if queues:
            self._db.query(sql.LOCK_QUEUES, ids=list(queues))
        return {
            number: (queue.max_length or 0) - self._ready(queue, queue.max_length or 0)
            for number, queue in queues.items()
        }

    def _ready(self, queue: QueueRow, limit: int) -> int:
        self._db.change(sql.END_LEASES, queue=queue.id)
        return int(self._db.query(sql.COUNT_READY, queue=queue.id, limit=limit)[0][0])

    def _known(self, planned: Sequence[_Planned], queues: dict[int, QueueRow]) -> set[int]:
        """Return the numbers of those whose names these queues know."""
        asked = [
            (number, (one.queue.id, one.row.name or b"", 0))
            for number, one in enumerate(planned)
            if one.queue.id in queues
        ]
        found = self._db.known([name for _, name in asked], self._window) if asked else set()
        return {asked[index][0] for index in found}

    def _insert(self, rows: Sequence[Row]) -> set[int]:
        stored = self._db.store(rows, self._queues.epoch % 2, self._window)
        if self._db.counts_totals:
            self._add(sql.PUBLISHED, [rows[index].queue for index in stored])
        return stored

    def _add(self, statement: str, queues: Sequence[int]) -> None:
        for queue in set(queues):
            self._db.change(statement, queue=queue, number=queues.count(queue))

    def _evict(self, queues: Iterator[QueueRow] | Sequence[QueueRow]) -> None:
        """Move what a queue with `overflow="dead_letter"` holds beyond its bound (G12)."""
        over = {queue.id: queue for queue in queues if queue.overflow == "dead_letter"}
        if over:
            self._db.query(sql.LOCK_QUEUES, ids=list(over))

        for queue in over.values():
            # more than a batch and its bound: what was redriven beyond it goes as well
            limit = (queue.max_length or 0) + 1_000
            excess = self._ready(queue, limit) - (queue.max_length or 0)
            for rank in reversed(_RANKS):
                if excess <= 0:
                    break
                excess -= self._evict_rank(queue, rank, excess)

    def _evict_rank(self, queue: QueueRow, rank: int, limit: int) -> int:
        rows = self._db.query(sql.WORST, queue=queue.id, rank=rank, limit=limit)
        if not rows:
            return 0
        target = self._queues.targets([queue.dead_letter] if queue.dead_letter else [])
        letters = [
            overflowed(read(meta, body, rank, expires)[0], queue.name, self._clock.now())
            for _, _, meta, body, expires in rows
        ]
        for dead_letter in target.values():
            outs = [Outgoing(dead_letter.name, letter) for letter in letters]
            self._insert([row_of(out, dead_letter, None) for out in outs])
        self._db.change(sql.DELETE, ids=[row[0] for row in rows])
        return len(rows)

    # Out

    def claim(self, consumer: Consumer, limit: int) -> list[Delivery]:
        """Lease up to `limit` ready messages. Raises `QueueNotFound` when the queue is gone."""
        queue = consumer.queue
        self._forget_old(queue)
        if queue.role == "temporary":
            self._touch(consumer)

        token, sent = _new_token(), self._clock.monotonic()
        alone, rows = queue.role == "relay", []
        if limit > 0:
            rows = self._db.claim(queue.id, limit, token, consumer.lease, alone=alone)
        if not rows:
            self._queues.exists(queue)
            return []
        self.is_dirty = True
        age = self._clock.monotonic() - sent
        return [delivery_of(row, token, age) for row in rows]

    def take(self, name: str, keys: Sequence[str], lease: float) -> list[Delivery]:
        """Lease the entries with these keys. Raises `QueueNotFound`."""
        queue = self._queues.get(name)
        positions = [_position(key) for key in keys]
        ids = [position[-1] for position in positions if position is not None]
        return self._lease(sql.TAKE, queue, lease, ids=ids)

    def sweep(self, name: str, limit: int, lease: float) -> list[Delivery]:
        """Lease expired messages. Raises `QueueNotFound`."""
        return self._lease(sql.SWEEP, self._queues.get(name), lease, limit=limit)

    def _lease(
        self, statement: str, queue: QueueRow, lease: float, **values: object
    ) -> list[Delivery]:
        self._forget_old(queue)
        token, until = _new_token(), round(lease * 1e6)
        sent = self._clock.monotonic()
        with self.writing(durable=False):
            self._db.change(sql.END_LEASES, queue=queue.id)
            rows = self._db.query(statement, queue=queue.id, token=token, lease=until, **values)
        claimed = sorted(map(Claimed._make, rows), key=lambda row: (row.rank, row.place, row.id))
        age = self._clock.monotonic() - sent
        return [delivery_of(row, token, age) for row in claimed]

    def _touch(self, consumer: Consumer) -> None:
        now = self._clock.monotonic()
        if now - consumer.touched > _TOUCH or not consumer.touched:
            consumer.touched = now
            with self.writing(durable=False):
                self._db.change(sql.TOUCH, queue=consumer.queue.id)

    def _forget_old(self, queue: QueueRow) -> None:
        """Remove the dead letters that are older than the queue's retention."""
        if queue.retention is None:
            return
        age = round(queue.retention * 1e6)
        while self._db.query(sql.HAS_OLD, queue=queue.id, age=age):
            with self.writing(durable=False):
                self._db.change(sql.FORGET_OLD, queue=queue.id, age=age)

    # Settling

    def settle(self, queue: QueueRow, batch: Sequence[Settlement]) -> list[Settled]:
        """Settle a batch in its order; return an outcome for each item."""
        with self.writing():
            leases = [lease_of(item.receipt) for item in batch]
            held = self._held(sql.LOCK, queue, leases)
            moves = [item.to for item in batch if isinstance(item, Move)]
            targets = self._targets(moves)
            outcomes: list[Settled] = []
            gone: list[int] = []
            released: list[int] = []
            successors: list[tuple[int, Row, bytes]] = []

            for item, lease in zip(batch, leases, strict=True):
                if lease not in held:
                    outcomes.append(STALE)
                    continue
                if isinstance(item, Move):
                    target = self._target(item.to, targets)
                    if isinstance(target, Failed):
                        outcomes.append(target)  # the source stays leased (G3)
                        continue
                    name = name_of(item.to.message)
                    successors.append((lease[0], row_of(item.to, target, None), name))
                held.discard(lease)
                (released if isinstance(item, Release) else gone).append(lease[0])
                outcomes.append(DONE)

            self._store_successors(successors)
            if gone:
                self._db.change(sql.DELETE, ids=gone)
            if released:
                self._db.change(sql.RELEASE, ids=released)
            if self._db.counts_totals:
                self._add(sql.SETTLED, [queue.id] * len(gone))
            return outcomes

    def _store_successors(self, successors: Sequence[tuple[int, Row, bytes]]) -> None:
        """Store successors, except those that this very source has already (G1)."""
        if not successors:
            return
        names = [(row.queue, name, source) for source, row, name in successors]
        known = self._db.known(names, self._window)
        self._insert([row for index, (_, row, _) in enumerate(successors) if index not in known])

    def renew(self, name: str, receipts: Sequence[bytes], lease: float) -> list[bool]:
        """Extend claims; return False for each that has ended."""
        return self._mark(sql.RENEW, name, receipts, lease=round(lease * 1e6))

    def note_start(self, name: str, receipts: Sequence[bytes]) -> list[bool]:
        """Note that handlers start; return False for each claim that has ended."""
        return self._mark(sql.NOTE_START, name, receipts)

    def give_back(self, name: str, receipts: Sequence[bytes]) -> list[bool]:
        """Return claims with the marks that the messages had."""
        return self._mark(sql.GIVE_BACK, name, receipts)

    def lose(self, name: str, receipts: Sequence[bytes]) -> list[bool]:
        """Return claims as taken over."""
        return self._mark(sql.LOSE, name, receipts)

    def held(self, queue: QueueRow, receipts: Sequence[bytes]) -> Collection[bytes]:
        """Return the claims that hold."""
        leases = [lease_of(receipt) for receipt in receipts]
        held = self._held(sql.HELD, queue, leases)
        return [receipt for receipt, lease in zip(receipts, leases, strict=True) if lease in held]

    def _mark(
        self, statement: str, name: str, receipts: Sequence[bytes], **values: int
    ) -> list[bool]:
        leases = [lease_of(receipt) for receipt in receipts]
        with self.writing(durable=False):
            queue = self._queues.targets([name]).get(name)
            held = set() if queue is None else self._held(sql.LOCK, queue, leases)
            if held:
                self._db.change(statement, ids=[number for number, _ in held], **values)
        return [lease in held for lease in leases]

    def _held(
        self, statement: str, queue: QueueRow, leases: Sequence[tuple[int, int]]
    ) -> set[tuple[int, int]]:
        """Return those of the leases that are valid: number and token."""
        ids = [number for number, _ in leases]
        rows = self._db.query(statement, queue=queue.id, ids=ids) if ids else []
        return set(leases) & {(number, token) for number, token in rows}

    # Looking

    def next_events(self, names: Sequence[str]) -> dict[str, float]:
        """Return for each existing queue in how many seconds it next has something to claim.

        0 or less is: now. Infinite is: not before something is published or released.
        """
        found = {}
        self._looked = self._clock.monotonic()
        for name, now, epoch, place, until in self._db.query(sql.NEXT_EVENTS, queues=list(names)):
            self._queues.now, self._queues.epoch = now, epoch
            moments = [moment for moment in (place, until) if moment is not None]
            found[name] = min(((moment - now) / 1e6 for moment in moments), default=float("inf"))
        return found

    def browse(self, name: str, limit: int, after: str | None) -> list[Entry]:
        """Return a page: what is ready in the order of delivery, then what is delayed by due time.

        Raises `QueueNotFound`.
        """
        queue = self._queues.get(name)
        self._forget_old(queue)
        start = (0, -1, -1, 0) if after is None else _position(after)
        if start is None:
            return []
        with self.writing(durable=False):
            self._db.change(sql.END_LEASES, queue=queue.id)
            entries: list[Entry] = []
            for state, statement in enumerate((sql.BROWSE_READY, sql.BROWSE_DELAYED)):
                if start[0] > state or len(entries) >= limit:
                    continue
                _, rank, place, number = start if start[0] == state else (state, -1, -1, 0)
                where = {"rank": rank, "place": place, "id": number}
                left = limit - len(entries)
                rows = self._db.query(statement, queue=queue.id, limit=left, **where)
                entries += [_entry(state, *row) for row in rows]
        return entries

    def purge(self, name: str) -> int:
        """Remove what is not leased, also in the quarantine. Raises `QueueNotFound`."""
        with self.writing():
            ids = [queue.id for queue in self._queues.family(name)]
            return self._db.change(sql.PURGE, ids=ids)

    # Targets

    def _targets(self, outs: Sequence[Outgoing]) -> dict[str, QueueRow]:
        names = {out.to for out in outs if isinstance(out.to, str)}
        return self._queues.targets(names) if names else {}

    def _target(self, out: Outgoing, targets: dict[str, QueueRow]) -> QueueRow | Failed:
        return refusal(out, targets, self._options, self._db.product)


def refusal(
    out: Outgoing, targets: dict[str, QueueRow], options: SqlOptions, product: str
) -> QueueRow | Failed:
    """Return the queue of a message, or why it cannot be stored."""
    if not isinstance(out.to, str):
        return Failed(
            ErrorKind.PERMANENT,
            f"{product} does not route: {out.to} has to be resolved to queues first",
        )
    if out.delay > options.max_delay:
        return Failed(
            ErrorKind.PERMANENT,
            f"a delay of {out.delay:g} s is above max_delay={options.max_delay:g} s",
        )
    if (queue := targets.get(out.to)) is None:
        return Failed(
            ErrorKind.NOT_FOUND, f"there is no queue {out.to!r} in this {product} database"
        )
    return queue


def row_of(out: Outgoing, queue: QueueRow, name: bytes | None) -> Row:
    """Return a message as it is stored; the queue's ttl is for publishes only (G6)."""
    message = out.message
    ttl = out.ttl
    if queue.ttl is not None and not message.hop:
        ttl = queue.ttl if ttl is None else min(ttl, queue.ttl)
    expires = message.expires_at if ttl is None else None
    return Row(
        queue.id,
        rank_of(message.priority),
        max(round(out.delay * 1e6), 0),
        None if ttl is None else round(min(ttl, _FOREVER) * 1e6),
        None if expires is None else round(min(expires, _FOREVER) * 1e6),
        name,
        encode(message),
        bytes(message.body),
    )


def _new_token() -> int:
    """Return a fencing token; it is random, so that no database gives it out twice."""
    return secrets.randbits(62) + 1


def _entry(
    state: int,
    number: int,
    rank: int,
    place: int,
    expires: int | None,
    meta: str,
    body: bytes,
    now: int,
) -> Entry:
    message, _ = read(meta, body, rank, expires)
    key = f"{state}/{rank}/{place}/{number}"
    if state == 0:
        return Entry(key, message)
    return Entry(key, message, "delayed", max((place - now) / 1e6, 0.0))


def _position(key: str) -> tuple[int, int, int, int] | None:
    """Read a key of `browse`; None for other text."""
    try:
        state, rank, place, number = map(int, key.split("/"))
    except ValueError:
        return None
    return state, rank, place, number
