"""The memory store compared with a naive model: one list of copies, searched at each step."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    Ack,
    Death,
    Delivery,
    ErrorKind,
    Failed,
    Message,
    Move,
    Outcome,
    Outgoing,
    QueueSpec,
    Reason,
    Release,
    Settled,
    Settlement,
    Stored,
)
from mqcore_memory.store import MemoryStore
from mqcore_memory.waiting import Holder

WALL, LEASE, WINDOW, RETENTION = 1_000.0, 8.0, 12.0, 25.0
SPECS = {
    spec.name: spec
    for spec in [
        QueueSpec(name="plain", dead_letter="dlq", ttl=15.0),
        QueueSpec(name="refuses", max_length=3),
        QueueSpec(name="spills", max_length=2, overflow="dead_letter", dead_letter="dlq"),
        QueueSpec(name="dlq", role="dead_letter", retention=RETENTION),
    ]
}


@dataclass(eq=False)
class Copy:
    queue: str
    message: Message
    number: int
    stored: float
    place: int | None
    due: float = 0.0
    lease: tuple[int, float] | None = None  # whose, and until when
    redelivered: bool = False
    takeovers: int = 0

    @property
    def order(self) -> tuple[float, ...]:
        return (
            (0, -self.message.priority, self.place)
            if self.place is not None
            else (1, self.due, self.number)
        )


@dataclass
class Model:
    now: float = 0.0
    numbers: int = 0
    copies: list[Copy] = field(default_factory=list)
    names: list[tuple[str, tuple[str, int, str], int, float]] = field(
        default_factory=list
    )  # queue, name, number, time

    def next(self) -> int:
        self.numbers += 1
        return self.numbers

    def tick(self, queue: str) -> None:
        mine = [copy for copy in self.copies if copy.queue == queue]
        for copy in mine:
            if copy.lease is not None and copy.lease[1] <= self.now:
                copy.lease, copy.redelivered, copy.takeovers = None, True, copy.takeovers + 1
        waiting = [
            copy
            for copy in mine
            if copy.lease is None and copy.place is None and copy.due <= self.now
        ]
        for copy in sorted(waiting, key=lambda copy: (copy.due, copy.number)):
            copy.place = self.next()
        retention = SPECS[queue].retention
        for copy in mine:
            if retention is not None and copy.lease is None and copy.stored <= self.now - retention:
                self.copies.remove(copy)

    def waiting(self, queue: str) -> list[Copy]:
        return sorted(
            (it for it in self.copies if it.queue == queue and it.lease is None),
            key=lambda copy: copy.order,
        )

    def ready(self, queue: str) -> list[Copy]:
        return [copy for copy in self.waiting(queue) if copy.place is not None]

    def known(self, out: Outgoing, since: int = 0) -> bool:
        key = (out.to, out.message.copy_name)
        return any(
            it[:2] == key and it[2] > since and it[3] > self.now - WINDOW for it in self.names
        )

    def put(self, out: Outgoing) -> None:
        queue, message, number = str(out.to), out.message, self.next()
        expires = message.expires_at if out.ttl is None else self.now + out.ttl
        limit = SPECS[queue].ttl if message.hop == 0 else None
        if limit is not None:
            expires = self.now + limit if expires is None else min(expires, self.now + limit)
        message = replace(message, expires_at=expires)
        copy = Copy(queue, message, number, self.now, number)
        if out.delay > 0:
            copy.place, copy.due = (
                None,
                self.now + out.delay if expires is None else min(self.now + out.delay, expires),
            )
        self.copies.append(copy)
        self.names.append((queue, message.copy_name, number, self.now))

    def publish(self, out: Outgoing) -> Outcome:
        queue = str(out.to)
        self.tick(queue)
        if self.known(out):
            return Stored(duplicate=True)
        spec = SPECS[queue]
        bound = spec.max_length if out.message.hop == 0 and out.delay == 0 else None
        if bound is not None and spec.overflow == "reject" and len(self.ready(queue)) >= bound:
            return Failed(ErrorKind.FULL)
        self.put(out)
        while bound is not None and len(self.ready(queue)) > bound:
            lowest = min(copy.message.priority for copy in self.ready(queue))
            victim = next(copy for copy in self.ready(queue) if copy.message.priority == lowest)
            self.copies.remove(victim)
            self.tick("dlq")
            old = victim.message
            death = Death(
                reason=Reason.OVERFLOW,
                queue=queue,
                attempts=old.attempt - 1,
                first_at=WALL,
                last_at=WALL,
            )
            self.put(Outgoing("dlq", old.moved(queue, attempt=1, expires_at=None, death=death)))
        return STORED

    def settle(self, copy: Copy, how: Settlement) -> Settled:
        self.tick(copy.queue)
        if isinstance(how, Release):
            copy.lease, copy.redelivered = None, True  # and with the takeovers that it had
            return DONE
        if isinstance(how, Move):
            if how.to.to not in SPECS:
                return Failed(ErrorKind.NOT_FOUND)
            self.tick(str(how.to.to))
            if not self.known(how.to, since=copy.number):
                self.put(how.to)
        self.copies.remove(copy)
        return DONE


QUEUES = st.sampled_from(sorted(SPECS))
IDS = st.sampled_from("abcdef")
DELAYS = st.sampled_from([0.0, 0.0, 0.0, 1.0, 4.0, 9.0])
TTLS = st.sampled_from([None, None, 2.0, 6.0])


class StoreAgainstModel(RuleBasedStateMachine):
    """Two consumers of each queue; whatever one got may be settled at any time, also too late."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.store = MemoryStore(dedup_window=WINDOW)
        self.store.declare(list(SPECS.values()), 0.0)
        self.prefetch = (2, 5)
        self.holders = {
            (queue, who): self.subscribe(queue, who) for queue in SPECS for who in (0, 1)
        }
        self.owner = Holder()
        self.given: list[tuple[Delivery, Copy, tuple[int, float]]] = []

    def subscribe(self, queue: str, who: int) -> Holder:
        holder = Holder(self.prefetch[who], LEASE)
        self.store.subscribe(queue, holder, self.model.now)
        return holder

    def check(self, got: list[Delivery], expected: list[Copy], who: int, lease: float) -> None:
        now = self.model.now
        assert [it.message for it in got] == [copy.message for copy in expected]
        for delivery, copy in zip(got, expected, strict=True):
            assert (delivery.redelivered, delivery.takeovers) == (copy.redelivered, copy.takeovers)
            expires = copy.message.expires_at
            assert delivery.expires_in == (None if expires is None else expires - now)
            copy.lease = (who, now + lease)
            self.given.append((delivery, copy, copy.lease))

    @rule(
        queue=QUEUES,
        id=IDS,
        hop=st.sampled_from([0, 0, 0, 1]),
        priority=st.integers(4, 6),
        delay=DELAYS,
        ttl=TTLS,
    )
    def publish(
        self, queue: str, id: str, hop: int, priority: int, delay: float, ttl: float | None
    ) -> None:
        out = Outgoing(queue, Message(id=id, body=b"", hop=hop, priority=priority), delay, ttl)
        expected = self.model.publish(out)
        (outcome,) = self.store.publish([out], self.model.now, WALL)
        if isinstance(expected, Failed):
            assert isinstance(outcome, Failed)
            assert outcome.kind is expected.kind
        else:
            assert outcome == expected

    @rule(queue=QUEUES, who=st.integers(0, 1), limit=st.integers(1, 3))
    def claim(self, queue: str, who: int, limit: int) -> None:
        self.model.tick(queue)
        held = sum(
            it.queue == queue and it.lease is not None and it.lease[0] == who
            for it in self.model.copies
        )
        expected = self.model.ready(queue)[: min(limit, self.prefetch[who] - held)]
        got = self.store.claim(queue, self.holders[queue, who], limit, self.model.now, wait=True)
        self.check(got, expected, who, LEASE)

    @rule(
        data=st.data(),
        how=st.sampled_from(["ack", "release", "move"]),
        queue=st.sampled_from([*SPECS, "gone"]),
    )
    def settle(self, data: st.DataObject, how: str, queue: str) -> None:
        if not self.given:
            return
        delivery, copy, lease = data.draw(st.sampled_from(self.given))
        message = delivery.message.moved(copy.queue, attempt=delivery.message.attempt + 1)
        move = Move(delivery.receipt, Outgoing(queue, message, data.draw(DELAYS)))
        choice: dict[str, Settlement] = {
            "ack": Ack(delivery.receipt),
            "release": Release(delivery.receipt),
            "move": move,
        }
        settlement = choice[how]
        self.model.tick(copy.queue)
        live = copy in self.model.copies and copy.lease is lease
        expected = self.model.settle(copy, settlement) if live else STALE
        (settled,) = self.store.settle(copy.queue, [settlement], self.model.now)
        assert type(settled) is type(expected)

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        if not self.given:
            return
        index = data.draw(st.integers(0, len(self.given) - 1))
        delivery, copy, lease = self.given[index]
        self.model.tick(copy.queue)
        live = copy in self.model.copies and copy.lease is lease
        assert self.store.renew(copy.queue, [delivery.receipt], LEASE, self.model.now) == [live]
        if live:
            copy.lease = (lease[0], self.model.now + LEASE)
            self.given[index] = (delivery, copy, copy.lease)

    @rule(queue=QUEUES, limit=st.integers(1, 3))
    def sweep(self, queue: str, limit: int) -> None:
        self.model.tick(queue)
        now = self.model.now
        expired = [
            it for it in self.model.waiting(queue) if (it.message.expires_at or now + 1) <= now
        ]
        expired.sort(key=lambda copy: (copy.message.expires_at or 0.0, copy.number))
        got = self.store.sweep(queue, limit, LEASE, self.owner, now)
        self.check(got, expired[:limit], -1, LEASE)

    @rule(queue=QUEUES, data=st.data())
    def browse_and_take(self, queue: str, data: st.DataObject) -> None:
        self.model.tick(queue)
        waiting = self.model.waiting(queue)
        first = self.store.browse(queue, 2, None, self.model.now)
        rest = self.store.browse(queue, 100, first[-1].key, self.model.now) if first else []
        assert [entry.message for entry in first + rest] == [copy.message for copy in waiting]
        if waiting:
            index = data.draw(st.integers(0, len(waiting) - 1))
            got = self.store.take(
                queue, [(first + rest)[index].key], LEASE, self.owner, self.model.now
            )
            self.check(got, [waiting[index]], -1, LEASE)

    @rule(queue=QUEUES)
    def purge(self, queue: str) -> None:
        self.model.tick(queue)
        gone = self.model.waiting(queue)
        assert self.store.purge(queue, self.model.now) == len(gone)
        self.model.copies = [copy for copy in self.model.copies if copy not in gone]

    @rule(queue=QUEUES, who=st.integers(0, 1))
    def crash(self, queue: str, who: int) -> None:
        self.model.tick(queue)
        self.store.unsubscribe(queue, self.holders[queue, who], self.model.now)
        for copy in self.model.copies:
            if copy.queue == queue and copy.lease is not None and copy.lease[0] == who:
                copy.lease, copy.redelivered, copy.takeovers = None, True, copy.takeovers + 1
        self.holders[queue, who] = self.subscribe(queue, who)

    @rule(by=st.sampled_from([0.5, 1.0, 3.0, 8.0]))
    def advance(self, by: float) -> None:
        self.model.now += by

    @invariant()
    def counts_agree(self) -> None:
        for queue in SPECS:
            self.model.tick(queue)
            (counts,) = self.store.count([queue], self.model.now)
            mine = [copy for copy in self.model.copies if copy.queue == queue]
            leased = sum(copy.lease is not None for copy in mine)
            ready = len(self.model.ready(queue))
            assert (counts.ready, counts.leased, counts.delayed) == (
                ready,
                leased,
                len(mine) - ready - leased,
            )


TestStoreAgainstModel = pytest.mark.timeout(300)(
    StoreAgainstModel.TestCase
)  # a failure takes long to be made small
TestStoreAgainstModel.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, database=None
)
