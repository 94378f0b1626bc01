"""Profile *delivery*: order, who gets a message, how many he may hold, and that settling does what it says."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from mqcore.contract.case import case
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import DONE, STALE, Ack, Capability, Done, Failed, Outgoing, Release, Stale

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.spi import Subscription

_LONG = 600.0
"""Seconds that a receive may wait which the case itself brings to its end."""


# Order


@case("G9", "G2", ids="C60")
async def messages_keep_their_order(kit: Kit) -> None:
    """First deliveries come in publish order, inside a batch and from batch to batch."""
    queue = await kit.queue()
    names = [f"{number:03}" for number in range(250)]
    for start in range(0, 250, 50):
        await kit.put(queue, *names[start : start + 50])
    got = await kit.take(await kit.subscribe(queue, prefetch=300), 250)
    kit.same(
        kit.ids(got), names, "the order of publishing", "Backend.publish, Subscription.receive"
    )


@case("G9", ids="C61 C47")
async def what_comes_out_of_order_says_so(kit: Kit) -> None:
    """With one consumer and releases between, first deliveries stay in order, and nothing overtakes that is not `redelivered`."""
    queue = await kit.queue()
    names = [f"{number:02}" for number in range(20)]
    await kit.put(queue, *names)
    consumer = await kit.subscribe(queue, prefetch=1)
    first: list[str] = []
    handled: Counter[str] = Counter()
    while handled.total() < len(names):
        (delivery,) = await kit.take(consumer, 1)
        name = delivery.message.id
        kit.same(
            delivery.redelivered, name in first, f"`redelivered` of {name}", "Subscription.receive"
        )
        if name not in first:
            first.append(name)
        if int(name) % 3 == 0 and not delivery.redelivered:
            await kit.settle(consumer, Release(delivery.receipt))
        else:
            await kit.ack(consumer, [delivery])
            handled[name] += 1
    kit.same(first, names, "first deliveries in publish order", "Subscription.receive")
    kit.same(handled, Counter(names), "each handled once", "Subscription.settle: Release")


@case("G9", needs=(Capability.ORDER,))
async def released_messages_return_to_their_old_places(kit: Kit) -> None:
    """Where ORDER states `release_in_place`, whatever the order of the releases."""
    queue = await kit.queue()
    await kit.put(queue, *"abcdef")
    consumer = await kit.subscribe(queue)
    a, b, c, d = await kit.take(consumer, 4)
    await kit.settle(
        consumer, Release(c.receipt), Release(a.receipt), Ack(b.receipt), Release(d.receipt)
    )
    came = kit.ids(await kit.take(consumer, 5))
    in_place = kit.limit(Capability.ORDER, "release_in_place")
    kit.same(
        came if in_place else sorted(came),
        list("acdef"),
        "old places",
        "Subscription.settle: Release",
    )


# Who gets it


@case("G2", ids="C23")
async def competing_consumers_share_a_queue(kit: Kit) -> None:
    """Four who wait, of four instances, each get one of four messages: none is handed out twice, none stays behind."""
    queue = await kit.queue()
    consumers = [await kit.subscribe(queue, prefetch=1, backend=await kit.open()) for _ in range(4)]
    waiting = [await kit.start(consumer.receive(1, _LONG)) for consumer in consumers]
    await kit.put(queue, *"abcd")
    got = await kit.within(asyncio.gather(*waiting))
    kit.same([len(deliveries) for deliveries in got], [1] * 4, "one each", "Subscription.receive")
    kit.same(
        Counter(name for page in got for name in kit.ids(page)),
        Counter("abcd"),
        "each once",
        "Subscription.receive",
    )


@case("G2", ids="C23 C40")
async def many_messages_are_handled_once_each(kit: Kit) -> None:
    """Five consumers of three instances work off 200 messages while they are published: each is handed out and acked once."""
    queue, instances = await kit.queue(), [kit.backend, await kit.open(), await kit.open()]
    consumers = [await kit.subscribe(queue, prefetch=7, backend=instances[n % 3]) for n in range(5)]
    seen: Counter[str] = Counter()
    deadline = kit.now + kit.harness.patience

    async def work(consumer: Subscription) -> None:
        while seen.total() < len(names) and kit.now < deadline:
            held = await consumer.receive(7, 0.1)
            settled = await consumer.settle([Ack(it.receipt) for it in held], timeout=5.0)
            seen.update(
                it.message.id
                for it, end in zip(held, settled, strict=True)
                if isinstance(end, Done)
            )

    names = [f"{number}" for number in range(200)]
    working = [await kit.start(work(consumer)) for consumer in consumers]
    for start in range(0, 200, 20):
        await kit.put(queue, *names[start : start + 20])
    await kit.within(asyncio.gather(*working), kit.harness.patience + 1.0)
    wanted = Counter(names)
    kit.same(
        (seen - wanted, wanted - seen),
        (Counter(), Counter()),
        "none twice, none missing",
        "Subscription.receive",
    )
    kit.same(await kit.contents(queue), Counter(), "nothing left", "Subscription.settle: Ack")


@case("G2", ids="C23")
async def nothing_is_handed_out_while_it_is_held(kit: Kit) -> None:
    """A claimed message is nobody else's, nor its own consumer's again."""
    queue = await kit.queue()
    await kit.put(queue, *"abc")
    one = await kit.subscribe(queue, prefetch=2)
    kit.same(kit.ids(await kit.take(one, 2)), ["a", "b"], "the first two", "Subscription.receive")
    two = await kit.subscribe(queue)
    kit.same(kit.ids(await kit.take(two, 1)), ["c"], "the third", "Subscription.receive")
    kit.same(
        await kit.receive(two), [], "nothing else for the second", "Subscription.receive: the claim"
    )
    kit.same(
        await kit.receive(one), [], "nothing else for the first", "Subscription.receive: the claim"
    )


# Bounds


@case("G12", ids="C46", each={"one": 1, "three": 3})
async def prefetch_is_an_exact_ceiling(kit: Kit, prefetch: int) -> None:
    """Never more than `prefetch` unsettled, never fewer if there are more; what one may not have, another gets."""
    queue = await kit.queue()
    await kit.put(queue, *(f"{n}" for n in range(10)))
    consumer = await kit.subscribe(queue, prefetch=prefetch)
    held = await kit.take(consumer, prefetch)
    kit.same(
        kit.ids(await kit.receive(consumer)),
        [],
        f"no more than {prefetch}",
        "Subscription.receive: prefetch",
    )
    await kit.ack(consumer, held[:1])
    held = held[1:] + await kit.take(consumer, 1)
    kit.same(
        kit.ids(await kit.receive(consumer)),
        [],
        "one for the one acked",
        "Subscription.settle: prefetch",
    )
    await kit.settle(consumer, *[Release(it.receipt) for it in held])
    await kit.within(consumer.close())
    other = await kit.subscribe(queue)
    kit.same(
        len(await kit.take(other, 9)),
        9,
        "the other nine for another consumer",
        "Subscription.close",
    )


@case("G12", ids="C46")
async def a_settlement_makes_room_for_a_receive_that_waits(kit: Kit) -> None:
    """`settle` may be called while `receive` waits: a full consumer then goes on."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue, prefetch=1)
    first = await kit.take(consumer, 1)
    waiting = await kit.start(consumer.receive(10, _LONG))
    kit.true(
        not waiting.done(),
        "nothing while the prefetch of 1 is used up",
        waiting,
        "Subscription.receive: prefetch",
    )
    await kit.ack(consumer, first)
    kit.same(kit.ids(list(await kit.within(waiting))), ["b"], "the next one", "Subscription.settle")


@case("G12", ids="C46 C62", each={"one": 1, "three": 3})
async def a_worker_keeps_to_its_concurrency(kit: Kit, concurrency: int) -> None:
    """As many handlers at once as `concurrency` says: no more, and where there is work no fewer."""
    broker, queue = await kit.broker(), Queue(kit.name(), int)
    running: list[int] = []
    most, go, ended = 0, asyncio.Event(), asyncio.Event()

    async def handler(number: int) -> None:
        nonlocal most
        running.append(number)
        most = max(most, len(running))
        if most == concurrency:
            go.set()
        await go.wait()
        await asyncio.sleep(0)
        running.remove(number)
        if number == 9:  # noqa: PLR2004 - the last one published
            ended.set()

    await kit.within(broker.publish_many(queue, range(10)))
    await kit.worker(broker, queue, handler, concurrency=concurrency)
    await kit.within(go.wait(), what="as many handlers at once as `concurrency` says")
    await kit.within(ended.wait(), what="the last message handled")
    kit.same(most, concurrency, "handlers at once", "Backend.subscribe: prefetch")


# Settle


@case("G2", ids="C40")
async def what_is_acked_is_gone(kit: Kit) -> None:
    """An ack lets go for good, also when consumer and instance close at once after it."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    backend = await kit.open()
    consumer = await kit.subscribe(queue, backend=backend)
    await kit.ack(consumer, await kit.take(consumer, 2))
    await kit.within(consumer.close())
    await kit.within(backend.close())
    kit.same(await kit.contents(queue), Counter(), "nothing left", "Subscription.settle: Ack")


@case("G2", "G3", ids="C31 C43")
async def an_outcome_comes_for_each_settlement_in_its_order(kit: Kit) -> None:
    """One bad item does not spoil the others: a missing target fails its Move alone, a forged receipt is stale."""
    queue, missing = await kit.queue(), kit.name()
    await kit.put(queue, *"abcd")
    consumer = await kit.subscribe(queue)
    a, b, c, d = await kit.take(consumer, 4)
    rejected = kit.successor(d, f"{queue}.dlq")
    settled = await kit.settle(
        consumer,
        Ack(a.receipt),
        kit.successor(b, missing),
        Ack(b"no receipt of ours"),
        Release(c.receipt),
        rejected,
    )
    kit.same(
        [type(it) for it in settled],
        [Done, Failed, Stale, Done, Done],
        "an outcome each",
        "Subscription.settle",
    )
    kit.same(await kit.settle(consumer), [], "nothing for an empty batch", "Subscription.settle")
    (again,) = await kit.take(consumer, 1)
    kit.same(again.message.id, "c", "the released one", "Subscription.settle: Release")
    kit.same(
        await kit.receive(consumer),
        [],
        "the failed Move's source leased, the rejected one gone",
        "settle: Move",
    )
    kit.same(
        await kit.contents(f"{queue}.dlq"),
        Counter("d"),
        "the rejected one",
        "Subscription.settle: Move",
    )
    kit.same(
        await kit.settle(consumer, Ack(b.receipt)),
        [DONE],
        "the source still ours",
        "Subscription.settle: Move",
    )


@case("G5", ids="C41")
async def a_second_settlement_is_stale_and_changes_nothing(kit: Kit) -> None:
    """Ack twice, release after ack, ack after release, in one batch and in later ones."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue)
    a, b = await kit.take(consumer, 2)
    look = "Subscription.settle: fencing"
    first, *late = await kit.settle(consumer, Ack(a.receipt), Ack(a.receipt), Release(a.receipt))
    kit.same((first, late), (DONE, [STALE, STALE]), "the first counts", look)
    kit.same(await kit.settle(consumer, Ack(a.receipt)), [STALE], "stale later too", look)
    kit.same(
        await kit.settle(consumer, Release(b.receipt), Ack(b.receipt)),
        [DONE, STALE],
        "the first counts",
        look,
    )
    (again,) = await kit.take(consumer, 1)
    kit.same(again.message.id, "b", "the released message: its late ack had no effect", look)
    kit.same(
        await kit.settle(consumer, Ack(b.receipt), Release(b.receipt)),
        [STALE] * 2,
        "an old receipt",
        look,
    )
    await kit.ack(consumer, [again])
    kit.same(await kit.contents(queue), Counter(), "nothing left", look)


@case("G4", "G13", ids="C42 C44")
async def a_released_message_comes_again_as_it_was(kit: Kit) -> None:
    """A release is no attempt and no takeover: the same message, `redelivered`, with a receipt of its own."""
    queue = await kit.queue()
    await kit.publish(Outgoing(queue, kit.message("a", body=b"\x00\xff", headers={"h": "v"})))
    consumer = await kit.subscribe(queue)
    (first,) = await kit.take(consumer, 1)
    kit.same(
        await kit.settle(consumer, Release(first.receipt)),
        [DONE],
        "released",
        "Subscription.settle: Release",
    )
    (second,) = await kit.take(consumer, 1)
    kit.same(second.message, first.message, "the same message", "Subscription.settle: Release")
    marks = (second.attempt, second.redelivered, second.takeovers)
    kit.same(marks, (1, True, 0), "attempt, redelivered, takeovers", "Subscription.settle: Release")
    kit.true(
        second.receipt != first.receipt,
        "a receipt for each claim",
        second.receipt,
        "Subscription.receive",
    )


@case("G4", ids="C47")
async def a_message_survives_any_number_of_releases(kit: Kit) -> None:
    """No counter of the broker dead-letters or drops what is released again and again; it can still be acked."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue)
    for turn in range(50):
        (delivery,) = await kit.take(consumer, 1)
        kit.same(
            (delivery.attempt, delivery.takeovers),
            (1, 0),
            f"no mark after {turn} releases",
            "settle: Release",
        )
        await kit.settle(consumer, Release(delivery.receipt))
    await kit.ack(consumer, await kit.take(consumer, 1))
    kit.same(await kit.contents(queue), Counter(), "nothing left", "Subscription.settle: Ack")
    kit.same(
        await kit.contents(f"{queue}.dlq"),
        Counter(),
        "nothing dead-lettered",
        "Backend.declare: delivery limits",
    )


@case("G4", "G10", ids="C42 C44", needs=(Capability.DELAY,))
async def a_failed_attempt_is_counted(kit: Kit) -> None:
    """Through the pull API: `retry` counts the attempt and says `redelivered`, `release` does neither; the payload stays."""
    broker, queue = await kit.broker(), Queue(kit.name(), str)
    await kit.within(broker.publish(queue, "payload"))
    facts: list[Any] = []
    async with broker.consume(queue, retry=RetryPolicy(5, fixed(0.3))) as deliveries:
        for retry in (True, False, True):
            received = await kit.within(anext(deliveries))
            facts.append((received.value, received.attempt))
            await kit.within(received.retry() if retry else received.release())
        last = await kit.within(anext(deliveries))
        facts.append((last.value, last.attempt))
        kit.true(last.redelivered, "redelivered", last, "Subscription.settle: Move")
        await kit.within(last.ack())
    kit.same(
        facts,
        [("payload", 1), ("payload", 2), ("payload", 2), ("payload", 3)],
        "attempts",
        "Subscription.settle",
    )


# Who goes without a word


@case("G4", "G5", ids="C45")
async def what_a_consumer_leaves_unsettled_goes_to_one_who_waits(kit: Kit) -> None:
    """Closed without settling: it comes to another who waits, as taken over, in its old place; the old receipts are stale."""
    queue = await kit.queue()
    await kit.put(queue, *"abc")
    lease = 2.0
    consumer, other = (
        await kit.subscribe(queue, prefetch=3, lease=lease),
        await kit.subscribe(queue, prefetch=3),
    )
    held = await kit.take(consumer, 3)
    waiting = await kit.start(other.receive(3, _LONG))
    began, look, limit = (
        kit.now,
        "Subscription.close",
        1.0 + lease * kit.capabilities.has(Capability.LEASE),
    )
    await kit.within(consumer.close())
    got = list(await kit.within(waiting))
    kit.true(
        kit.now - began <= limit, f"takeover within {limit:g} s", f"{kit.now - began:.3f} s", look
    )
    got += await kit.take(other, 3 - len(got))
    kit.same(sorted(kit.ids(got)), list("abc"), "all three", look)
    if kit.limit(Capability.ORDER, "release_in_place"):
        kit.same(kit.ids(got), list("abc"), "in their old places", look)
    marks = [(it.redelivered, it.takeovers, it.attempt) for it in got]
    kit.same(
        marks, [(True, 1, 1)] * 3, "redelivered, takeovers, attempts (which core counts)", look
    )
    late = await kit.settle(consumer, *[Ack(it.receipt) for it in held])
    kit.same(late, [STALE] * 3, "late acks refused", "Subscription.settle: fencing")
    await kit.ack(other, got)


@case("G5", ids="C45 C48")
async def closing_one_consumer_leaves_others_alone(kit: Kit) -> None:
    """Only its own messages come back, not even an idle one is sent anything any more, and what others hold stays theirs."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    closes, works = (
        await kit.subscribe(queue, prefetch=1, lease=2.0),
        await kit.subscribe(queue, prefetch=1),
    )
    await kit.take(closes, 1)
    held = await kit.take(works, 1)
    idle = await kit.subscribe(queue)
    waiting = await kit.start(idle.receive(1, _LONG))
    await kit.within(idle.close())
    await kit.within(closes.close())
    kit.same(
        list(await kit.within(waiting)), [], "nothing for the closed one", "Subscription.close"
    )
    await kit.ack(works, held)
    await kit.put(queue, "c")
    for name in "ac":
        got = await kit.take(works, 1)
        kit.same(
            kit.ids(got),
            [name],
            "what the closed ones have left, then the next",
            "Subscription.close",
        )
        await kit.ack(works, got)


@case("G4", "G13", ids="C45", each={"taken-over": True, "not-taken-over": False})
async def a_release_leaves_takeovers_as_they_were(kit: Kit, taken: bool) -> None:  # noqa: FBT001 - a variant
    """Who releases knows of his own claim only: a release adds no takeover and takes none away."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    dies = await kit.subscribe(queue, lease=2.0)
    (held,) = await kit.take(dies, 1)
    await kit.settle(dies, *[Release(held.receipt)][taken:])
    await kit.within(dies.close())
    marks = []
    for _ in range(
        3
    ):  # each time by another: the mark is the message's, and not what a consumer remembers
        consumer = await kit.subscribe(queue)
        (delivery,) = await kit.take(consumer, 1)
        marks.append((delivery.redelivered, delivery.takeovers))
        await kit.settle(consumer, Release(delivery.receipt))
        await kit.within(consumer.close())
    kit.same(
        marks, [(True, int(taken))] * 3, "redelivered, takeovers", "Subscription.settle: Release"
    )


# Drain


@case("G13", "G4", ids="C42 C50")
async def a_drain_releases_what_is_unfinished(kit: Kit) -> None:
    """Grace over: what runs and what waits behind it goes back, no attempt and no takeover counted, by grace + 1 s."""
    broker, queue, began = await kit.broker(), Queue(kit.name(), str), asyncio.Event()

    async def handler(_: str) -> None:
        began.set()
        await asyncio.Event().wait()

    await kit.within(broker.publish_many(queue, "abc"))
    worker = await kit.worker(broker, queue, handler, concurrency=1, prefetch=3)
    await kit.within(began.wait(), what="the first handler begun")
    start = kit.now
    await kit.within(worker.drain(0.3))
    kit.true(
        kit.now - start <= 0.3 + 1.0,
        "an end by grace + 1 s",
        f"{kit.now - start:.3f} s",
        "Subscription.settle",
    )
    got = await kit.take(await kit.subscribe(queue.name), 3)
    marks = sorted((it.message.body, it.attempt, it.takeovers) for it in got)
    wanted = [(name.encode(), 1, 0) for name in "abc"]
    kit.same(marks, wanted, "body, attempt, takeovers", "Subscription.settle: Release")


@case("G13", "G2", ids="C50")
async def what_runs_may_end_inside_the_grace(kit: Kit) -> None:
    """A drain starts nothing new, lets the running handler end and acks it; the rest is for the next worker."""
    broker, queue, began, go = (
        await kit.broker(),
        Queue(kit.name(), str),
        asyncio.Event(),
        asyncio.Event(),
    )
    ended: list[str] = []

    async def handler(word: str) -> None:
        began.set()
        await go.wait()
        ended.append(word)

    await kit.within(broker.publish_many(queue, "ab"))
    worker = await kit.worker(broker, queue, handler, concurrency=1, prefetch=2)
    await kit.within(began.wait(), what="the first handler begun")
    draining = await kit.start(worker.drain(kit.harness.patience))
    go.set()
    await kit.within(draining)
    kit.same(ended, ["a"], "handled", "Subscription.settle")
    kit.same(
        sum((await kit.contents(queue.name)).values()),
        1,
        "left in the queue",
        "Subscription.settle: Ack",
    )
