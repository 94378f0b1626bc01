"""What is recorded about a dead letter."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.dead_letter.common import (
    CHOSEN,
    HEADERS,
    MOVE,
    ONCE,
    TWICE,
    reject_all,
    take_dead_letters,
)
from mqcore.contract.kit import ContractError
from mqcore.errors import QueueNotFound, Reject
from mqcore.queue import Queue
from mqcore.router import Router
from mqcore.spi import (
    DONE,
    Capability,
    Death,
    Move,
    Outgoing,
    Reason,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G11", "G3", ids="X02 C25 C26")
async def a_dead_letter_keeps_the_original_and_its_record(kit: Kit) -> None:
    """A dead letter keeps body, id, headers and priority, and holds the whole death record."""
    queue, body = await kit.queue(), bytes(range(256)) * 3
    await kit.publish(Outgoing(queue, kit.message("a", body=body, headers=HEADERS, priority=9)))
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    death = Death(
        reason=Reason.REJECTED,
        queue=queue,
        attempts=3,
        first_at=1_700_000_000.25,
        last_at=1_700_000_001.5,
        error_type="shop.Error",
        error="line one\nline two: Grüße 世界\t\x00 end",
        traceback="Traceback …\n" * 300,
    )
    await kit.settle(consumer, kit.successor(delivery, f"{queue}.dlq", death=death, attempt=1))
    (letter,) = await take_dead_letters(kit, queue, 1)
    kit.same(letter.death, death, "the record", "pack and unpack of Message")
    kit.same((letter.body, dict(letter.headers)), (body, HEADERS), "the original message", MOVE)
    kit.same((letter.id, letter.priority, letter.hop), ("a", 9, 1), "id, priority, hop", MOVE)


@case("G11", "G10", ids="X02 X01 R06")
async def the_record_tells_the_whole_story(kit: Kit) -> None:
    """A death record holds reason, queue, attempts, both times, error type, text and traceback."""
    jobs, broker, times = Queue(kit.name()), await kit.broker(), list[float]()

    async def refuse(_: bytes) -> None:
        times.append(kit.clock.now())
        raise ValueError("broken: ü")

    await kit.within(broker.publish(jobs, bytes(range(256)), id="me", headers=HEADERS))
    await kit.worker(broker, jobs, refuse, retry=TWICE)
    (letter,) = await take_dead_letters(kit, jobs.name, 1)
    death, look = letter.death, "pack and unpack of Message"
    kit.same(
        (letter.id, letter.body, dict(letter.headers)),
        ("me", bytes(range(256)), HEADERS),
        "the original message",
        MOVE,
    )

    if death is None:
        raise ContractError("a record of the death", "none", look)
    actual = (death.reason, death.queue, death.attempts, death.error_type, death.error)
    kit.same(
        actual,
        (Reason.RETRIES_EXHAUSTED, jobs.name, 2, "ValueError", "broken: ü"),
        "the record",
        look,
    )
    kit.true("in refuse" in death.traceback, "a traceback", death.traceback, look)

    near = abs(death.first_at - times[0]) < 1 and abs(death.last_at - times[-1]) < 1
    kit.true(near, f"the times of both failures, {times}", (death.first_at, death.last_at), look)


_DEATHS: dict[str, tuple[bytes, int]] = {
    "rejected": (b"1", 1),
    "retries_exhausted": (b"2", 1),
    "timeout": (b"3", 1),
    "undecodable": (b"{", 0),
    "invalid": (b'"x"', 0),
}


@case(
    "G11",
    "G4",
    ids="X01 C34 C90",
    each={name: (name, *expected) for name, expected in _DEATHS.items()},
)
async def each_end_has_its_reason(kit: Kit, expected: tuple[str, bytes, int]) -> None:
    """Each way to fail has its reason; attempts count runs of the handler; the body is kept."""
    reason, body, attempts = expected
    jobs, broker = Queue(kit.name(), int), await kit.broker()
    await kit.within(broker.declare(jobs))
    await kit.publish(
        Outgoing(jobs.name, kit.message("me", body=body, content_type="application/json"))
    )

    async def handler(number: int) -> None:
        if number == 1:
            raise Reject("no")
        if number == int(b"3"):
            await asyncio.Event().wait()
        raise ValueError

    await kit.worker(broker, jobs, handler, retry=ONCE, timeout=0.3)
    (letter,) = await take_dead_letters(kit, jobs.name, 1)
    actual = letter.death and (letter.death.reason.value, letter.death.attempts)
    kit.same(
        (actual, letter.id, letter.body),
        ((reason, attempts), "me", body),
        "reason, attempts and original",
        MOVE,
    )


@case("G2", "G11", ids="X01")
async def without_a_dead_letter_queue_it_is_dropped_and_counted(kit: Kit) -> None:
    """Without a dead-letter queue a rejected message is dropped, and an event reports it.

    Asking for its dead letters raises QueueNotFound.
    """
    loose, broker = Queue(kit.name(), str, dead_letter=None), await kit.broker()
    await reject_all(kit, broker, loose, "x")
    kit.same(broker.events.counts["message.dropped"], 1, "events message.dropped")
    kit.same(
        await kit.contents(loose.name),
        Counter(),
        "messages left in the queue",
        "Subscription.settle: Ack",
    )
    await kit.raises(QueueNotFound, broker.dead_letters(loose).list(), "QueueNotFound")


@case("G1", "G3", "G11", "G15", ids="X03 X02 C22")
async def copies_of_one_routed_message_stay_two_wherever_they_meet(kit: Kit) -> None:
    """Two copies of one routed message stay two in a shared dead-letter queue and afterwards."""
    one, two, end = await kit.queue(), await kit.queue(), await kit.queue()
    shared, message = f"{one}.dlq", kit.message("a")
    await kit.publish(Outgoing(one, message), Outgoing(two, message))

    for source in (one, two):
        consumer = await kit.subscribe(source)
        (delivery,) = await kit.take(consumer, 1)
        letter = Outgoing(shared, delivery.message.moved(source))
        kit.same(
            await kit.settle(consumer, Move(delivery.receipt, letter)),
            [DONE],
            f"the outcome of the Move out of {source}",
            MOVE,
        )

    consumer = await kit.subscribe(shared)
    letters = await kit.take(consumer, 2)
    await kit.settle(
        consumer,
        *[
            Move(delivery.receipt, Outgoing(end, delivery.message.moved(shared)))
            for delivery in letters
        ],
    )
    kit.same(
        await kit.contents(end),
        Counter(["a", "a"]),
        "messages after both came back",
        "dedup by Message.copy_name, lineage",
    )


@case("G11", "G15", ids="X03 C22", needs=(Capability.ROUTING,), protocols=CHOSEN)
async def a_routed_message_dies_in_each_of_its_queues(kit: Kit) -> None:
    """Queues that share a dead-letter queue have their own dead letters, each redriven home."""
    shared = kit.name()
    one, two = (Queue(kit.name(), str, dead_letter=shared) for _ in "12")
    broker, router = await kit.broker(), Router(kit.name(), str, kind="fanout").bind(one).bind(two)
    await kit.within(broker.publish(router, "x", id="me"))

    for jobs in (one, two):
        async with broker.consume(jobs, retry=ONCE) as consumer:
            await kit.within((await kit.within(anext(consumer))).reject())

    letters = await kit.within(broker.dead_letters(shared).list())
    kit.same(
        sorted(letter.queue for letter in letters),
        sorted([one.name, two.name]),
        "the queue of each dead letter",
        "Message.copy_name",
    )
    kit.same(
        len(await kit.within(broker.dead_letters(one).list())),
        1,
        "number of dead letters of one queue",
        "SupportsBrowse.browse",
    )
    kit.same(
        (await kit.within(broker.dead_letters(shared).redrive())).moved,
        ("me", "me"),
        "ids redriven",
        MOVE,
    )

    for jobs in (one, two):
        kit.same(
            await kit.contents(jobs.name),
            Counter(["me"]),
            "messages in each queue after the redrive",
            MOVE,
        )
