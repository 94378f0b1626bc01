"""A relay delivers parcels in order: each once, whatever fails, and whoever else relays."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from support.faulty import Faults, dropped_answer, failed, lost, lost_answer, unclear

from mqcore import Broker, DeadLetter, Queue, Router, Settings, UnsupportedFeature
from mqcore.broker import session_of
from mqcore.connection.connection import Connection
from mqcore.messages.message import Message
from mqcore.publishing.destination import Forwarding
from mqcore.publishing.parcel import Parcel, enclose
from mqcore.publishing.relay import Relay, check_relays, relay_specs
from mqcore.spi import (
    Ack,
    Binding,
    ErrorKind,
    Failed,
    Outcome,
    Outgoing,
    QueueSpec,
    Release,
    Route,
    Stored,
    Unknown,
)
from mqcore.testing import VirtualClock, memory_url

WAITING = "mq.waiting"
numbers = Queue("numbers", int)


@pytest.fixture(params=["memory", "sqlite"])
async def store(
    request: pytest.FixtureRequest, clock: VirtualClock, tmp_path: Path
) -> AsyncIterator[Broker]:
    """The broker that holds the parcels."""
    where = memory_url() if request.param == "memory" else f"sqlite:///{tmp_path}/waiting.db"
    async with Broker.connect(where, clock=clock, settings=Settings()) as broker:
        await source_of(broker).declare(relay_specs(WAITING))
        yield broker


def source_of(broker: Broker) -> Connection:
    return session_of(broker).connection


def relay_of(store: Broker, target: Broker, **options: float | None) -> Relay:
    return Relay(source_of(store), WAITING, Forwarding(source_of(target)), **options)  # type: ignore[arg-type]  # names of real options


async def put(store: Broker, *outs: Outgoing, **parts: tuple[object, ...]) -> None:
    now = store.clock.now()
    outcomes = await source_of(store).publish(
        [enclose(Parcel(out, now, **parts), WAITING) for out in outs],  # type: ignore[arg-type]  # names of real fields
        5.0,
    )
    assert all(isinstance(outcome, Stored) for outcome in outcomes)


def number(id: int, to: str | Route = "numbers", **fields: object) -> Outgoing:
    body = str(id).encode()
    return Outgoing(to, replace(Message(id=str(id), body=body), **fields))  # type: ignore[arg-type]  # fields of a message


async def ids_in(broker: Broker, queue: str = "numbers") -> list[str]:
    return [entry.message.id for entry in await broker.peek(queue, limit=5000)]


async def waiting(store: Broker) -> int:
    return (await store.counts(WAITING))[0].total


async def dead(store: Broker) -> list[tuple[str, str]]:
    """Reason and text of each dead letter."""
    letters: list[DeadLetter] = await store.dead_letters(WAITING).list()
    return [(letter.reason, letter.error.removeprefix("relay: ")) for letter in letters]


async def drained(*relays: Relay) -> None:
    """Drain with all of them, and move the clock meanwhile."""
    draining = asyncio.gather(*(relay.drain() for relay in relays))
    clock = relays[0]._clock
    assert isinstance(clock, VirtualClock)
    while not draining.done():
        await clock.advance(0.1)
    await draining


@asynccontextmanager
async def running(*relays: Relay) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(relay.run()) for relay in relays]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_parcels_arrive_in_order_and_are_gone(store: Broker, broker: Broker) -> None:
    await broker.declare(numbers)
    await put(store, *[number(each) for each in range(450)])
    await drained(relay_of(store, broker))
    assert await ids_in(broker) == [str(each) for each in range(450)]
    assert await waiting(store) == 0
    assert store.events.counts["message.relayed"] == 450


async def test_the_highest_priority_goes_first(store: Broker, broker: Broker) -> None:
    await broker.declare(numbers)
    await put(store, number(1, priority=1), number(2, priority=9), number(3, priority=1))
    await drained(relay_of(store, broker))
    assert await ids_in(broker) == ["2", "1", "3"]


async def test_what_is_left_of_delay_and_ttl_is_published(
    store: Broker, broker: Broker, clock: VirtualClock
) -> None:
    await broker.declare(numbers)
    await put(store, Outgoing("numbers", Message(id="a", body=b"1"), delay=60.0, ttl=300.0))
    await clock.advance(40.0)
    await drained(relay_of(store, broker))
    (entry,) = await broker.peek("numbers")
    assert entry.due_in == pytest.approx(20.0, abs=1.0)
    expires = entry.message.expires_at
    assert expires is not None
    assert expires - clock.monotonic() == pytest.approx(260.0, abs=1.0)


async def test_what_expired_while_it_waited_is_dead_lettered_as_expired_by_its_queue(
    store: Broker,
    broker: Broker,
    clock: VirtualClock,
) -> None:
    await broker.declare(numbers)
    await put(store, Outgoing("numbers", Message(id="a", body=b"1"), ttl=30.0))
    await clock.advance(40.0)
    await drained(relay_of(store, broker))
    await clock.advance(1.0)
    async with broker.consume(numbers) as deliveries:
        assert await deliveries.get(timeout=0) is None
    letters = await broker.dead_letters(numbers).list()
    assert [letter.reason for letter in letters] == ["expired"]


async def test_a_relay_runs_until_it_is_cancelled(
    store: Broker, broker: Broker, clock: VirtualClock
) -> None:
    await broker.declare(numbers)
    async with running(relay_of(store, broker)):
        for each in (1, 2):
            await put(store, number(each))
            while store.events.counts["message.relayed"] < each:
                await clock.advance(0.1)
        assert await ids_in(broker) == ["1", "2"]


@pytest.mark.parametrize(
    "fault",
    [lost(), lost_answer(), dropped_answer(), failed(ErrorKind.TRANSIENT)],
    ids=["lost", "lost-answer", "no-answer", "transient"],
)
async def test_a_failure_that_may_pass_keeps_every_parcel_and_its_order(
    store: Broker, broker: Broker, faulty: Broker, faults: Faults, fault: object
) -> None:
    await broker.declare(numbers)
    faults.next("publish", fault, fault, fault)  # type: ignore[arg-type]  # a fault
    await put(store, *[number(each) for each in range(300)])
    await drained(relay_of(store, faulty))
    assert await ids_in(broker) == [str(each) for each in range(300)]
    assert await dead(store) == []


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ErrorKind.PERMANENT, "rejected"),
        (ErrorKind.TOO_LARGE, "rejected"),
        (ErrorKind.DENIED, "rejected"),
        (ErrorKind.NOT_FOUND, "unroutable"),
    ],
)
async def test_what_never_succeeds_is_a_dead_letter_and_stops_nothing(
    store: Broker, broker: Broker, kind: ErrorKind, reason: str
) -> None:
    await broker.declare(numbers)

    class Refusing(Forwarding):
        async def publish(self, parcels: Sequence[Parcel], timeout: float) -> Sequence[Outcome]:
            outcomes = list(await super().publish(parcels, timeout))
            bad = Failed(kind, "it is the bad one")
            return [
                bad if parcel.out.message.id == "1" else outcome
                for parcel, outcome in zip(parcels, outcomes, strict=True)
            ]

    await put(store, number(0), number(1, to="elsewhere"), number(2))
    await drained(Relay(source_of(store), WAITING, Refusing(source_of(broker))))
    assert await ids_in(broker) == ["0", "2"]
    assert await dead(store) == [(reason, "it is the bad one")]
    assert await waiting(store) == 0


async def test_a_queue_that_does_not_exist_is_a_dead_letter_that_can_be_redriven(
    store: Broker, broker: Broker
) -> None:
    await put(store, number(1))
    await drained(relay_of(store, broker))
    ((reason, error),) = await dead(store)
    assert reason == "unroutable"
    assert "numbers" in error

    await broker.declare(numbers)
    await store.dead_letters(WAITING).redrive()
    await drained(relay_of(store, broker))
    assert await ids_in(broker) == ["1"]


async def test_a_damaged_parcel_is_a_dead_letter(store: Broker, broker: Broker) -> None:
    await broker.declare(numbers)
    good = enclose(Parcel(number(1), 1.0), WAITING)
    bad = replace(good, message=replace(good.message, id="bad", body=good.message.body[:-1] + b"x"))
    await source_of(store).publish([bad, good], 5.0)
    await drained(relay_of(store, broker))
    assert await ids_in(broker) == ["1"]
    ((reason, error),) = await dead(store)
    assert reason == "undecodable"
    assert "its checksum does not match" in error


async def test_a_full_queue_is_waited_for(
    store: Broker, broker: Broker, clock: VirtualClock
) -> None:
    small = Queue("numbers", int, max_length=2)
    await broker.declare(small)
    await put(store, *[number(each) for each in range(6)])
    seen: list[int] = []
    async with running(relay_of(store, broker, full_patience=None)):
        await clock.advance(300.0)
        assert await waiting(store) == 4
        async with broker.consume(small, prefetch=1) as deliveries:
            while len(seen) < 6:
                await clock.advance(1.0)
                while (delivery := await deliveries.get(timeout=0)) is not None:
                    seen.append(delivery.value)
                    await delivery.ack()
    assert seen == list(range(6))
    assert await dead(store) == []


async def test_a_queue_that_stays_full_stops_the_others_for_a_minute_only(
    store: Broker, broker: Broker
) -> None:
    await broker.declare(Queue("numbers", int, max_length=1), Queue("others", int))
    await put(store, *[number(each) for each in range(500)], number(999, to="others"))
    await drained(relay_of(store, broker))
    assert await ids_in(broker) == ["0"]
    assert await ids_in(broker, "others") == ["999"]
    reasons = {reason for reason, _ in await dead(store)}
    assert reasons == {"overflow"}


async def test_a_queue_that_was_full_once_is_waited_for_the_next_time(
    store: Broker, broker: Broker, clock: VirtualClock
) -> None:
    await broker.declare(Queue("numbers", int, max_length=1))
    await put(store, number(0), number(1))
    async with running(relay_of(store, broker)):
        while not await dead(store):
            await clock.advance(1.0)
        await clock.advance(60.0)
        await put(store, number(2))
        await clock.advance(30.0)
        assert len(await dead(store)) == 1
        await broker.purge("numbers")
        await clock.advance(5.0)
        assert await ids_in(broker) == ["2"]


async def test_a_route_is_resolved_when_it_is_delivered(store: Broker, broker: Broker) -> None:
    router = Router("events", kind="topic")
    await put(store, number(1, to=Route("events", "order.new")))
    router.bind(numbers, "order.*")
    router.bind(Queue("audit", int), "#")
    await broker.declare(router)
    await drained(relay_of(store, broker))
    assert await ids_in(broker) == ["1"]
    assert await ids_in(broker, "audit") == ["1"]


async def test_a_lost_answer_about_a_route_is_no_refusal(
    store: Broker, broker: Broker, faulty: Broker, faults: Faults
) -> None:
    router = Router("events", kind="fanout")
    router.bind(numbers)
    await broker.declare(router)
    faults.next("publish", unclear())
    await put(store, number(1, to=Route("events")))
    await drained(relay_of(store, faulty))
    assert await ids_in(broker) == ["1"]
    assert await dead(store) == []


async def test_a_route_that_no_binding_takes_is_a_dead_letter(
    store: Broker, broker: Broker
) -> None:
    await put(store, number(1, to=Route("events", "order.new")))
    await drained(relay_of(store, broker))
    ((reason, error),) = await dead(store)
    assert reason == "unroutable"
    assert "no binding of router 'events' takes key 'order.new'" in error


async def test_a_parcel_brings_what_has_to_be_declared(store: Broker, broker: Broker) -> None:
    queues = tuple(numbers.specs(None))
    bindings = (Binding(router="events", kind="fanout", queue="numbers"),)
    await put(store, number(1, to=Route("events")), queues=queues, bindings=bindings)
    await put(store, number(2), queues=queues)
    await drained(relay_of(store, broker))
    assert await ids_in(broker) == ["1", "2"]


async def test_a_queue_that_exists_otherwise_is_used_as_it_is(
    store: Broker, broker: Broker
) -> None:
    await broker.declare(Queue("numbers", int, ttl=60))
    await put(store, number(1), queues=(QueueSpec(name="numbers", ttl=30.0),))
    await drained(relay_of(store, broker))
    assert await ids_in(broker) == ["1"]
    assert broker.events.counts["queue.altered"] == 1


async def test_several_relays_keep_the_order(store: Broker, broker: Broker) -> None:
    """Each batch takes a while, so that another relay could overtake it."""
    await broker.declare(numbers)
    clock = store.clock

    class Slow(Forwarding):
        async def publish(self, parcels: Sequence[Parcel], timeout: float) -> Sequence[Outcome]:
            await clock.sleep(0.3)
            return await super().publish(parcels, timeout)

    await put(store, *[number(each) for each in range(3000)])
    relays = [Relay(source_of(store), WAITING, Slow(source_of(broker))) for _ in range(4)]
    await drained(*relays)
    assert await ids_in(broker) == [str(each) for each in range(3000)]
    assert store.events.counts["message.relayed"] == 3000


async def test_a_cancelled_relay_gives_back_at_once(store: Broker, broker: Broker) -> None:
    await broker.declare(numbers)
    begun = asyncio.Event()

    class Hung(Forwarding):
        async def publish(self, parcels: Sequence[Parcel], timeout: float) -> Sequence[Outcome]:
            begun.set()
            await asyncio.Event().wait()
            return [Unknown()] * len(parcels)

    await put(store, number(1), number(2))
    first = asyncio.create_task(Relay(source_of(store), WAITING, Hung(source_of(broker))).run())
    await begun.wait()
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    before = store.clock.monotonic()
    subscription = await source_of(store).subscribe(WAITING, 10, 30.0)
    claimed = await subscription.receive(10, 5.0)
    assert [each.takeovers for each in claimed] == [0, 0]  # its end is not a crash (G4)
    await subscription.settle([Release(each.receipt) for each in claimed], timeout=5.0)
    await subscription.close()
    await drained(relay_of(store, broker))
    assert await ids_in(broker) == ["1", "2"]
    assert store.clock.monotonic() - before < 5.0


async def test_what_was_published_and_not_removed_is_one_copy(
    store: Broker, broker: Broker, clock: VirtualClock
) -> None:
    """A relay that dies after the confirm leaves its parcels, which are published again."""
    await broker.declare(numbers)
    await put(store, number(1), number(2))
    subscription = await source_of(store).subscribe(WAITING, 10, 30.0)
    claimed = await subscription.receive(10, 5.0)
    await broker.publish(numbers, 1, id="1")
    await broker.publish(numbers, 2, id="2")
    await clock.advance(31.0)
    await drained(relay_of(store, broker))
    assert await ids_in(broker) == ["1", "2"]
    assert await subscription.settle([Ack(claimed[0].receipt)], timeout=5.0) != []
    assert await waiting(store) == 0


async def test_a_queue_of_parcels_that_was_deleted_is_declared_again(
    store: Broker, broker: Broker, clock: VirtualClock
) -> None:
    await broker.declare(numbers)
    source = source_of(store)
    declared = asyncio.Event()

    async def redeclare() -> None:
        await source.declare(relay_specs(WAITING))
        declared.set()

    async with running(Relay(source, WAITING, Forwarding(source_of(broker)), redeclare=redeclare)):
        await put(store, number(1))
        while await ids_in(broker) != ["1"]:
            await clock.advance(0.1)
        await store.delete(WAITING)
        while not declared.is_set():
            await clock.advance(0.1)
        await put(store, number(2))
        while await ids_in(broker) != ["1", "2"]:
            await clock.advance(0.1)


async def test_the_source_may_be_lost_while_it_is_relayed(
    clock: VirtualClock, broker: Broker, faulty: Broker, faults: Faults
) -> None:
    source = source_of(faulty)
    await source.declare(relay_specs(WAITING))
    await broker.declare(numbers)
    faults.keeps_claims = True
    await put(faulty, *[number(each) for each in range(3)])
    faults.next("settle", lost())
    await drained(Relay(source, WAITING, Forwarding(source_of(broker))))
    assert await ids_in(broker) == ["0", "1", "2"]
    assert await waiting(faulty) == 0


async def test_a_backend_that_cannot_keep_the_order_is_refused(
    store: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(store)
    check_relays(source, "an outbox")
    bare = replace(source.capabilities, supports={})
    monkeypatch.setattr(type(source), "capabilities", property(lambda _: bare))
    with pytest.raises(UnsupportedFeature, match=r"an outbox: the backend .* cannot keep parcels"):
        check_relays(source, "an outbox")
