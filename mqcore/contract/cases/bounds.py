"""Profile *bounds*: `max_length` bounds what is published and ready, prefetch what is out, limits what is sent; nothing else is."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.kit import NotShown
from mqcore.errors import MessageTooLarge, QueueFull
from mqcore.messages.message import Limits
from mqcore.publishing.publisher import Receipt
from mqcore.queue import Queue
from mqcore.spi import (
    DONE,
    Ack,
    Capability,
    Death,
    ErrorKind,
    Failed,
    Level,
    Outgoing,
    QueueSpec,
    Reason,
    Release,
    SupportsCount,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.contract.kit import Kit
    from mqcore.spi import Backend, Capabilities, Delivery, Outcome, Settlement

_NEEDS = (Capability.MAX_LENGTH,)
_FULL = "Backend.publish: QueueSpec.max_length"
_OVERFLOW = "Backend.publish: overflow='dead_letter'"
_NEARLY = 20
"""Publishes, one by one, within which a bound that is declared approximate must have closed."""
_LIMITS = Limits()
_MANY = {f"h{number}": "v" for number in range(_LIMITS.headers)}
_LONG = {f"h{number}": "v" * 4_000 for number in range(4)}
_VALUE = {"h": "v" * _LIMITS.header_value}


def _mode(kit: Kit, mode: str) -> None:
    """Leave the case where MAX_LENGTH does not state this mode."""
    if mode not in str(kit.limit(Capability.MAX_LENGTH, "modes") or "reject,dead_letter").split(
        ","
    ):
        raise NotShown(f"MAX_LENGTH states no overflow={mode!r}")


def _full(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and outcome.kind is ErrorKind.FULL


async def _refused(kit: Kit, queue: str) -> list[str]:
    """Publish one by one until one is refused; the names that were stored before it."""
    nearly = kit.capabilities[Capability.MAX_LENGTH].level is Level.APPROXIMATE
    stored: list[str] = []
    for number in range(_NEARLY if nearly else 1):
        (outcome,) = await kit.publish(Outgoing(queue, kit.message(f"more-{number}")))
        if isinstance(outcome, Failed):
            kit.true(
                _full(outcome) and queue in outcome.text,
                "FULL, and the queue's name in the text",
                outcome,
                _FULL,
            )
            return stored
        stored.append(f"more-{number}")
    kit.true(
        holds=False,
        expected="a full queue refuses",
        came=f"{len(stored)} more were stored",
        look=_FULL,
    )
    return stored


@case("G12", "G1", needs=_NEEDS)
async def a_full_queue_refuses_what_is_published(kit: Kit) -> None:
    """FULL, certainly not stored, nothing else harmed; and there is room again when messages have gone."""
    _mode(kit, "reject")
    queue = await kit.queue(max_length=3)
    await kit.put(queue, *"abc")
    stored = ["a", "b", "c", *await _refused(kit, queue)]
    kit.same(await kit.contents(queue), Counter(stored), "what was stored and no more", _FULL)
    await kit.put(queue, "again")
    kit.same(await kit.contents(queue), Counter(["again"]), "room again", _FULL)


@case("G12", "G1", needs=_NEEDS)
async def the_bound_is_exact_inside_a_batch(kit: Kit) -> None:
    """The items that find the queue full are refused, and no others, in their order."""
    _mode(kit, "reject")
    if kit.capabilities[Capability.MAX_LENGTH].level is Level.APPROXIMATE:
        raise NotShown("MAX_LENGTH is declared approximate")
    queue, other = await kit.queue(max_length=3), await kit.queue()
    batch = [Outgoing(queue, kit.message(name)) for name in "abcde"] + [
        Outgoing(other, kit.message("f"))
    ]
    outcomes = await kit.publish(*batch)
    kit.same(
        [_full(it) for it in outcomes], [False] * 3 + [True] * 2 + [False], "who was refused", _FULL
    )
    kit.same(await kit.contents(queue), Counter("abc"), "the first three stored", _FULL)
    kit.same(
        await kit.contents(other), Counter("f"), "another queue of the batch not concerned", _FULL
    )


@case("G12", needs=(*_NEEDS, Capability.DELAY))
async def only_ready_messages_count(kit: Kit) -> None:
    """What is leased or delayed leaves room; what comes back may exceed the bound, and closes it; nothing stored is lost."""
    _mode(kit, "reject")
    queue = await kit.queue(max_length=2)
    await kit.put(queue, "delayed", delay=500.0)
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue)
    held = await kit.take(consumer, 2)
    await kit.put(queue, "c", "d")
    released = await kit.settle(consumer, *[Release(it.receipt) for it in held])
    kit.same(released, [DONE, DONE], "a release is never refused", "Subscription.settle: Release")
    await kit.within(consumer.close())
    more = await _refused(kit, queue)
    kit.same(await kit.contents(queue), Counter(["a", "b", "c", "d", *more]), "nothing lost", _FULL)


@case("G12", "G3", needs=_NEEDS, each={"reject": "reject", "dead_letter": "dead_letter"})
async def a_move_is_never_refused(kit: Kit, overflow: str) -> None:
    """Retries, redrives and dead letters exceed the bound, and push nobody out."""
    _mode(kit, overflow)
    source, full = await kit.queue(), await kit.queue(max_length=1, overflow=overflow)
    await kit.put(full, "old")
    await kit.put(source, "a", "b")
    consumer = await kit.subscribe(source)
    moves = [kit.successor(it, full) for it in await kit.take(consumer, 2)]
    kit.same(
        await kit.settle(consumer, *moves), [DONE, DONE], "both moved", "Subscription.settle: Move"
    )
    kit.same(
        await kit.contents(full),
        Counter(["old", "a", "b"]),
        "all in the full queue",
        "Subscription.settle: Move",
    )
    kit.same(
        await kit.contents(f"{full}.dlq"),
        Counter(),
        "nobody pushed out",
        "Subscription.settle: Move",
    )


@case("G12", "G7", needs=(*_NEEDS, Capability.DELAY))
async def what_falls_due_is_never_refused(kit: Kit) -> None:
    """A delayed message was confirmed: that its queue is full when it is due does not undo that."""
    _mode(kit, "reject")
    queue = await kit.queue(max_length=1)
    await kit.put(queue, "x", "y", delay=0.5)
    await kit.put(queue, "a")
    await kit.advance(0.5 + float(kit.limit(Capability.DELAY, "granularity") or 0.0))
    kit.same(
        await kit.contents(queue),
        Counter("axy"),
        "all of them",
        "delay: max_length bounds publishes only",
    )


@case("G12", "G8", needs=(*_NEEDS, Capability.PRIORITY))
async def an_overflow_dead_letters_the_oldest_of_the_lowest_priority(kit: Kit) -> None:
    """The publish succeeds and the oldest of the lowest goes, be it the new one itself."""
    _mode(kit, "dead_letter")
    queue = await kit.queue(max_length=3, overflow="dead_letter")
    for name, priority in [
        ("low-1", 1),
        ("high-1", 9),
        ("low-2", 1),
        ("high-2", 9),
        ("high-3", 9),
        ("lowest", 0),
    ]:
        await kit.put(queue, name, priority=priority)
    kit.same(
        await kit.contents(queue), Counter(["high-1", "high-2", "high-3"]), "who stayed", _OVERFLOW
    )
    kit.same(
        await kit.contents(f"{queue}.dlq"),
        Counter(["low-1", "low-2", "lowest"]),
        "who went",
        _OVERFLOW,
    )


@case("G12", "G11", ids="X01", needs=_NEEDS)
async def an_overflow_leaves_a_record(kit: Kit) -> None:
    """Reason `overflow`, the queue, no attempt started; body, headers and id as they were, and no expiry."""
    _mode(kit, "dead_letter")
    queue = await kit.queue(
        max_length=1,
        overflow="dead_letter",
        ttl=500.0 if kit.capabilities.has(Capability.EXPIRY) else None,
    )
    await kit.publish(Outgoing(queue, kit.message("a", body=b"\x00body", headers={"h": "v"})))
    await kit.put(queue, "b")
    (letter,) = await kit.take(await kit.subscribe(f"{queue}.dlq"), 1)
    message, death = letter.message, letter.message.death
    came = death and (death.reason, death.queue, death.attempts)
    kit.same(came, (Reason.OVERFLOW, queue, 0), "reason, queue, attempts", _OVERFLOW)
    kept = (
        message.id,
        message.body,
        dict(message.headers),
        message.attempt,
        message.expires_at,
        letter.expires_in,
    )
    kit.same(
        kept,
        ("a", b"\x00body", {"h": "v"}, 1, None, None),
        "the message as it was, without an expiry",
        _OVERFLOW,
    )


@case("G12", "G2", needs=_NEEDS)
async def an_overflow_without_a_dead_letter_queue_drops_the_oldest(kit: Kit) -> None:
    """In a queue that has none, and only there."""
    _mode(kit, "dead_letter")
    queue = await kit.queue(max_length=2, overflow="dead_letter", dead_letter=False)
    await kit.put(queue, *"abcd")
    kit.same(await kit.contents(queue), Counter("cd"), "the newest two", _OVERFLOW)


@case("G12", "G11", needs=_NEEDS)
async def the_bound_of_a_dead_letter_queue_stops_no_dead_letter(kit: Kit) -> None:
    """What overflows goes there although it is full."""
    _mode(kit, "dead_letter")
    dlq, name = await kit.queue(max_length=1, dead_letter=False), kit.name()
    spec = QueueSpec(name=name, max_length=1, overflow="dead_letter", dead_letter=dlq)
    await kit.within(kit.backend.declare([spec]))
    await kit.put(name, *"abcde")
    kit.same(await kit.contents(dlq), Counter("abcd"), "all that overflowed", _OVERFLOW)


@case("G12", "G1", needs=_NEEDS)
async def a_publisher_is_told_that_the_queue_is_full(kit: Kit) -> None:
    """`QueueFull` with the message's id; in a batch as a value, beside the receipts of the others."""
    _mode(kit, "reject")
    broker, queue = await kit.broker(), Queue(kit.name(), max_length=2)
    endings = await kit.within(broker.publish_many(queue, [b"a", b"b"]))
    kit.same([type(ending) for ending in endings], [Receipt, Receipt], "both stored", _FULL)
    more = await _refused(kit, queue.name)
    error = cast(
        "QueueFull",
        await kit.raises(QueueFull, broker.publish(queue, b"c", id="mine"), "QueueFull", _FULL),
    )
    kit.same(error.id, "mine", "the message's id", "QueueFull.id")
    (ending,) = await kit.within(broker.publish_many(queue, [b"d"]))
    kit.same(type(ending), QueueFull, "QueueFull as a value", "Broker.publish_many")
    kit.same(
        (await kit.contents(queue.name)).total(),
        2 + len(more),
        "what was stored and no more",
        _FULL,
    )


@case(
    "G12",
    ids="B05",
    each={
        "payload": (b"x" * (_LIMITS.payload + 1), {}),
        "number of headers": (b"", {**_MANY, "more": "v"}),
        "bytes of headers": (b"", {**_LONG, "more": "v" * 400}),
        "one header": (b"", {"h": _VALUE["h"] + "v"}),
    },
)
async def what_is_too_large_is_refused_before_any_io(
    kit: Kit, message: tuple[bytes, dict[str, str]]
) -> None:
    """`MessageTooLarge`, with the id, and not even the queue has been declared for it."""
    body, headers = message
    broker, name = await kit.broker(), kit.name()
    work = broker.publish(Queue(name), body, headers=headers, id="mine")
    error = cast(
        "MessageTooLarge",
        await kit.raises(MessageTooLarge, work, "MessageTooLarge", "Broker.publish"),
    )
    kit.same(error.id, "mine", "the message's id", "MessageTooLarge.id")
    (outcome,) = await kit.publish(Outgoing(name, kit.message()))
    missing = isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND
    kit.true(missing, "no I/O: the queue is still missing", outcome, "Broker.publish")


@case(
    "G12",
    ids="B05",
    each={
        "payload": (b"\x00\xff" * (_LIMITS.payload // 2), {}),
        "number of headers": (b"", _MANY),
        "bytes of headers": (b"", _LONG),
        "one header": (b"", _VALUE),
    },
)
async def what_is_just_small_enough_arrives_whole(
    kit: Kit, message: tuple[bytes, dict[str, str]]
) -> None:
    """1 MiB of payload, 64 headers, 16 KiB of headers are a promise on every backend, delayed or not."""
    body, headers = message
    body = body[: kit.capabilities.max_payload]
    broker, queue = await kit.broker(), Queue(kit.name())
    delays: list[dict[str, Any]] = (
        [{}, {"delay": 0.1}] if kit.capabilities.has(Capability.DELAY) else [{}]
    )
    consumer = None
    for delay in delays:
        await kit.within(broker.publish(queue, body, headers=headers, **delay))
        consumer = consumer or await kit.subscribe(queue.name)
        (delivery,) = await kit.take(consumer, 1)
        kit.true(
            delivery.message.body == body,
            "the body, byte for byte",
            f"{len(delivery.message.body)} bytes",
            "publish",
        )
        kit.same(dict(delivery.message.headers), headers, "the headers", "Backend.publish")
        await kit.ack(consumer, [delivery])


@case("G12", ids="B05")
async def more_than_a_stated_max_payload_is_refused_before_any_io(kit: Kit) -> None:
    """Where a driver states one, core holds to it as to its own limit: the exact number arrives, one byte more is not sent."""

    def make() -> Backend:
        backend = kit.harness.make_backend()
        inner = backend.open

        async def opened(lost: Callable[[Exception], None]) -> Capabilities:
            return replace(await inner(lost), max_payload=100)

        backend.open = opened  # type: ignore[method-assign]  # the author's own, which states a number
        return backend

    broker, queue = await kit.broker(make_backend=make), Queue(kit.name())
    work = broker.publish(queue, b"x" * 101, id="mine")
    error = cast(
        "MessageTooLarge",
        await kit.raises(MessageTooLarge, work, "MessageTooLarge", "Broker.publish"),
    )
    kit.same(error.id, "mine", "the message's id", "MessageTooLarge.id")
    (outcome,) = await kit.publish(Outgoing(queue.name, kit.message()))
    missing = isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND
    kit.true(missing, "no I/O: the queue is still missing", outcome, "Broker.publish")
    await kit.within(broker.publish(queue, b"x" * 100, id="whole"))
    kit.same(
        await kit.contents(queue.name),
        Counter(["whole"]),
        "what is just small enough",
        "Broker.publish",
    )


@case("G12", "G3", ids="B05")
async def a_stated_max_payload_is_carried_whole(kit: Kit) -> None:
    """With all the headers that core lets through, and as a dead letter with the longest record: what core adds fits beside it."""
    limit = kit.capabilities.max_payload
    if limit is None:
        raise NotShown("states no max_payload: the broker's own limit is above what core sends")
    body, jobs = b"\x00\xff" * (limit // 2), Queue(kit.name())
    broker = await kit.broker(limits=replace(_LIMITS, payload=limit))
    await kit.within(broker.publish(jobs, body, headers=_LONG))
    consumer = await kit.subscribe(jobs.name)
    (delivery,) = await kit.take(consumer, 1)
    kit.true(
        delivery.message.body == body,
        "the body, byte for byte",
        f"{len(delivery.message.body)} bytes",
        "publish",
    )

    now = kit.clock.now()
    death = Death(
        reason=Reason.REJECTED,
        queue=jobs.name,
        attempts=3,
        first_at=now,
        last_at=now,
        error="e" * 2_000,
        traceback="t" * 4_000,
    )
    settled = await kit.settle(consumer, kit.successor(delivery, f"{jobs.name}.dlq", death=death))
    kit.same(
        settled,
        [DONE],
        "its dead letter stored",
        "Subscription.settle: a Move of the largest message",
    )
    letters = await kit.take(await kit.subscribe(f"{jobs.name}.dlq"), 1)
    kit.true(
        letters[0].message.body == body,
        "the dead letter's body",
        f"{len(letters[0].message.body)} bytes",
        "settle",
    )


@case("G12", ids="C46", each={"1": 1, "3": 3})
async def prefetch_is_an_exact_ceiling(kit: Kit, prefetch: int) -> None:
    """No more than that is out unsettled; an ack, a release and a Move each make room for one."""
    queue = await kit.queue()
    await kit.put(queue, *(f"{number}" for number in range(10)))
    consumer = await kit.subscribe(queue, prefetch=prefetch)
    held = await kit.take(consumer, prefetch)
    kit.same(
        kit.ids(await kit.drain(consumer)),
        [],
        f"no more than {prefetch}",
        "Backend.subscribe: prefetch",
    )
    ways: list[Callable[[Delivery], Settlement]] = [
        lambda it: Ack(it.receipt),
        lambda it: Release(it.receipt),
        lambda it: kit.successor(it, f"{queue}.dlq"),
    ]
    one = held[0]
    for settlement in ways:
        kit.same(
            await kit.settle(consumer, settlement(one)), [DONE], "settled", "Subscription.settle"
        )
        (one,) = await kit.take(consumer, 1)
        kit.same(
            kit.ids(await kit.drain(consumer)),
            [],
            f"no more than {prefetch}",
            "Backend.subscribe: prefetch",
        )


@case("G12", ids="C46")
async def each_consumer_has_a_prefetch_of_its_own(kit: Kit) -> None:
    """Two consumers hold twice as much together, and `limit` of a receive is a ceiling too."""
    queue = await kit.queue()
    await kit.put(queue, *(f"{number}" for number in range(10)))
    one, two = await kit.subscribe(queue, prefetch=2), await kit.subscribe(queue, prefetch=3)
    kit.same(
        len(await kit.receive(one, 1, wait=1.0)),
        1,
        "at most `limit`",
        "Subscription.receive: limit",
    )
    held = [
        len(await kit.take(one, 1)) + len(await kit.drain(one)),
        len(await kit.take(two, 3)) + len(await kit.drain(two)),
    ]
    kit.same(held, [1, 3], "what each got", "Backend.subscribe: prefetch")


@case("G12", ids="C46", protocols=(SupportsCount,))
async def a_worker_holds_no_more_than_its_prefetch(kit: Kit) -> None:
    """However deep the queue is, the rest stays ready for others."""
    broker, queue = await kit.broker(), Queue(kit.name())
    began: asyncio.Queue[bytes] = asyncio.Queue()
    go = asyncio.Event()

    async def handler(body: bytes) -> None:
        await began.put(body)
        await go.wait()

    await kit.within(broker.publish_many(queue, [b""] * 50))
    await kit.worker(broker, queue, handler, concurrency=2, prefetch=5)
    for _ in range(2):
        await kit.within(began.get())
    await kit.advance(kit.harness.silence)
    (counts,) = await kit.within(broker.counts(queue))
    kit.same(
        (counts.leased, counts.ready), (5, 45), "leased and ready", "Backend.subscribe: prefetch"
    )
    kit.same(began.qsize(), 0, "handlers begun beyond the concurrency", "Worker")
    go.set()
