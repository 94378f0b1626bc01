"""Profile *ttl*: no handler starts what has expired, wherever it stood; a backend tells it, and never takes one away itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from math import inf, nan
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.errors import ValidationError
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import (
    DONE,
    STORED,
    Capability,
    Delivery,
    Move,
    Outgoing,
    Reason,
    Release,
    SupportsBrowse,
    SupportsCount,
    SupportsSweep,
    SupportsTake,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit

_NEEDS = (Capability.EXPIRY,)
_BOTH = (Capability.EXPIRY, Capability.DELAY)
_NEAR = 0.25
_EARLY = 0.05
_TOLD = "Delivery.expires_in"
_SWEEP = "SupportsSweep.sweep"


def _expired(delivery: Delivery) -> bool:
    return delivery.expires_in is not None and delivery.expires_in <= 0


async def _left(kit: Kit, queue: str, count: int = 1) -> dict[str, float | None]:
    """Return what each message of the queue has left, and give them all back."""
    consumer = await kit.subscribe(queue)
    got = await kit.take(consumer, count)
    await kit.settle(consumer, *[Release(it.receipt) for it in got])
    await kit.within(consumer.close())
    return {it.message.id: it.expires_in for it in got}


def _near(kit: Kit, came: float | None, ttl: float, since: float, look: str = _TOLD) -> None:
    """Fail unless what is left of a ttl given at `since` is what the time gone by leaves."""
    wanted = ttl - (kit.now - since)
    expected = f"about {wanted:.3f} s left of {ttl:g}"
    kit.true(came is not None and abs(came - wanted) <= _NEAR, expected, f"expires_in={came}", look)


async def _letter(kit: Kit, queue: str) -> Delivery:
    """Wait for the dead letter of a queue."""
    (letter,) = await kit.take(await kit.subscribe(f"{queue}.dlq"), 1)
    return letter


@case("G6", ids="T02", needs=_NEEDS)
async def a_living_message_says_how_long_it_has(kit: Kit) -> None:
    """`expires_in` counts from publish; a long ttl has most of it left, and None is for ever."""
    queue, began = await kit.queue(), kit.now
    await kit.put(queue, "mortal", ttl=10.0)
    await kit.put(queue, "immortal")
    await kit.advance(1.0)
    left = await _left(kit, queue, 2)
    kit.same(left["immortal"], None, "no expiry without a ttl", _TOLD)
    _near(kit, left["mortal"], 10.0, began)


@case("G6", "G2", ids="T01", needs=_NEEDS)
async def an_expired_message_is_handed_out_as_expired(kit: Kit) -> None:
    """Core dead-letters it, so it must come, however late, with nothing left and its body unharmed."""
    queue = await kit.queue()
    await kit.put(queue, "a", ttl=0.3)
    await kit.advance(2.0)
    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    kit.same(delivery.message.body, b"a", "the body as it was", "Subscription.receive")
    kit.true(_expired(delivery), "expires_in <= 0", delivery.expires_in, _TOLD)


@case("G6", ids="T03", needs=_NEEDS)
async def expired_and_living_messages_do_not_stand_in_each_others_way(kit: Kit) -> None:
    """A short ttl behind a long one is over on time, and an expired message before a living one does not stop it."""
    queue = await kit.queue()
    for name, ttl in [("dead-1", 0.3), ("long", 100.0), ("dead-2", 0.6), ("for-ever", None)]:
        await kit.put(queue, name, ttl=ttl)
    await kit.advance(0.8)
    got = {it.message.id: _expired(it) for it in await kit.take(await kit.subscribe(queue), 4)}
    kit.same(
        got,
        {"dead-1": True, "long": False, "dead-2": True, "for-ever": False},
        "who has expired",
        _TOLD,
    )


@case(
    "G6",
    ids="T04",
    needs=_NEEDS,
    each={
        "message": (5.0, 20.0),
        "queue": (20.0, 5.0),
        "queue only": (None, 5.0),
        "message only": (5.0, None),
    },
)
async def the_shorter_ttl_wins(kit: Kit, ttls: tuple[float | None, float | None]) -> None:
    """Of the message's own ttl and its queue's."""
    of_message, of_queue = ttls
    queue, began = await kit.queue(ttl=of_queue), kit.now
    await kit.put(queue, "a", ttl=of_message)
    _near(kit, (await _left(kit, queue))["a"], 5.0, began, "Backend.publish: QueueSpec.ttl")


@case("G6", ids="T05", needs=_NEEDS, each={"release": False, "crash": True})
async def what_comes_back_has_not_become_younger(kit: Kit, crash: bool) -> None:  # noqa: FBT001 - a variant
    """Neither a release nor the death of its consumer winds the clock of a message back."""
    queue, began = await kit.queue(ttl=10.0), kit.now
    await kit.put(queue, "a")
    await kit.advance(0.6)
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    if not crash:
        await kit.settle(consumer, Release(delivery.receipt))
    await kit.within(consumer.close())
    _near(kit, (await _left(kit, queue))["a"], 10.0, began, "Subscription.settle: Release")


@case("G6", "G10", ids="T06", needs=_NEEDS)
async def a_move_copies_the_expiry_and_the_target_adds_none(kit: Kit) -> None:
    """Retry does not reset the clock; a queue's ttl is for what is published to it, not for what is moved."""
    source, target, began = await kit.queue(), await kit.queue(ttl=1.0), kit.now
    await kit.put(source, "a", ttl=10.0)
    await kit.put(source, "for-ever")
    await kit.advance(0.6)
    consumer = await kit.subscribe(source)
    moves = [kit.successor(it, target) for it in await kit.take(consumer, 2)]
    look = "Subscription.settle: Move copies expires_at"
    kit.same(await kit.settle(consumer, *moves), [DONE, DONE], "both moved", look)
    left = await _left(kit, target, 2)
    _near(kit, left["a"], 10.0, began, look)
    kit.same(left["for-ever"], None, "no expiry from the target queue", look)


@case("G6", "G7", "G10", ids="T06 D06", needs=_BOTH)
async def the_wait_of_a_retry_does_not_stop_the_clock(kit: Kit) -> None:
    """A successor that is delayed lives no longer for it."""
    queue, began = await kit.queue(), kit.now
    await kit.put(queue, "a", ttl=10.0)
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    await kit.settle(consumer, kit.successor(delivery, queue, 0.6, attempt=2))
    (delivery,) = await kit.take(consumer, 1)
    _near(
        kit,
        delivery.expires_in,
        10.0,
        began,
        "Subscription.settle: a delayed Move copies expires_at",
    )


@case("G6", ids="T06", needs=_NEEDS)
async def a_move_may_give_a_new_ttl(kit: Kit) -> None:
    """`ttl` of an Outgoing counts from now, also in a Move, and goes before the expiry that is copied."""
    queue = await kit.queue()
    await kit.put(queue, "a", ttl=100.0)
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    moved, began = kit.successor(delivery, queue), kit.now
    await kit.settle(consumer, Move(moved.receipt, Outgoing(queue, moved.to.message, 0.0, 5.0)))
    await kit.within(consumer.close())
    _near(
        kit,
        (await _left(kit, queue))["a"],
        5.0,
        began,
        "Subscription.settle: Outgoing.ttl of a Move",
    )


@case("G6", "G11", ids="T10", needs=_NEEDS)
async def a_dead_letter_never_expires_again(kit: Kit) -> None:
    """Core takes the expiry off, and the backend must not put it back."""
    queue = await kit.queue(ttl=0.3)
    await kit.put(queue, "a")
    await kit.advance(0.5)
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    await kit.settle(consumer, kit.successor(delivery, f"{queue}.dlq", expires_at=None))
    await kit.advance(1.0)
    kit.same(
        await _left(kit, f"{queue}.dlq"),
        {"a": None},
        "no expiry on the dead letter",
        "Subscription.settle: Move",
    )


@case("G6", "G7", ids="D06", needs=_BOTH)
async def what_expires_inside_its_delay_never_comes_alive(kit: Kit) -> None:
    """It is handed out as expired: when it expires, to a consumer that waits, where a sweep is declared; else when it is due."""
    queue, sweeps = await kit.queue(), kit.limit(Capability.EXPIRY, "sweep")
    consumer, began = await kit.subscribe(queue), kit.now
    waiting = await kit.start(consumer.receive(1, 600.0))
    kit.same(
        await kit.publish(Outgoing(queue, kit.message("a"), 60.0 if sweeps else 1.5, 0.5)),
        [STORED],
        "stored",
    )
    (delivery,) = await kit.within(waiting)
    kit.true(_expired(delivery), "expires_in <= 0", delivery.expires_in, _TOLD)
    kit.true(
        kit.now - began >= 0.5 - 0.005,
        "not before it expires",
        f"after {kit.now - began:.3f} s",
        _SWEEP,
    )


@case("G6", "G7", ids="D06", needs=_BOTH)
async def a_ttl_longer_than_the_delay_counts_from_publish(kit: Kit) -> None:
    """Not from the due time; and it neither shortens nor lengthens the delay."""
    queue, began = await kit.queue(), kit.now
    consumer = await kit.subscribe(queue)
    await kit.put(queue, "a", delay=0.6, ttl=5.0)
    (delivery,) = await kit.take(consumer, 1)
    kit.true(
        kit.now - began >= 0.6 - 0.005,
        "not before it is due",
        f"after {kit.now - began:.3f} s",
        "the delay",
    )
    _near(kit, delivery.expires_in, 5.0, began)


@case("G6", ids="T03", needs=_NEEDS, protocols=(SupportsSweep,))
async def a_sweep_finds_the_expired_wherever_they_stand(kit: Kit) -> None:
    """Under a backlog that nobody gets through, up to the limit, leased like any claim; the living are left alone."""
    queue, backend = await kit.queue(), cast("SupportsSweep", kit.backend)
    await kit.put(queue, *(f"living-{n}" for n in range(20)))
    await kit.put(queue, *(f"dead-{n}" for n in range(5)), ttl=0.5)
    await kit.put(queue, "not-yet", ttl=100.0)
    kit.same(
        list(await kit.within(backend.sweep(queue, 10, 30.0))),
        [],
        "nothing before it expires",
        _SWEEP,
    )
    await kit.advance(0.8)
    first = list(await kit.within(backend.sweep(queue, 3, 30.0)))
    rest = list(await kit.within(backend.sweep(queue, 10, 30.0)))
    kit.same(
        sorted(kit.ids(first + rest)),
        [f"dead-{n}" for n in range(5)],
        "the expired and no others",
        _SWEEP,
    )
    kit.same(
        (len(first), [_expired(it) for it in first + rest]),
        (3, [True] * 5),
        "up to the limit, told as expired",
        _SWEEP,
    )
    consumer = await kit.subscribe(queue)
    await kit.ack(consumer, first)
    kit.same(
        await kit.settle(consumer, *[Release(it.receipt) for it in rest]),
        [DONE] * 2,
        "settled as claims",
        _SWEEP,
    )
    await kit.take(consumer, 20 + 1 + 2)
    kit.same(
        list(await kit.within(backend.sweep(queue, 10, 30.0))),
        [],
        "not what a consumer holds",
        _SWEEP,
    )


@case("G6", "G5", needs=_NEEDS, protocols=(SupportsSweep,))
async def a_swept_message_that_came_back_is_swept_again(kit: Kit) -> None:
    """Released, or abandoned until the lease of the sweep ended: it is still expired."""
    queue, backend = await kit.queue(), cast("SupportsSweep", kit.backend)
    await kit.put(queue, "a", ttl=0.3)
    await kit.advance(0.5)
    for _ in range(2):
        (delivery,) = await kit.within(backend.sweep(queue, 10, 30.0))
        consumer = await kit.subscribe(queue)
        await kit.settle(consumer, Release(delivery.receipt))
        await kit.within(consumer.close())
    kit.same(len(await kit.within(backend.sweep(queue, 10, 1.0))), 1, "swept once more", _SWEEP)
    await kit.advance(2.1)
    kit.same(
        kit.ids(await kit.within(backend.sweep(queue, 10, 1.0))),
        ["a"],
        "the lease of the sweep has ended",
        _SWEEP,
    )


@case("G6", "G7", ids="D06", needs=_BOTH, protocols=(SupportsSweep,))
async def a_sweep_finds_what_expired_inside_its_delay(kit: Kit) -> None:
    """A delayed message is swept as well as a ready one."""
    queue, backend = await kit.queue(), cast("SupportsSweep", kit.backend)
    await kit.put(queue, "a", delay=60.0, ttl=0.3)
    await kit.put(queue, "b", delay=60.0)
    await kit.advance(0.5)
    kit.same(
        kit.ids(await kit.within(backend.sweep(queue, 10, 30.0))), ["a"], "the expired one", _SWEEP
    )


@case("G6", "G2", ids="T11", needs=_NEEDS, protocols=(SupportsCount,))
async def an_expired_message_is_counted_until_it_is_buried(kit: Kit) -> None:
    """It stays in its queue's counts, and moves to the dead-letter queue's: at no time is it in neither or in both."""
    queue, backend = await kit.queue(), cast("SupportsCount", kit.backend)
    names = [queue, f"{queue}.dlq"]
    await kit.put(queue, "a", ttl=0.3)
    await kit.advance(0.8)
    counts = [it.ready for it in await kit.within(backend.count(names))]
    kit.same(counts, [1, 0], "ready in its own queue", "SupportsCount.count")
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    await kit.settle(consumer, kit.successor(delivery, f"{queue}.dlq", expires_at=None))
    counts = [it.ready + it.leased for it in await kit.within(backend.count(names))]
    kit.same(counts, [0, 1], "in the dead-letter queue only", "SupportsCount.count")


@case("G6", ids="T12", needs=_NEEDS, each={"ahead": 3600.0, "behind": -3600.0})
async def the_publishers_calendar_decides_nothing(kit: Kit, skew: float) -> None:
    """A ttl is seconds from now, whatever time the message says that it was published at."""
    queue, began = await kit.queue(), kit.now
    message = kit.message("a", published_at=kit.clock.now() + skew)
    kit.same(
        await kit.publish(Outgoing(queue, message, 0.0, 5.0)), [STORED], "stored", "Backend.publish"
    )
    _near(
        kit,
        (await _left(kit, queue))["a"],
        5.0,
        began,
        "Backend.publish: expires_at by the broker's clock",
    )


@case("G6", ids="T13", needs=_NEEDS)
async def a_ttl_may_be_very_short_or_very_long(kit: Kit) -> None:
    """50 ms are over after 0.1 s, and a year is a year."""
    queue, year, began = await kit.queue(), 365 * 86_400.0, kit.now
    await kit.put(queue, "long", ttl=year)
    await kit.put(queue, "short", ttl=0.05)
    await kit.advance(0.1)
    left = await _left(kit, queue, 2)
    _near(kit, left["long"], year, began)
    kit.true(
        (left["short"] or 1.0) <= 0, "the short one expired", f"expires_in={left['short']}", _TOLD
    )


@case("G6", ids="T07", needs=_NEEDS)
async def a_ttl_of_nothing_is_refused(kit: Kit) -> None:
    """0, below 0, infinity and NaN are errors at publish; nothing is stored."""
    broker, queue = await kit.broker(), Queue(kit.name())
    await kit.within(broker.declare(queue))
    for ttl in (0.0, -1.0, -0.001, inf, nan):
        await kit.raises(
            ValidationError,
            broker.publish(queue, b"", ttl=ttl),
            f"ttl={ttl} refused",
            "Broker.publish",
        )
    kit.same(await kit.contents(queue.name), Counter(), "nothing stored", "Broker.publish")


@case("G6", "G11", ids="T09", needs=_NEEDS)
async def an_expired_message_is_dead_lettered_with_its_reason(kit: Kit) -> None:
    """A worker starts no handler for it: reason `expired`, no attempt, the body and headers as they were."""
    broker, queue = await kit.broker(), Queue(kit.name())
    started: asyncio.Queue[bytes] = asyncio.Queue()
    await kit.within(broker.publish(queue, b"\x00brief", ttl=0.3, headers={"h": "v"}))
    await kit.advance(0.5)
    await kit.worker(broker, queue, started.put)
    await kit.within(broker.publish(queue, b"patient"))
    kit.same(await kit.within(started.get()), b"patient", "the living one handled", _TOLD)
    message = (await _letter(kit, queue.name)).message
    death = message.death
    kit.true(death, "a record of the death", "none", "Message.death")
    if death is not None:
        came = (death.reason, death.queue, death.attempts)
        kit.same(came, (Reason.EXPIRED, queue.name, 0), "reason, queue and attempts", _TOLD)
    kit.same(
        (message.body, dict(message.headers)),
        (b"\x00brief", {"h": "v"}),
        "body and headers",
        "Message",
    )


@case("G6", "G2", ids="T09", needs=_NEEDS)
async def an_expired_message_without_a_dead_letter_queue_is_dropped_and_counted(kit: Kit) -> None:
    """Only in a queue that has none; the event says so."""
    broker, queue = await kit.broker(), Queue(kit.name(), dead_letter=None)
    dropped = asyncio.Event()
    broker.events.listen(lambda event: dropped.set() if event.name == "message.dropped" else None)
    await kit.within(broker.publish(queue, b"", ttl=0.3))
    await kit.advance(0.5)
    worker = await kit.worker(broker, queue, asyncio.Queue[bytes]().put)
    await kit.within(dropped.wait(), what="the event message.dropped")
    await kit.within(worker.drain(0))
    kit.same(await kit.contents(queue.name), Counter(), "gone", _TOLD)


@case("G6", ids="T08", needs=_NEEDS)
async def what_expires_behind_a_busy_handler_never_starts(kit: Kit) -> None:
    """Prefetched and alive, expired before its turn: dead-lettered, no attempt counted."""
    broker, queue = await kit.broker(), Queue(kit.name())
    started: asyncio.Queue[bytes] = asyncio.Queue()
    go = asyncio.Event()

    async def handler(body: bytes) -> None:
        await started.put(body)
        await go.wait()

    await kit.within(broker.publish(queue, b"busy"))
    await kit.worker(broker, queue, handler, concurrency=1, prefetch=3)
    await kit.within(started.get())
    await kit.within(broker.publish(queue, b"brief", ttl=0.8))
    await kit.within(broker.publish(queue, b"patient"))
    await kit.advance(1.0)
    go.set()
    kit.same(await kit.within(started.get()), b"patient", "the next to start", _TOLD)
    letter = await _letter(kit, queue.name)
    kit.same(
        (letter.message.body, letter.expires_in), (b"brief", None), "the expired one buried", _TOLD
    )


@case("G6", ids="T08", needs=_NEEDS)
async def the_pull_api_does_not_hand_out_what_has_expired(kit: Kit) -> None:
    """Not even when it was received in time and asked for too late."""
    broker, queue = await kit.broker(), Queue(kit.name())
    await kit.within(broker.publish(queue, b"a"))
    await kit.within(broker.publish(queue, b"brief", ttl=0.8))
    async with broker.consume(queue) as deliveries:
        await kit.within((await kit.within(anext(deliveries))).ack())
        await kit.advance(1.0)
        kit.same(
            await kit.within(deliveries.get(timeout=kit.harness.silence)),
            None,
            "nothing to handle",
            _TOLD,
        )
    kit.same(
        (await _letter(kit, queue.name)).message.body, b"brief", "the expired one buried", _TOLD
    )


@case("G6", "G10", needs=_BOTH)
async def a_retry_that_would_come_too_late_is_buried_at_once(kit: Kit) -> None:
    """When its wait would end after the expiry: reason `expired`, without waiting for it."""
    broker, queue = await kit.broker(), Queue(kit.name(), retry=RetryPolicy(5, fixed(60.0)))
    await kit.within(broker.publish(queue, b"a", ttl=30.0))
    async with broker.consume(queue) as deliveries:
        await kit.within((await kit.within(anext(deliveries))).retry())
    death = (await _letter(kit, queue.name)).message.death
    kit.same(
        death and (death.reason, death.attempts),
        (Reason.EXPIRED, 1),
        "buried as expired",
        "Broker.consume: retry",
    )


@case("G6", "G11", ids="T10", needs=_NEEDS, protocols=(SupportsBrowse, SupportsTake))
async def a_redrive_clears_the_expiry(kit: Kit) -> None:
    """What died of its age and was redriven is handled, and does not expire on the way."""
    broker, queue = await kit.broker(), Queue(kit.name())
    await kit.within(broker.publish(queue, b"a", ttl=0.3))
    await kit.advance(0.5)
    handled: asyncio.Queue[bytes] = asyncio.Queue()
    letters = broker.dead_letters(queue)
    buried = asyncio.Event()
    broker.events.listen(lambda event: buried.set() if event.name == "message.dead" else None)
    worker = await kit.worker(broker, queue, handled.put)
    await kit.within(buried.wait(), what="the event message.dead")
    await kit.within(worker.drain(0))
    await kit.within(letters.redrive())
    await kit.advance(0.5)
    kit.same(
        list((await _left(kit, queue.name)).values()),
        [None],
        "alive for ever after the redrive",
        "DeadLetters.redrive",
    )


@case("G6", ids="T01", needs=_NEEDS, hooks=("mute",))
async def a_late_answer_to_a_claim_makes_no_life_longer(kit: Kit) -> None:
    """The answer to a claim arrives half a second late: what it hands out says how long it has left then, not at the claim."""
    queue, backend, ttl = await kit.queue(), await kit.open(), 2.0
    consumer = await kit.subscribe(queue, backend=backend)
    await kit.put(queue, "a", ttl=ttl)
    stored = kit.now

    async with kit.harness.mute(backend):
        waiting = await kit.start(consumer.receive(1, 600.0))
        await kit.advance(0.5)

    (delivery,) = await kit.within(waiting)
    ends = kit.now - stored + (delivery.expires_in or 0.0)
    by = ttl + _EARLY
    kit.true(
        ends <= by, f"the end of its life by {by:g} s after it was stored", f"{ends:.3f} s", _TOLD
    )
    await kit.ack(consumer, [delivery])
