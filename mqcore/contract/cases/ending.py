"""Profile *ending*: consumers that stop while they hold messages, and late answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.errors import Reject, Retry
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import (
    STORED,
    Ack,
    Capability,
    Done,
    Outgoing,
    Release,
    Settlement,
    SupportsPause,
    SupportsProof,
)

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from mqcore.contract.kit import Kit
    from mqcore.spi import Backend, Delivery, Subscription

_LONG, _GRACE = 600.0, 30.0
_AT_ONCE = 2.0
"""Seconds in which others receive what a stopped consumer does not take."""
_TURNS = 8
_LATE = 0.6
"""Seconds by which answers are late: longer than a drain waits after its grace."""
_COUNT = 6
_PAUSE = "Subscription: SupportsPause, where the broker sends messages unasked"


# Stopping at the broker


async def _stopped(kit: Kit, consumer: Subscription) -> None:
    """Stop a consumer as core does: no more receives, and the broker is asked to pause it."""
    receiving = await kit.start(_received(consumer))
    receiving.cancel()
    await asyncio.wait([receiving])
    if isinstance(consumer, SupportsPause):
        await kit.within(consumer.pause())


async def _received(consumer: Subscription) -> list[Delivery]:
    return list(await consumer.receive(100, _LONG))


async def _others_have(kit: Kit, queue: str, names: list[str]) -> None:
    """Check that another consumer soon gets all of these, none marked as taken over."""
    began, other = kit.now, await kit.subscribe(queue)
    got = await kit.take(other, len(names))
    kit.true(
        kit.now - began <= _AT_ONCE,
        f"all within {_AT_ONCE:g} s",
        f"{kit.now - began:.2f} s",
        _PAUSE,
    )

    marks = sorted((delivery.message.id, delivery.takeovers) for delivery in got)
    kit.same(marks, [(name, 0) for name in names], "id and takeovers of each message", _PAUSE)

    await kit.ack(other, got)
    await kit.within(other.close())


@case("G13", "G4", ids="C42")
async def a_stopped_consumer_takes_nothing_from_others(kit: Kit) -> None:
    """A stopped consumer gets no new messages, and can still settle those it holds."""
    queue = await kit.queue()
    stops = await kit.subscribe(queue, prefetch=50)
    await kit.put(queue, "held")
    held = await kit.take(stops, 1)
    await _stopped(kit, stops)
    names = [f"{number:02}" for number in range(20)]
    await kit.put(queue, *names)
    await _others_have(kit, queue, names)

    await kit.ack(stops, held)
    await kit.within(stops.close())
    kit.same(
        await kit.contents(queue),
        Counter(),
        "messages left in the queue",
        "Subscription.settle: after pause",
    )


@case("G13", "G4", ids="C42 C07")
async def what_a_stopped_consumer_has_not_handed_out_is_for_others_at_once(kit: Kit) -> None:
    """Messages that a driver prefetched go back when its consumer is stopped, before its close."""
    queue, names = await kit.queue(), [f"{number:02}" for number in range(10)]
    stops = await kit.subscribe(queue, prefetch=50)
    await kit.put(queue, *names)
    held = await kit.receive(stops, 1, wait=kit.harness.patience)
    # The driver may fetch more than this second message.
    receiving = await kit.start(stops.receive(1, _LONG))
    held += list(await kit.within(receiving))
    kit.same(len(held), 2, "number of messages received", "Subscription.receive: limit")

    if isinstance(stops, SupportsPause):
        await kit.within(stops.pause())
    await _others_have(kit, queue, sorted(set(names) - set(kit.ids(held))))

    await kit.ack(stops, held)
    await kit.within(stops.close())
    kit.same(
        await kit.contents(queue),
        Counter(),
        "messages left in the queue",
        "Subscription.settle: after pause",
    )


@case("G13", "G4", ids="C42 C50")
async def a_draining_worker_takes_nothing_from_others(kit: Kit) -> None:
    """While a worker drains, new messages go to the other worker at once."""
    queue, began, go = Queue(kit.name(), str), asyncio.Event(), asyncio.Event()
    actual, again = asyncio.Queue[str](), list[str]()

    async def slow(_: str) -> None:
        began.set()
        await go.wait()

    async def quick(word: str) -> None:
        actual.put_nowait(word)

    broker = await kit.broker()
    await kit.within(broker.publish(queue, "slow"))
    drains = await kit.worker(broker, queue, slow, concurrency=1, prefetch=50)
    await kit.within(began.wait(), what="the slow handler started")
    draining = await kit.start(drains.drain(_GRACE))
    others = await kit.broker()
    others.events.listen(
        lambda event: again.append(event.name) if event.name == "message.taken_over" else None
    )
    await kit.worker(others, queue, quick)
    words, start = [f"{number:02}" for number in range(20)], kit.now
    await kit.within(broker.publish_many(queue, words))
    got = sorted([await kit.within(actual.get()) for _ in words])
    kit.same(got, words, "messages handled by the other worker", _PAUSE)
    kit.true(
        kit.now - start <= _AT_ONCE,
        f"all within {_AT_ONCE:g} s",
        f"{kit.now - start:.2f} s",
        _PAUSE,
    )
    kit.same(again, [], "events message.taken_over", _PAUSE)

    go.set()
    await kit.within(draining)
    kit.same(
        await kit.contents(queue.name),
        Counter(),
        "messages left in the queue",
        "Subscription.settle: after pause",
    )


@case("G9", "G13", needs=(Capability.ORDER,), each={"at once": 0.0, "later": 0.3})
async def what_an_ended_consumer_has_not_begun_keeps_its_order(kit: Kit, after: float) -> None:
    """Unstarted messages of a consumer that ends keep their order among themselves.

    They return to their old places, or go behind the waiting messages where ORDER says so.
    """
    broker, queue = await kit.broker(), Queue(kit.name(), str)
    names = [f"{number:02}" for number in range(20)]
    await kit.within(broker.publish_many(queue, names))

    async with broker.consume(queue, prefetch=8) as deliveries:
        for _ in range(3):
            await kit.within((await kit.within(anext(deliveries))).ack())
        await kit.advance(after)

    other, got = await kit.subscribe(queue.name, prefetch=1), list[str]()
    for _ in names[3:]:
        (delivery,) = await kit.take(other, 1)
        got += [f"{delivery.message.body.decode()}"]
        await kit.ack(other, [delivery])

    in_place = kit.limit(Capability.ORDER, "release_in_place")
    first = 0 if in_place or got[0] not in names else names.index(got[0]) - 3
    expected = names[3 + first :] + names[3 : 3 + first]
    look = "Subscription.settle: Release, and pause: the order in which they take effect"
    kit.same(
        got,
        expected,
        "the rest in order" if in_place else "the rest, and behind it what was given back",
        look,
    )


# Ending beside a settlement


def _settlement(kit: Kit, how: str, held: Delivery, dlq: str) -> Settlement:
    if how == "move":
        return kit.successor(held, dlq)
    return Ack(held.receipt) if how == "ack" else Release(held.receipt)


@case("G3", "G2", ids="C45", each={"ack": "ack", "move": "move", "release": "release"})
async def a_close_beside_a_settlement_loses_nothing(kit: Kit, how: str) -> None:
    """A settlement that a close interrupts has taken effect, or its message comes back."""
    queue, names, came_back = await kit.queue(), list[str](), Counter[str]()
    dlq, lease = f"{queue}.dlq", 2.0
    for turn in range(2 * _TURNS):
        name = f"{turn:02}"
        names.append(name)
        await kit.put(queue, name)
        consumer = await kit.subscribe(queue, lease=lease)
        held = await kit.take(consumer, 1)
        while kit.ids(held) != [name]:  # a message that came back from an earlier turn
            came_back.update(kit.ids(held))
            await kit.ack(consumer, held)
            held = await kit.take(consumer, 1)
        item = _settlement(kit, how, held[0], dlq)
        settling = asyncio.ensure_future(consumer.settle([item], timeout=kit.harness.patience))
        for _ in range(turn // 2):
            await asyncio.sleep(0)
        if turn % 2:
            settling.cancel()
        await kit.within(consumer.close())
        await kit.within(asyncio.gather(settling, return_exceptions=True))

    if kit.capabilities.has(Capability.LEASE):
        await kit.advance(lease + 0.5)
    copies = came_back + await kit.contents(queue) + await kit.contents(dlq)
    atomic = kit.capabilities.has(Capability.ATOMIC_MOVE)
    least, most = int(how != "ack"), 1 if atomic or how == "ack" else 2
    wrong = {name: copies[name] for name in names if not least <= copies[name] <= most}
    kit.same(
        wrong,
        {},
        f"copies of each message, {least} to {most}",
        "Subscription.close: beside a settlement",
    )


@case("G2", ids="C46", hooks=("cut",))
async def an_acknowledgement_into_silence_is_not_taken_for_done(kit: Kit) -> None:
    """When the broker does not answer, an ack is not reported as done.

    `settle` does not answer `Done`, or `prove` (`ack_first`) answers False.
    """
    queue, limit, backend = await kit.queue(), 1.0, kit.harness.make_backend()
    await kit.within(backend.open(lambda _: None))
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue, backend=backend)
    held = await kit.take(consumer, 1)
    await kit.kill(kit.backend)

    async with cast("AbstractAsyncContextManager[None]", kit.harness.cut()):
        began = kit.now
        (settled,) = await kit.within(
            consumer.settle([Ack(held[0].receipt)], timeout=limit), limit + 1.0
        )
        proven = isinstance(settled, Done)
        if proven and isinstance(consumer, SupportsProof):
            proven = await kit.within(consumer.prove(timeout=limit), limit + 1.0)
        kit.true(
            not proven,
            "an outcome other than Done, or no proof of it",
            settled,
            "Subscription.settle, SupportsProof.prove",
        )
        kit.true(
            kit.now - began <= 2 * limit + 1.0,
            "an answer by its timeout",
            kit.now - began,
            "Subscription.settle",
        )
        await kit.within(backend.close(), 3.0)

    kit.lost.clear()  # the case itself cut the connection


# Late answers


@case(
    "G3",
    "G13",
    ids="C45 C50",
    hooks=("mute",),
    each={"ack": "ack", "reject": "reject", "retry": "retry"},
)
async def late_answers_at_a_drain_double_nothing(kit: Kit, how: str) -> None:
    """When settlements are answered late during a drain, no message is lost or doubled."""
    queue, made, go = Queue(kit.name(), str), list["Backend"](), asyncio.Event()
    started: Counter[str] = Counter()

    def make() -> Backend:
        made.append(kit.harness.make_backend())
        return made[-1]

    async def handler(word: str) -> None:
        started[word] += 1
        await go.wait()
        if how == "reject":
            raise Reject("as the case says")
        if how == "retry":
            raise Retry(delay=0)

    words = [f"{number:02}" for number in range(_COUNT)]
    broker = await kit.broker(make_backend=make)
    await kit.within(broker.publish_many(queue, words))
    policy = RetryPolicy(3, fixed(0))
    worker = await kit.worker(
        broker, queue, handler, concurrency=_COUNT, prefetch=_COUNT, retry=policy
    )

    for _ in range(100):
        if len(started) == _COUNT:
            break
        await kit.advance(0.05)

    kit.same(sorted(started), words, "messages started", "Subscription.receive")
    async with kit.harness.mute(made[0]):
        go.set()
        draining = await kit.start(worker.drain(_GRACE))
        await kit.advance(_LATE)

    await kit.within(draining, _GRACE + 2.0)
    remaining = await kit.contents(queue.name)
    dead_letters = await kit.contents(f"{queue.name}.dlq")
    expected = {"ack": (0, 0), "reject": (0, _COUNT), "retry": (_COUNT, 0)}[how]
    look = "Subscription.settle: when its answer is late"
    kit.same(
        (sum(remaining.values()), sum(dead_letters.values())),
        expected,
        "messages left, dead letters",
        look,
    )
    kit.same(
        max([*remaining.values(), *dead_letters.values(), 1]),
        1,
        "the most copies of one message",
        look,
    )


@case(
    "G3",
    "G2",
    ids="C45",
    hooks=("mute",),
    each={"ack": "ack", "move": "move", "release": "release"},
)
async def a_settlement_whose_answer_is_late_is_answered_by_its_timeout(kit: Kit, how: str) -> None:
    """`settle` returns by its timeout when the broker's answer is late, and loses nothing.

    There is at most one more copy of the message.
    """
    queue, limit, backend = await kit.queue(), 0.4, kit.harness.make_backend()
    await kit.within(backend.open(kit.lost.append))
    stored = await kit.publish(Outgoing(queue, kit.message("a")), backend=backend)
    kit.same(stored, [STORED], "stored", "Backend.publish")

    consumer = await kit.subscribe(queue, backend=backend, lease=2.0)
    (held,) = await kit.take(consumer, 1)
    # An empty batch: what a driver opens for its first settlement must not be late.
    await kit.settle(consumer)
    look = "Subscription.settle: timeout"

    async with kit.harness.mute(backend):
        began, item = kit.now, _settlement(kit, how, held, f"{queue}.dlq")
        (settled,) = await kit.within(consumer.settle([item], timeout=limit))
        kit.true(
            kit.now - began <= limit + 1.0,
            f"an answer within {limit:g} s",
            f"{kit.now - began:.2f} s",
            look,
        )

    await kit.advance(limit)  # the held answers arrive now
    await kit.within(backend.close())
    if kit.capabilities.has(Capability.LEASE):
        await kit.advance(2.5)
    copies = (await kit.contents(queue) + await kit.contents(f"{queue}.dlq"))["a"]
    most = 1 if kit.capabilities.has(Capability.ATOMIC_MOVE) or how == "ack" else 2
    least = int(how != "ack")
    kit.true(
        least <= copies <= most,
        f"{least} to {most} copies after {type(settled).__name__}",
        copies,
        look,
    )
