"""Profile *core*: opening, declaring, publishing, receiving, closing.

Every backend passes all of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.kit import ContractError
from mqcore.errors import ConnectionLost, PublishFailed, QueueNotFound
from mqcore.queue import Queue
from mqcore.spi import (
    STORED,
    Ack,
    Capability,
    Done,
    ErrorKind,
    Failed,
    Outgoing,
    QueueSpec,
    Stored,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from mqcore.contract.kit import Kit

_CLOSE, _WOKEN, _LONG = 2.0, 0.5, 600.0
"""Seconds that a close may take, that waking a consumer may take, and that a receive may wait which the case itself ends.
"""


# Publish


@case("G1", "G2", ids="C20")
async def a_confirmed_message_is_there_to_be_received(kit: Kit) -> None:
    """`Stored` means that a consumer who comes later gets it, as a first delivery without marks."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    kit.same(
        (delivery.message.id, delivery.attempt),
        ("a", 1),
        "the message at its first attempt",
        "Backend.publish",
    )
    kit.same(
        (delivery.redelivered, delivery.takeovers), (False, 0), "no marks", "Subscription.receive"
    )


@case("G1", ids="C05 C30")
async def an_outcome_comes_for_each_item_in_its_order(kit: Kit) -> None:
    """A queue that is missing fails its own items, with NOT_FOUND and its name, and no others."""
    queue, missing = await kit.queue(), kit.name()
    batch = [
        Outgoing(to, kit.message(name)) for to, name in [(queue, "a"), (missing, "b"), (queue, "c")]
    ]
    outcomes = await kit.publish(*batch)
    kinds = [type(outcome) for outcome in outcomes]
    kit.same(kinds, [Stored, Failed, Stored], "an outcome each, in order", "Backend.publish")
    failed = outcomes[1]
    told = (
        isinstance(failed, Failed) and failed.kind is ErrorKind.NOT_FOUND and missing in failed.text
    )
    kit.true(
        told, f"NOT_FOUND, with the queue's name {missing!r} in the text", failed, "Backend.publish"
    )
    kit.same(await kit.contents(queue), Counter("ac"), "the others stored", "Backend.publish")
    kit.same(await kit.publish(), [], "nothing for an empty batch", "Backend.publish")


@case("G1", "G2", ids="C21")
async def overlapping_publishes_lose_nothing(kit: Kit) -> None:
    """Calls of `publish` may overlap: 30 at once from three instances, each message stored once."""
    queue = await kit.queue()
    producers = [kit.backend, await kit.open(), await kit.open()]
    batches = [
        [Outgoing(queue, kit.message(f"{batch}-{n}")) for n in range(20)] for batch in range(30)
    ]
    patience = kit.harness.patience
    calls = [
        producers[n % len(producers)].publish(batch, timeout=patience)
        for n, batch in enumerate(batches)
    ]
    outcomes = await kit.within(asyncio.gather(*calls))
    kit.same(
        [len(call) for call in outcomes],
        [20] * 30,
        "an outcome for each item of each call",
        "Backend.publish",
    )
    kit.same(
        {it for call in outcomes for it in call},
        {STORED},
        "all stored",
        "Backend.publish: overlapping calls",
    )
    sent = Counter(item.message.id for batch in batches for item in batch)
    found = await kit.contents(queue)
    kit.same(
        (sent - found, found - sent),
        (Counter(), Counter()),
        "of 600 none missing, none twice",
        "Backend.publish",
    )


@case("G1", "G2", ids="C07")
async def a_cancelled_publish_leaves_the_instance_usable(kit: Kit) -> None:
    """Cancelled at any moment it may be stored or not, at most once; the next publish works, and a consumer still gets all."""
    queue, confirmed = await kit.queue(), list[str]()
    for turn in range(60):
        publishing = asyncio.create_task(
            kit.backend.publish([Outgoing(queue, kit.message(f"c{turn}"))], timeout=5.0)
        )
        await _turns(turn % 6)
        publishing.cancel()
        (got,) = await asyncio.gather(publishing, return_exceptions=True)
        if not isinstance(got, BaseException) and list(got) == [STORED]:
            confirmed.append(f"c{turn}")
        await kit.put(queue, f"{turn}")
        confirmed.append(f"{turn}")
    found = await kit.contents(queue)
    kit.same(
        Counter(confirmed) - found,
        Counter(),
        "no confirmed message missing",
        "Backend.publish: cancellation",
    )
    twice = [it for it, count in found.items() if count > 1]
    kit.same(twice, [], "nothing stored twice", "Backend.publish: cancellation")


@case("G1", ids="C04 C07")
async def a_publish_that_ends_in_an_error_has_stored_nothing(kit: Kit) -> None:
    """The instance is closed while it publishes: what was refused, by an outcome or by raising, is not there, nor comes later."""
    queue, refused, confirmed = await kit.queue(), list[str](), list[str]()
    for turn in range(40):
        name, backend = f"{turn}", await kit.open()
        publishing = asyncio.create_task(
            backend.publish([Outgoing(queue, kit.message(name))], timeout=5.0)
        )
        await _turns(turn % 20)
        await kit.within(backend.close(), _CLOSE)
        (ending,) = await kit.within(asyncio.gather(publishing, return_exceptions=True))
        outcome = ending if isinstance(ending, BaseException) else ending[0]
        if isinstance(outcome, (Exception, Failed)):
            refused.append(name)
        elif outcome == STORED:
            confirmed.append(name)
    found = await kit.contents(queue)
    look = "Backend.publish: what it raises or refuses after something was written"
    kit.same(
        [name for name in refused if name in found], [], "nothing stored of what was refused", look
    )
    kit.same(
        [name for name in confirmed if name not in found],
        [],
        "all of what was confirmed",
        "Backend.publish",
    )


@case("G1", ids="B03", needs=(Capability.DEDUP,))
async def a_message_published_again_is_one_copy(kit: Kit) -> None:
    """The same id again is `duplicate` and stores nothing, before the ack and after; it counts for each queue by itself."""
    one, two, look = await kit.queue(), await kit.queue(), "Backend.publish: DEDUP"
    again = [Stored(duplicate=True)]
    await kit.put(one, "a")
    await kit.put(two, "a")
    kit.same(
        await kit.publish(Outgoing(one, kit.message("a"))),
        again,
        "a duplicate while it is there",
        look,
    )
    kit.same(await kit.contents(one), Counter("a"), "one copy", look)
    kit.same(
        await kit.publish(Outgoing(one, kit.message("a"))), again, "a duplicate after the ack", look
    )
    broker = await kit.broker()
    receipt = await kit.within(broker.publish(two, b"a", id="a"))
    kit.same((receipt.id, receipt.duplicate), ("a", True), "what the receipt says", look)
    kit.same(
        (await kit.contents(one), await kit.contents(two)),
        (Counter(), Counter("a")),
        "no second copy",
        look,
    )


# Receive


@case("G2", ids="C31")
async def a_receive_gives_up_to_its_limit_at_once(kit: Kit) -> None:
    """1 to `limit` messages as soon as there is one: what is there comes, and nobody waits for a full page."""
    queue = await kit.queue()
    await kit.put(queue, *"abcde")
    consumer = await kit.subscribe(queue)
    limit, pages, began = 3, list[list[str]](), kit.now
    while sum(map(len, pages)) < len("abcde") and kit.now - began < kit.harness.patience:
        pages.append(kit.ids(await kit.receive(consumer, limit, wait=kit.harness.patience)))
    kit.same(
        [it for page in pages for it in page],
        list("abcde"),
        "all five, in order",
        "Subscription.receive",
    )
    kit.same(
        [page for page in pages if len(page) > limit],
        [],
        "no page of more than 3",
        "Subscription.receive: limit",
    )
    took, look = kit.now - began, "Subscription.receive: it waits until the limit is full"
    kit.true(
        took < kit.harness.patience / 2,
        "a page that is not full comes at once",
        f"{took:.3f} s",
        look,
    )


@case("G2", ids="C32", each={"at-once": 0.0, "after-a-while": 0.3})
async def a_receive_from_an_empty_queue_ends_with_nothing(kit: Kit, timeout: float) -> None:
    """Silence is `[]`, not an error, and comes when the time is over: no sooner, and hardly later."""
    consumer = await kit.subscribe(await kit.queue())
    began = kit.now
    kit.same(await kit.receive(consumer, wait=timeout), [], "nothing", "Subscription.receive")
    took = kit.now - began
    fits = timeout - 0.005 <= took <= timeout + 1.0
    kit.true(fits, f"an end after {timeout:g} s", f"{took:.3f} s", "Subscription.receive: timeout")


@case("G2", ids="C20")
async def a_consumer_that_waits_is_woken_by_a_publish(kit: Kit) -> None:
    """A receive that waits already gets what is published now, from another instance too, within 0.5 s."""
    queue = await kit.queue()
    consumer = await kit.subscribe(queue)
    for name, producer in (("a", kit.backend), ("b", await kit.open())):
        waiting = await kit.start(consumer.receive(10, _LONG))
        began = kit.now
        outcomes = await kit.publish(Outgoing(queue, kit.message(name)), backend=producer)
        kit.same(outcomes, [STORED], "stored", "Backend.publish")
        kit.same(kit.ids(await kit.within(waiting)), [name], "the message", "Subscription.receive")
        took = kit.now - began
        kit.true(
            took < _WOKEN,
            f"woken within {_WOKEN} s",
            f"{took:.3f} s",
            "Subscription.receive: polling",
        )


@case("G1")
async def classify_takes_any_exception(kit: Kit) -> None:
    """What a driver does not know is TRANSIENT or PERMANENT, and never an error of its own."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    errors = [
        ValueError("x"),
        OSError(111, "refused"),
        OSError(),
        TimeoutError(),
        RuntimeError(),
        KeyError("k"),
        Odd(),
    ]
    for error in [
        *errors,
        ConnectionLost("closed"),
        QueueNotFound("gone"),
        ExceptionGroup("two", errors),
    ]:
        try:
            kind: object = kit.backend.classify(error)
        except Exception as raised:  # noqa: BLE001 - this is what must not happen
            kind = f"{type(raised).__name__} raised"
        kit.true(
            isinstance(kind, ErrorKind),
            f"an ErrorKind for {type(error).__name__}",
            kind,
            "Backend.classify",
        )
    kind = kit.backend.classify(QueueNotFound("gone"))
    kit.same(kind, ErrorKind.NOT_FOUND, "core's own word for a missing queue", "Backend.classify")


# Open and close


@case("G14", ids="C01 C02")
async def an_open_broker_is_connected(kit: Kit) -> None:
    """Opening is prompt; health tells connected and consuming apart, and sees the end."""
    broker = await kit.broker()
    health = broker.health()
    kit.same(
        (health.connected, dict(health.consuming)),
        (True, {}),
        "connected, nothing consumed",
        "Backend.open",
    )
    queue = kit.name()
    async with broker.consume(Queue(queue), retry=kit.retry):
        kit.same(dict(broker.health().consuming), {queue: True}, "consuming", "Backend.subscribe")
    await kit.within(broker.close())
    health = broker.health()
    kit.same(
        (health.connected, health.ok), (False, False), "not connected once closed", "Broker.health"
    )


@case("G1", "G14", ids="C01 C02", hooks=("cut",))
async def a_silent_broker_holds_nobody_up(kit: Kit) -> None:
    """With the network cut a publish ends by its deadline, never `Stored`, a close by 2 s, and a connect fails within 15 s."""
    queue, backend = await kit.queue(), kit.harness.make_backend()
    await kit.within(backend.open(lambda _: None))
    async with cast("AbstractAsyncContextManager[None]", kit.harness.cut()):
        try:
            outcomes = list(
                await kit.within(
                    backend.publish([Outgoing(queue, kit.message())], timeout=1.0), 2.0
                )
            )
        except ContractError:
            raise  # it did not end by its deadline
        except Exception as error:  # noqa: BLE001 - it may raise when nothing was sent
            kit.true(
                isinstance(backend.classify(error), ErrorKind), "a kind", error, "Backend.classify"
            )
        else:
            ended = isinstance(outcomes[0], (Failed, Unknown))
            kit.true(ended, "Failed or Unknown", outcomes, "Backend.publish: timeout")
        await kit.within(backend.close(), _CLOSE + 0.5)
        opening = asyncio.gather(
            kit.harness.make_backend().open(lambda _: None), return_exceptions=True
        )
        (ending,) = await kit.within(opening, 15.0)
        kit.true(
            isinstance(ending, Exception),
            "an error, for nobody can be reached",
            ending,
            "Backend.open",
        )
    kit.lost.clear()  # it was we who cut it


@case("G14", ids="C03")
async def open_and_close_come_in_any_order_and_again(kit: Kit) -> None:
    """Close before open, twice, and open again: a new generation that works; confirmed messages are still there."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    backend = kit.harness.make_backend()
    await kit.within(backend.close(), _CLOSE)
    for _ in range(3):
        await kit.within(backend.open(kit.lost.append))
        await kit.within(backend.close(), _CLOSE)
        await kit.within(backend.close(), _CLOSE)
    await kit.open(backend)
    (delivery,) = await kit.take(await kit.subscribe(queue, backend=backend), 1)
    kit.same(delivery.message.id, "a", "the message, through the fourth generation", "Backend.open")


@case("G14", "G17", ids="C03 C04 C33")
async def a_closed_broker_ends_its_consumers_and_refuses_to_publish(kit: Kit) -> None:
    """Closing twice is no error; an iteration ends cleanly, without an exception; a later publish is certainly not stored."""
    broker, queue = await kit.broker(), Queue(kit.name())
    seen, acked = list[bytes](), asyncio.Event()

    async def consume() -> None:
        async with broker.consume(queue, retry=kit.retry) as deliveries:
            async for delivery in deliveries:
                seen.append(delivery.value)
                await delivery.ack()
                acked.set()

    consuming = await kit.start(consume())
    await kit.within(broker.publish(queue, b"a"))
    await kit.within(acked.wait(), what="the message delivered and acked")
    await kit.within(broker.close())
    await kit.within(consuming)
    await kit.within(broker.close())
    kit.same(seen, [b"a"], "the message, then the end of the iteration", "Subscription.close")
    await kit.raises(
        (PublishFailed, ConnectionLost),
        broker.publish(queue, b"b"),
        "PublishFailed",
        "Broker.close",
    )
    kit.same(
        await kit.contents(queue.name),
        Counter(),
        "nothing left and nothing stored late",
        "Backend.close",
    )


@case("G1", ids="C04")
async def a_closed_instance_refuses_every_call_in_clear_words(kit: Kit) -> None:
    """Each call raises, says that it is closed, and is TRANSIENT: worth another try after `open`."""
    queue = await kit.queue()
    backend = await kit.open()
    consumer = await kit.subscribe(queue, backend=backend)
    await kit.within(backend.close(), _CLOSE)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "Backend.publish": lambda: backend.publish([Outgoing(queue, kit.message())], timeout=1.0),
        "Backend.subscribe": lambda: backend.subscribe(queue, prefetch=1, lease=30.0),
        "Backend.declare": lambda: backend.declare([QueueSpec(name=queue)]),
        "Subscription.receive": lambda: consumer.receive(1, 0.0),
    }
    for name, call in calls.items():
        error = await kit.raises(Exception, call(), f"an error of {name} after close", name)
        kit.true("close" in str(error).lower(), "a text that says: closed", error, name)
        kit.kind(error, ErrorKind.TRANSIENT)
    kit.same(await kit.contents(queue), Counter(), "nothing stored", "Backend.publish")


@case("G2", ids="C04 C09")
async def a_consumer_closes_at_once_and_for_good(kit: Kit) -> None:
    """A waiting receive ends with `[]`; closing takes no 2 s, twice too; a closed consumer raises and says so."""
    consumer = await kit.subscribe(await kit.queue())
    waiting = await kit.start(consumer.receive(10, _LONG))
    await kit.within(consumer.close(), _CLOSE)
    kit.same(list(await kit.within(waiting, 1.0)), [], "an end with nothing", "Subscription.close")
    await kit.within(consumer.close(), _CLOSE)
    error = await kit.raises(
        Exception, consumer.receive(1, 0.0), "an error", "Subscription.receive after close"
    )
    kit.true(
        "close" in str(error).lower(), "a text that says: closed", error, "Subscription.receive"
    )


@case("G2", "G13", ids="C09")
async def a_full_consumer_closes_at_once_too(kit: Kit) -> None:
    """One that holds its whole prefetch and waits for room closes within 2 s; so does its instance."""
    queue = await kit.queue()
    await kit.put(queue, *"abc")
    for close_all in (False, True):
        backend = await kit.open()
        consumer = await kit.subscribe(queue, prefetch=1, lease=2.0, backend=backend)
        await kit.take(consumer, 1)
        waiting = await kit.start(consumer.receive(1, _LONG))
        kit.true(
            not waiting.done(),
            "nothing beyond the prefetch",
            waiting,
            "Subscription.receive: prefetch",
        )
        await kit.within(backend.close() if close_all else consumer.close(), _CLOSE)
        await kit.within(asyncio.gather(waiting, return_exceptions=True), 1.0)
    kit.same(
        len(await kit.take(await kit.subscribe(queue), 3)),
        3,
        "all three still there",
        "Subscription.close",
    )


@case("G2", ids="C10")
async def consumers_that_come_and_go_lose_nothing(kit: Kit) -> None:
    """Eight at once, of two instances, that take, ack one and leave the rest while messages are published."""
    queue = await kit.queue()
    backends = [kit.backend, await kit.open()]
    acked: Counter[str] = Counter()

    async def come_and_go(number: int) -> None:
        for _ in range(3):
            consumer = await backends[number % 2].subscribe(queue, prefetch=3, lease=2.0)
            held = await consumer.receive(3, 0.2)
            for delivery in held[:1]:
                (settled,) = await consumer.settle([Ack(delivery.receipt)], timeout=5.0)
                acked.update([delivery.message.id] if isinstance(settled, Done) else [])
            await consumer.close()

    async def publish() -> None:
        for batch in range(8):
            await kit.backend.publish(
                [Outgoing(queue, kit.message(f"{batch}-{n}")) for n in range(5)], timeout=5.0
            )

    await kit.within(asyncio.gather(publish(), *(come_and_go(number) for number in range(8))), 60.0)
    rest = await kit.take(await kit.subscribe(queue), 40 - len(acked))
    names = Counter(f"{batch}-{n}" for batch in range(8) for n in range(5))
    kit.same(
        acked + Counter(kit.ids(rest)),
        names,
        "each once, acked or left",
        "Subscription.close, Backend.subscribe",
    )
    kit.true(acked, "some of them acked", acked, "Subscription.receive")


@case("G2", ids="C11 C48")
async def consuming_stops_and_starts_again(kit: Kit) -> None:
    """Ten short consumers in a row, each acking what it got, lose nothing.

    They keep the order where ORDER states `release_in_place`. Elsewhere what a consumer had fetched
    and not handed out may go behind the others when it closes.
    """
    in_place = kit.limit(Capability.ORDER, "release_in_place")
    queue, names, seen = await kit.queue(), [f"{number:02}" for number in range(30)], list[str]()
    await kit.put(queue, *names)
    for _ in range(10):
        consumer = await kit.subscribe(queue, prefetch=3)
        deliveries = await kit.take(consumer, 3)
        await kit.ack(consumer, deliveries)
        seen += kit.ids(deliveries)
        await kit.within(consumer.close(), _CLOSE)
    kit.same(
        seen if in_place else sorted(seen),
        names,
        "all, in order" if in_place else "all of them, once",
        "Subscription.close: what it had fetched and not handed out",
    )


# Cancellation


@case("G2", ids="C07 L03")
async def a_cancelled_receive_strands_nothing(kit: Kit) -> None:
    """Whenever the cancellation meets a publish, each message is handed out once, unmarked, by this call or the next."""
    queue = await kit.queue()
    consumer = await kit.subscribe(queue, prefetch=10)
    for turn in range(300):
        waiting = asyncio.create_task(consumer.receive(1, _LONG))
        await _turns(turn % 3)
        if turn % 2:
            waiting.cancel()
        await kit.backend.publish([Outgoing(queue, kit.message(f"{turn}"))], timeout=5.0)
        await _turns(turn // 6 % 8)
        waiting.cancel()
        (got,) = await asyncio.gather(waiting, return_exceptions=True)
        deliveries = [] if isinstance(got, BaseException) else list(got)
        deliveries = deliveries or await kit.take(consumer, 1)
        marks = [(it.message.id, it.redelivered, it.takeovers) for it in deliveries]
        kit.same(
            marks,
            [(f"{turn}", False, False)],
            f"turn {turn}: what was just published, unmarked",
            "receive: cancellation",
        )
        await kit.ack(consumer, deliveries)
    kit.same(
        await kit.contents(queue), Counter(), "nothing left", "Subscription.receive: cancellation"
    )


@case("G2", ids="C07 C23")
async def a_message_meant_for_a_cancelled_consumer_goes_to_another(kit: Kit) -> None:
    """A wake-up dies with nobody: of two who wait one is cancelled at the publish, and the other gets it at once."""
    queue = await kit.queue()
    for turn in range(20):
        one, two = await kit.subscribe(queue), await kit.subscribe(queue)
        tasks = [asyncio.create_task(consumer.receive(1, _LONG)) for consumer in (one, two)]
        await kit.advance(0.02)
        await kit.backend.publish([Outgoing(queue, kit.message(f"{turn}"))], timeout=5.0)
        await _turns(turn % 5)
        tasks[0].cancel()
        (first,) = await asyncio.gather(tasks[0], return_exceptions=True)
        if isinstance(first, BaseException):
            await kit.within(one.close(), _CLOSE)
            first = await kit.within(tasks[1], 1.0)
            kit.same(
                kit.ids(first),
                [f"{turn}"],
                "for the other who waits",
                "Subscription.receive: cancellation",
            )
            await kit.ack(two, first)
        else:
            await kit.ack(one, first)
        await kit.within(
            asyncio.gather(one.close(), two.close(), *tasks, return_exceptions=True), _CLOSE
        )


async def _turns(count: int) -> None:
    """Let whatever is runnable run, so many times: a cancellation then meets a call at another of its steps."""
    for _ in range(count):
        await asyncio.sleep(0)
