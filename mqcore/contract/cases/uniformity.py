"""Profile *uniformity*: one behaviour everywhere: what a message keeps, what a name means, and both ways to call."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from mqcore import sync
from mqcore.clock import SystemClock
from mqcore.config.settings import Settings
from mqcore.contract.case import case
from mqcore.contract.kit import ContractError, NotShown
from mqcore.errors import (
    ConfigurationError,
    MqcoreError,
    PublishFailed,
    PublishUnknown,
    QueueNotFound,
    UnsupportedFeature,
    ValidationError,
)
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    Capability,
    Death,
    Durability,
    Failed,
    Message,
    Move,
    Outgoing,
    Reason,
    Release,
    Stored,
    SupportsBrowse,
    SupportsCount,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.contract.kit import Kit
    from mqcore.spi import Backend, Outcome, Settlement

DUPLICATE = Stored(duplicate=True)
DEDUP = "Backend.publish: DEDUP by Message.copy_name"
COPIES = "where the driver writes and reads a Message; pack and unpack of mqcore.spi"
ONCE = RetryPolicy(1)
_WINDOWS = (Capability.DEDUP,)
_DEATH = Death(
    reason=Reason.TIMEOUT,
    queue="some.queue",
    attempts=7,
    first_at=1_700_000_000.25,
    last_at=1_700_000_001.5,
    error_type="shop.Überlauf",
    error='two\nlines, "quoted", 世界 🐇',
    traceback="Traceback …\n" * 100,
)


def _full(kit: Kit) -> Message:
    """Return a message of which every field is set."""
    return kit.message(
        "a-1_~!",
        body=bytes(range(256)),
        content_type="application/json; charset=utf-8",
        headers={
            "plain": "text",
            "unicode": "Grüße 世界 🐇",
            "tab": "a\tb",
            "empty": "",
            "Upper.case_-9": "x" * 2000,
        },
        priority=7,
        attempt=3,
        hop=2,
        lineage="0badcafe",
        correlation_id="c-1",
        reply_to="mq.reply.somebody",
        failed_at=1_700_000_000.125,
        redriven=2,
        death=_DEATH,
    )


# What a message keeps


@case(
    "G17",
    "G3",
    "G10",
    "G11",
    ids="C26 C28 R07 X02",
    each={how: how for how in ("release", "crash", "move", "delay")},
)
async def every_field_survives(kit: Kit, how: str) -> None:
    """Headers, unicode, record of death, lineage, correlation and times: after a release, a takeover, a Move and a delay."""
    if how == "delay" and not kit.capabilities.has(Capability.DELAY):
        raise NotShown("declares no DELAY")
    queue, victim, wanted = await kit.queue(), await kit.open(), _full(kit)
    await kit.publish(Outgoing(queue, wanted, 0.3 if how == "delay" else 0.0))
    consumer = await kit.subscribe(queue, lease=1.0, backend=victim)
    if how != "delay":
        (delivery,) = await kit.take(consumer, 1)
        move = Move(delivery.receipt, Outgoing(queue, delivery.message.moved(queue)))
        steps: dict[str, Settlement] = {"release": Release(delivery.receipt), "move": move}
        if how in steps:
            kit.same(await kit.settle(consumer, steps[how]), [DONE], how, "Subscription.settle")
        wanted = wanted.moved(queue) if how == "move" else wanted
    await kit.kill(victim)
    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    for name in (field.name for field in fields(Message)):
        came, sent = getattr(delivery.message, name), getattr(wanted, name)
        kit.same(came, sent, f"Message.{name}", COPIES)


@case("G17", "G3", ids="U05")
async def what_is_moved_is_copied(kit: Kit) -> None:
    """What the mover changes afterwards in the successor's body and headers is not seen by who receives it."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    headers, body = {"colour": "red"}, bytearray(b"before")
    move = kit.successor(delivery, f"{queue}.dlq", headers=headers, body=body)
    kit.same(await kit.settle(consumer, move), [DONE], "the Move", "Subscription.settle: Move")
    headers["colour"] = "blue"
    body[:] = b"after!"
    (got,) = await kit.take(await kit.subscribe(f"{queue}.dlq"), 1)
    came = dict(got.message.headers), bytes(got.message.body)
    kit.same(
        came,
        ({"colour": "red"}, b"before"),
        "the successor as it was moved",
        "Subscription.settle: Move, copy",
    )


@case("G17", ids="U05 R07")
async def payloads_are_encoded_and_copied(kit: Kit) -> None:
    """Neither the publisher's later changes nor a failed handler's are seen by the next attempt."""
    jobs, broker, seen, over = (
        Queue(kit.name(), list),
        await kit.broker(),
        list[Any](),
        asyncio.Event(),
    )

    async def handler(payload: list[Any]) -> None:
        seen.append(list(payload))
        payload.append("changed by a handler")
        if len(seen) == 1:
            raise ValueError
        over.set()

    payload = [1, {"two": [2.5, None, "Grüße"]}]
    await kit.within(broker.publish(jobs, payload))
    wanted = [1, {"two": [2.5, None, "Grüße"]}]
    cast("dict[str, list[Any]]", payload[1])["two"].clear()
    await kit.worker(broker, jobs, handler, retry=RetryPolicy(2, fixed(0.0)))
    await kit.within(over.wait(), what="the second attempt")
    kit.same(
        seen,
        [wanted, wanted],
        "the payload as published, twice",
        "Backend.publish, Subscription.settle: copy",
    )


# What a name means: one stored copy inside the window


@case(
    "G1",
    ids="B03 C85",
    needs=_WINDOWS,
    each={how: how for how in ("ready", "leased", "acked", "released", "moved")},
)
async def a_message_published_twice_is_stored_once(kit: Kit, became: str) -> None:
    """The outcome says `duplicate`, whatever became of the first copy, which is the one that stays."""
    queue = await kit.queue()
    consumer = await kit.subscribe(queue)
    await kit.put(queue, "a")
    if became != "ready":
        (delivery,) = await kit.take(consumer, 1)
        steps: dict[str, Settlement] = {
            "acked": Ack(delivery.receipt),
            "released": Release(delivery.receipt),
            "moved": kit.successor(delivery, f"{queue}.dlq"),
        }
        if became in steps:
            kit.same(
                await kit.settle(consumer, steps[became]), [DONE], became, "Subscription.settle"
            )
    again = [Outgoing(queue, kit.message("a", body=b"again"))] * 2
    kit.same(
        await kit.publish(*again), [DUPLICATE] * 2, f"duplicates of one that is {became}", DEDUP
    )
    bodies = [delivery.message.body for delivery in await kit.receive(consumer)]
    kit.same(
        bodies, [b"a"] if became in {"ready", "released"} else [], "what is there to be had", DEDUP
    )


@case("G1", "G15", ids="B03", needs=_WINDOWS)
async def id_hop_lineage_and_queue_make_the_name(kit: Kit) -> None:
    """Copies that differ in one of them are different, however alike they look when written in one line."""
    queue, other = await kit.queue(), await kit.queue()
    names = [
        ("a", 11, ""),
        ("a1", 1, ""),
        ("a", 1, ""),
        ("A", 1, ""),
        ("a:1", 0, ""),
        ("a:1:0", 0, ""),
        ("a", 0, ""),
    ]
    names += [
        ("a", 1, "0badcafe"),
        ("a", 0, "0badcafe"),
        ("a-1", 0, ""),
        ("a/1", 1, ""),
        ("a", 10, ""),
    ]
    batch = [
        Outgoing(to, Message(id=id_, body=b"", hop=hop, lineage=line))
        for to in (queue, other)
        for id_, hop, line in names
    ]
    kit.same(await kit.publish(*batch), [STORED] * len(batch), "all of them stored", DEDUP)
    kit.same(await kit.publish(*batch), [DUPLICATE] * len(batch), "all of them known", DEDUP)


@case("G1", "G14", ids="B03", needs=_WINDOWS)
async def every_instance_sees_the_same_window(kit: Kit) -> None:
    """After a reconnect, or from another process, publishing an unknown again stores one copy."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    again = Outgoing(queue, kit.message("a"))
    kit.same(await kit.publish(again, backend=await kit.open()), [DUPLICATE], "a duplicate", DEDUP)
    kit.same(await kit.contents(queue), Counter("a"), "one copy", DEDUP)


@case("G1", "G12", ids="B03", needs=(Capability.DEDUP, Capability.MAX_LENGTH))
async def a_full_queue_remembers_what_it_holds_and_not_what_it_refused(kit: Kit) -> None:
    """What is there is a duplicate, also when the queue is full; what was certainly not stored may be published again."""
    queue = await kit.queue(max_length=1)
    await kit.put(queue, "a")
    duplicate, refused = await kit.publish(
        Outgoing(queue, kit.message("a")), Outgoing(queue, kit.message("b"))
    )
    kit.same(duplicate, DUPLICATE, "what is there already", DEDUP)
    kit.true(isinstance(refused, Failed), "a refusal", refused, "Backend.publish: max_length")
    kit.same(await kit.contents(queue), Counter("a"), "one message", DEDUP)
    await kit.put(queue, "b")


@case("G1", ids="B03", needs=_WINDOWS, protocols=(SupportsCount,))
async def a_duplicate_changes_no_count(kit: Kit) -> None:
    """Nothing was stored, so nothing is counted."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    kit.same(
        await kit.publish(Outgoing(queue, kit.message("a"))), [DUPLICATE], "a duplicate", DEDUP
    )
    (counts,) = await kit.within(cast("SupportsCount", kit.backend).count([queue]))
    kit.true(
        (counts.ready, counts.published) in {(1, 1), (1, None)},
        "one ready, one published",
        counts,
        DEDUP,
    )


# Three endings of a publish


@case("G1", "G2", ids="B01 C70", hooks=("restart",))
async def what_was_confirmed_survives_the_broker(kit: Kit) -> None:
    """Every message whose storage was confirmed before the server was killed is there after it has come back."""
    if kit.capabilities.durability is Durability.MEMORY:
        raise NotShown("its durability is memory: nothing is promised")
    queue, names = await kit.queue(), [f"{n:02}" for n in range(50)]
    await kit.put(queue, *names)
    await kit.kill(kit.backend)
    await kit.harness.restart()
    consumer = await kit.subscribe(queue, backend=await kit.open())
    kit.same(
        sorted(kit.ids(await kit.take(consumer, len(names)))),
        names,
        "all that was confirmed",
        "Backend.publish",
    )


@case("G1", ids="B02")
async def what_nobody_takes_is_an_error_with_its_id(kit: Kit) -> None:
    """A queue that is missing is `QueueNotFound`, certainly not stored, and names the message."""
    broker = await kit.broker()
    error = await kit.raises(
        QueueNotFound, broker.publish(kit.name(), b"x", id="me"), "QueueNotFound", "Backend.publish"
    )
    kit.same(isinstance(error, PublishFailed) and error.id, "me", "the id in a PublishFailed")
    (ending,) = await kit.within(broker.publish_many(kit.name(), [b"x"]))
    kit.true(
        isinstance(ending, QueueNotFound), "QueueNotFound as a value", ending, "Backend.publish"
    )


@case("G1", ids="B03 C71", needs=_WINDOWS)
async def an_unknown_published_again_is_stored_once(kit: Kit) -> None:
    """`PublishUnknown` carries the id; with it a second publish is safe, and its receipt says `duplicate`."""
    silent = True

    def make() -> Backend:
        backend = kit.harness.make_backend()
        real = backend.publish

        async def publish(batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
            outcomes = await real(batch, timeout=timeout)
            return [Unknown("the answer got lost")] * len(batch) if silent else outcomes

        cast("Any", backend).publish = publish
        return backend

    jobs, broker = Queue(kit.name(), str), await kit.broker(make_backend=make)
    error = await kit.raises(
        PublishUnknown, broker.publish(jobs, "x"), "PublishUnknown when no answer comes"
    )
    silent = False
    id_ = cast("PublishUnknown", error).id
    receipt = await kit.within(broker.publish(jobs, "x", id=id_))
    kit.same(
        (receipt.id, receipt.duplicate), (id_, True), "a receipt for the copy that is there", DEDUP
    )
    kit.same(await kit.contents(jobs.name), Counter([id_]), "one copy", DEDUP)


@case(
    "G16",
    "G12",
    ids="U02 U03",
    needs=(Capability.MAX_LENGTH,),
    each={mode: mode for mode in ("reject", "dead_letter")},
)
async def an_overflow_mode_works_or_is_refused(kit: Kit, mode: Any) -> None:
    """What the limit `modes` names can be declared; another raises `UnsupportedFeature`, and no queue is made."""
    broker, jobs = await kit.broker(), Queue(kit.name(), str, max_length=1, overflow=mode)
    if mode in str(kit.limit(Capability.MAX_LENGTH, "modes")).split(","):
        await kit.within(broker.publish(jobs, "x"))
    else:
        await kit.raises(
            UnsupportedFeature,
            broker.publish(jobs, "x"),
            f"UnsupportedFeature for overflow={mode!r}",
        )
        await kit.raises(QueueNotFound, broker.publish(jobs.name, b"x"), "no queue made")


# Async and blocking


async def _blocking(kit: Kit, work: Callable[[sync.Broker], Any]) -> Any:
    """Run `work` with a blocking Broker of the same server, in a thread, in real time."""

    def run() -> Any:
        options: Any = {
            "make_backend": kit.harness.make_backend,
            "settings": Settings(),
            "clock": SystemClock(),
        }
        with sync.Broker(**options) as broker:
            return work(broker)

    limited = asyncio.timeout(kit.harness.patience)
    try:
        async with limited:
            return await asyncio.to_thread(run)
    except TimeoutError:
        if not limited.expired():
            raise  # the driver's own
        raise ContractError(
            f"an end of a blocking call within {kit.harness.patience:g} s", "it still goes on"
        ) from None


@case("G17", ids="U04")
async def both_ways_to_publish_store_the_same(kit: Kit) -> None:
    """The blocking API's message differs from the async one's in id and time alone; so do the receipts."""
    queue, broker = Queue(kit.name(), dict), await kit.broker()
    options: dict[str, Any] = {"headers": {"note": "Grüße"}}
    if kit.capabilities.has(Capability.PRIORITY):
        options["priority"] = 8
    payload: dict[str, Any] = {"number": 1, "text": "世界"}
    one = await kit.within(broker.publish(queue, payload, id="async", **options))
    two = await _blocking(
        kit, lambda blocking: blocking.publish(queue, payload, id="sync", **options)
    )
    kit.same((one.queues, one.duplicate), (two.queues, two.duplicate), "the same receipt")
    found = {it.message.id: it.message for it in await kit.take(await kit.subscribe(queue.name), 2)}
    for name in (field.name for field in fields(Message)):
        if name not in {"id", "published_at"}:
            kit.same(
                getattr(found["sync"], name),
                getattr(found["async"], name),
                f"the same Message.{name}",
                COPIES,
            )


_WRONG: dict[str, tuple[type[Exception], Callable[[Any, str], Any]]] = {
    "missing queue": (QueueNotFound, lambda broker, name: broker.publish(name, b"")),
    "wrong payload": (ValidationError, lambda broker, name: broker.publish(Queue(name, int), "x")),
    "priority": (ValidationError, lambda broker, name: broker.publish(name, b"", priority=11)),
    "ttl": (ValidationError, lambda broker, name: broker.publish(name, b"", ttl=0)),
    "option": (ConfigurationError, lambda broker, name: broker.publish(name, b"", colour="red")),
    "described twice": (
        MqcoreError,
        lambda broker, name: broker.declare(Queue(name, max_length=1), Queue(name, ttl=60)),
    ),
}


@case("G17", "G1", ids="U04", each=_WRONG)
async def both_ways_to_call_raise_the_same(
    kit: Kit, wrong: tuple[type[Exception], Callable[[Any, str], Any]]
) -> None:
    """An error has one type and one text, however the broker was called."""
    kind, ask = wrong
    broker, name = await kit.broker(), kit.name()
    one = await kit.raises(kind, ask(broker, name), kind.__name__)

    async def blocking() -> None:
        await _blocking(kit, lambda blocking: ask(blocking, name))

    try:
        await blocking()
    except kind as two:
        kit.same(type(two), type(one), "one type of error")
    else:
        kit.true(False, f"{kind.__name__} in the blocking API", "nothing was raised")  # noqa: FBT003 - the check's value


@case("G17", ids="U04", protocols=(SupportsBrowse,))
async def both_ways_to_consume_settle_the_same(kit: Kit) -> None:
    """Ack, release and reject of the blocking API leave the queue and its dead letters as the async ones do."""
    if not kit.clock.real:
        raise NotShown(
            "a blocking consumer waits in real time: run the contract once with a real clock"
        )
    one, two = Queue(kit.name(), str), Queue(kit.name(), str)
    broker = await kit.broker()
    for queue in (one, two):
        await kit.within(broker.publish_many(queue, "abc"))
    async with broker.consume(one, retry=ONCE, prefetch=3) as consumer:
        for how in ("ack", "release", "reject"):
            await kit.within(getattr(await kit.within(anext(consumer)), how)())
            if how == "release":
                await kit.within((await kit.within(anext(consumer))).ack())

    def work(blocking: sync.Broker) -> None:
        with blocking.consume(two, retry=ONCE, prefetch=3) as consumer:
            for how in ("ack", "release", "reject"):
                getattr(next(consumer), how)()
                if how == "release":
                    next(consumer).ack()

    await _blocking(kit, work)
    for queue in (one, two):
        kit.same(await kit.contents(queue.name), Counter(), "an empty queue", "Subscription.settle")
        (letter,) = await kit.within(broker.dead_letters(queue).list())
        kit.same(
            (letter.reason, letter.attempts),
            ("rejected", 1),
            "one dead letter",
            "Subscription.settle: Move",
        )
