"""Profile *delay*: never early, in the order of due times, no later than declared, and nobody waits for another's."""

from __future__ import annotations

import asyncio
from collections import Counter
from math import inf, nan
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.kit import NotShown
from mqcore.contract.looks import shows_delayed
from mqcore.errors import Retry, ValidationError
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import (
    DONE,
    Ack,
    Capability,
    Durability,
    ErrorKind,
    Failed,
    Move,
    Outgoing,
    Release,
    Stored,
    SupportsBrowse,
    SupportsCount,
    SupportsDelete,
    SupportsTake,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.spi import Subscription

_NEEDS = (Capability.DELAY,)
_EARLY = 0.005
_SLACK = 0.1
"""Seconds that a busy machine may add between the broker and us, where time is real."""
_STUCK = 100
_OWN = "delay: what stands between publish and due"
_HELD = "delay: one message must never hold up another"


def _late(kit: Kit) -> float:
    """Seconds that a message may come after its due time."""
    granularity = kit.limit(Capability.DELAY, "granularity")
    kit.true(
        isinstance(granularity, (int, float)),
        "DELAY states its granularity in seconds",
        granularity,
        "Backend.open",
    )
    return float(granularity) + (_SLACK if kit.clock.real else 0.0)


async def _arrivals(kit: Kit, consumer: Subscription, count: int) -> dict[str, float]:
    """Take as many messages as they come; when each came."""
    came: dict[str, float] = {}
    while len(came) < count:
        got = await kit.take(consumer, 1)
        came.update((name, kit.now) for name in kit.ids(got))
        await kit.ack(consumer, got)
    return came


async def _on_time(kit: Kit, queue: str, delay: float, look: str = _HELD) -> None:
    """Publish one delayed message, and see it come at its time."""
    consumer, message, began = await kit.subscribe(queue), kit.message(), kit.now
    (outcome,) = await kit.publish(Outgoing(queue, message, delay))
    kit.true(
        isinstance(outcome, Stored), "a healthy delayed message stored", outcome, "Backend.publish"
    )
    stored = kit.now
    came = (await _arrivals(kit, consumer, 1))[message.id]
    await kit.within(consumer.close())
    kit.true(
        came >= began + delay - _EARLY, f"not before {delay} s", f"after {came - began:.4f} s", look
    )
    kit.true(
        came <= stored + delay + _late(kit),
        f"at most {_late(kit)} s late",
        f"{came - stored - delay:.4f} s late",
        look,
    )


@case("G7", ids="D01", needs=_NEEDS, each={"0.05 s": 0.05, "0.5 s": 0.5, "2 s": 2.0})
async def a_delayed_message_comes_at_its_time(kit: Kit, delay: float) -> None:
    """Never early, late by the granularity at most, to a consumer that waits for it; as a first delivery without marks."""
    queue = await kit.queue()
    consumer, began = await kit.subscribe(queue), kit.now
    waiting = await kit.start(consumer.receive(1, 600.0))
    published = kit.now
    await kit.put(queue, "a", delay=delay)
    stored = kit.now
    (delivery,) = await kit.within(waiting)
    kit.true(
        kit.now >= published + delay - _EARLY,
        f"not before {delay} s",
        f"{kit.now - began:.4f} s",
        _OWN,
    )
    kit.true(
        kit.now <= stored + delay + _late(kit),
        f"at most {_late(kit)} s late",
        f"{kit.now - stored - delay:.4f} s",
        _OWN,
    )
    marks = (delivery.message.body, delivery.attempt, delivery.redelivered, delivery.takeovers)
    kit.same(
        marks, (b"a", 1, False, False), "a first delivery, body unharmed", "Subscription.receive"
    )


@case("G7", "G16", ids="D01 D02", needs=_NEEDS)
async def delays_keep_to_the_declared_granularity(kit: Kit) -> None:
    """Twelve delays of 0.1 to 1.5 s, published in no order: the worst error is measured and held against the limit."""
    queue, delays = await kit.queue(), [0.1 + step * 7 % 12 * 0.127 for step in range(12)]
    consumer = await kit.subscribe(queue, prefetch=1)
    due: dict[str, tuple[float, float]] = {}
    for number, delay in enumerate(delays):
        began = kit.now
        await kit.put(queue, f"{number}", delay=delay)
        due[f"{number}"] = (began + delay, kit.now + delay)
    came = await _arrivals(kit, consumer, len(delays))
    early = max(due[name][0] - at for name, at in came.items())
    late = max(at - due[name][1] for name, at in came.items())
    kit.measured["delay error (s)"] = max(late, 0.0)
    kit.true(early <= _EARLY, f"none more than {_EARLY} s early", f"{early:.4f} s early", _OWN)
    kit.true(late <= _late(kit), f"none more than {_late(kit)} s late", f"{late:.4f} s late", _OWN)


@case("G7", ids="D02", needs=_NEEDS)
async def a_short_delay_is_not_stuck_behind_a_long_one(kit: Kit) -> None:
    """In the order of due times, not of publishing; and a consumer that waits for the long ones takes the short."""
    queue = await kit.queue()
    consumer = await kit.subscribe(queue, prefetch=1)
    waiting = await kit.start(consumer.receive(1, 600.0))
    names = {"600": 600.0, "2.4": 2.4, "1.6": 1.6, "0.8": 0.8}
    for name, delay in names.items():
        await kit.put(queue, name, delay=delay)
    first = list(await kit.within(waiting))
    await kit.ack(consumer, first)
    came = kit.ids(first) + list(await _arrivals(kit, consumer, 2))
    kit.same(came, ["0.8", "1.6", "2.4"], "by due time", _HELD)


@case("G7", "G9", ids="D02", needs=_NEEDS)
async def delays_that_end_together_lose_nobody(kit: Kit) -> None:
    """Each comes once; in the order of publishing where ORDER states a place after a delay."""
    queue, names = await kit.queue(), [f"{number:02}" for number in range(20)]
    await kit.put(queue, "last", delay=0.8)
    await kit.put(queue, *names, delay=0.4)
    await kit.advance(0.8 + _late(kit))
    *got, last = kit.ids(await kit.take(await kit.subscribe(queue), 21))
    kit.same(
        last,
        "last",
        "due last, so it comes last, though it was published first and nobody looked since",
        _HELD,
    )
    kit.same(sorted(got), names, "each once", _OWN)
    if kit.limit(Capability.ORDER, "after_delay"):
        kit.same(got, names, "first in first out among those due together", "ORDER: after_delay")


@case("G9", "G7", needs=(*_NEEDS, Capability.ORDER))
async def a_message_that_falls_due_goes_where_order_says(kit: Kit) -> None:
    """`after_delay: end` means behind those that were ready when it fell due, and before those that came later."""
    if kit.limit(Capability.ORDER, "after_delay") != "end":
        raise NotShown("ORDER states no after_delay=end")
    queue = await kit.queue()
    await kit.put(queue, "delayed", delay=0.4)
    await kit.put(queue, "before")
    await kit.advance(0.4 + _late(kit) + kit.harness.silence)
    await kit.put(queue, "after")
    got = kit.ids(await kit.take(await kit.subscribe(queue), 3))
    kit.same(got, ["before", "delayed", "after"], "at the end of its level", "ORDER: after_delay")


@case("G7", ids="D03 D10", needs=_NEEDS)
async def delayed_messages_take_no_consumer_and_no_prefetch(kit: Kit) -> None:
    """A consumer with room for one goes on working while a hundred wait; they are counted as delayed, as nothing else."""
    queue = await kit.queue()
    await kit.put(queue, *(f"later-{number}" for number in range(_STUCK)), delay=500.0)
    consumer = await kit.subscribe(queue, prefetch=1)
    for number in range(3):
        await kit.put(queue, f"{number}")
        got = await kit.take(consumer, 1)
        kit.same(kit.ids(got), [f"{number}"], "the ready one", _OWN)
        await kit.ack(consumer, got)
    kit.same(await kit.receive(consumer), [], "nothing before its time", _OWN)
    if isinstance(kit.backend, SupportsCount):
        (counts,) = await kit.within(kit.backend.count([queue]))
        kit.same(
            (counts.ready, counts.leased, counts.delayed),
            (0, 0, _STUCK),
            "ready, leased, delayed",
            "count",
        )


@case("G7", "G10", needs=_NEEDS)
async def a_move_may_delay_its_successor(kit: Kit) -> None:
    """The wait of a retry is a broker's delay: the source goes at once, the successor comes at its time as a first delivery."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue, prefetch=1)
    (first,) = await kit.take(consumer, 1)
    began = kit.now
    kit.same(
        await kit.settle(consumer, kit.successor(first, queue, 0.6, attempt=2)),
        [DONE],
        "moved",
        "settle: Move",
    )
    (second,) = await kit.take(consumer, 1)
    kit.true(
        kit.now >= began + 0.6 - _EARLY,
        "not before 0.6 s",
        f"{kit.now - began:.4f} s",
        "settle: Move with a delay",
    )
    seen = (second.message.id, second.attempt, second.redelivered)
    kit.same(seen, ("a", 2, False), "id, attempt, redelivered", "settle: Move with a delay")


@case("G7", "G10", needs=_NEEDS)
async def a_retried_message_is_delayed_again_and_again(kit: Kit) -> None:
    """Ten delays in a row of one message: a broker that counts loops, or a window of ids, must not drop it."""
    queue, due = await kit.queue(), kit.now + 0.1
    await kit.put(queue, "a", delay=0.1)
    consumer = await kit.subscribe(queue)
    for attempt in range(1, 11):
        (delivery,) = await kit.take(consumer, 1)
        kit.true(
            kit.now >= due - _EARLY,
            f"0.1 s before attempt {attempt}",
            f"{due - kit.now:.4f} s early",
            _OWN,
        )
        due = kit.now + 0.1
        kit.same(
            delivery.attempt,
            attempt,
            "the attempt",
            "settle: Move of a message that was delayed before",
        )
        move = kit.successor(delivery, queue, 0.1, attempt=attempt + 1)
        kit.same(await kit.settle(consumer, move), [DONE], "moved", "settle: Move")


@case("G7", "G4", needs=_NEEDS)
async def a_release_does_not_delay_again(kit: Kit) -> None:
    """What has fallen due is ready for good."""
    queue = await kit.queue()
    await kit.put(queue, "a", delay=1.5)
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    began = kit.now
    await kit.settle(consumer, Release(delivery.receipt))
    await kit.take(consumer, 1)
    kit.true(
        kit.now - began < 1.0, "again at once", f"after {kit.now - began:.3f} s", "settle: Release"
    )


@case("G7", ids="D04", needs=_NEEDS)
async def who_publishes_a_delay_may_leave(kit: Kit) -> None:
    """The delay is the broker's: it ends without its publisher and without any consumer, and waits for one who comes later."""
    queue, other = await kit.queue(), await kit.open()
    await kit.publish(Outgoing(queue, kit.message("a"), 0.5), backend=other)
    await kit.within(other.close())
    await kit.advance(0.5 + _late(kit))
    kit.same(await kit.contents(queue), Counter("a"), "there for who comes later", _OWN)


@case("G7", "G2", ids="D04 B01", needs=(*_NEEDS, Capability.DURABLE), hooks=("restart",))
async def a_delayed_message_survives_the_broker_as_a_ready_one_does(kit: Kit) -> None:
    """Confirmed, killed, restarted: none of either kind is lost, and none comes before its time."""
    if kit.capabilities.durability < Durability.PROCESS:
        raise NotShown(f"this server's durability is {kit.capabilities.durability.word}")
    queue, names = await kit.queue(), [f"{number}" for number in range(50)]
    wanted = {f"{kind}-{name}" for kind in ("ready", "delayed") for name in names}
    await kit.put(queue, *(f"ready-{name}" for name in names))
    began = kit.now
    await kit.put(queue, *(f"delayed-{name}" for name in names), delay=2.0)
    await kit.within(kit.backend.close())
    await kit.harness.restart()
    await kit.open(kit.backend)
    consumer, came = await kit.subscribe(queue), set[str]()
    until = (
        kit.now
        + 2.0
        + kit.harness.patience
        + float(kit.limit(Capability.DELAY, "after_crash") or 0.0)
    )
    while came < wanted and kit.now < until:
        got = await kit.receive(consumer, wait=1.0)
        came.update(kit.ids(got))
        early = kit.now < began + 2.0 - _EARLY and any(name.startswith("delayed") for name in came)
        kit.true(
            not early, "no delayed one before its time", f"after {kit.now - began:.3f} s", _OWN
        )
        await kit.ack(consumer, got)
    kit.same(sorted(wanted - came), [], "none lost", "delay: as durable as what is ready")


@case("G7", ids="D08", needs=_NEEDS)
async def many_consumers_do_not_multiply_what_falls_due(kit: Kit) -> None:
    """Each delayed message comes once, however many wait for it."""
    queue, names = await kit.queue(), [f"{number}" for number in range(20)]
    consumers = [await kit.subscribe(queue, lease=60.0, backend=await kit.open()) for _ in range(4)]
    waiting = [await kit.start(consumer.receive(100, 2.0)) for consumer in consumers]
    await kit.put(queue, *names, delay=0.5)
    got = [it for batch in await kit.within(asyncio.gather(*waiting)) for it in batch]
    for consumer in consumers:
        got += await kit.drain(consumer)
    kit.same(
        Counter(kit.ids(got)),
        Counter(names),
        "each once",
        "Subscription.receive: what promotes the due",
    )


@case("G7", "G12", ids="D09", needs=_NEEDS)
async def a_delay_above_the_maximum_is_refused(kit: Kit) -> None:
    """The declared maximum is kept; more than it is PERMANENT and certainly not stored; core says so before anything is sent."""
    most = kit.limit(Capability.DELAY, "max")
    kit.true(
        isinstance(most, (int, float)), "DELAY states its maximum in seconds", most, "Backend.open"
    )
    queue = await kit.queue()
    batch = [Outgoing(queue, kit.message(), most), Outgoing(queue, kit.message(), most * 1.01)]
    kept, refused = await kit.publish(*batch)
    kit.true(isinstance(kept, Stored), f"a delay of {most:g} s stored", kept, "Backend.publish")
    permanent = isinstance(refused, Failed) and refused.kind is ErrorKind.PERMANENT
    kit.true(permanent, "Failed(PERMANENT) above the maximum", refused, "Backend.publish")
    broker = await kit.broker()
    await kit.raises(
        ValidationError, broker.publish(queue, b"", delay=most * 1.01), "refused", "Broker.publish"
    )


@case("G7", needs=_NEEDS)
async def a_delay_that_is_none_is_refused(kit: Kit) -> None:
    """Below 0, infinity and NaN are errors at publish; nothing is stored."""
    broker, queue = await kit.broker(), Queue(kit.name())
    await kit.within(broker.declare(queue))
    for bad in (-1.0, -0.001, inf, nan):
        await kit.raises(
            ValidationError,
            broker.publish(queue, b"", delay=bad),
            f"delay={bad} refused",
            "Broker.publish",
        )
    kit.same(await kit.contents(queue.name), Counter(), "nothing stored", "Broker.publish")


@case(
    "G6",
    "G7",
    ids="D06",
    needs=(*_NEEDS, Capability.EXPIRY),
    each={
        "equal": (5.0, 5.0, None),
        "longer": (6.0, 5.0, None),
        "queue": (6.0, None, 5.0),
        "both": (6.0, 10.0, 5.0),
    },
)
async def a_delay_beyond_the_expiry_is_refused(
    kit: Kit, times: tuple[float, float | None, float | None]
) -> None:
    """Nobody would ever handle it, so it is an error at publish, by the shorter of both ttls."""
    delay, ttl, queue_ttl = times
    broker, queue = await kit.broker(), Queue(kit.name(), ttl=queue_ttl)
    await kit.raises(
        ValidationError,
        broker.publish(queue, b"", delay=delay, ttl=ttl),
        "refused",
        "Broker.publish",
    )
    await kit.within(broker.declare(queue))
    kit.same(await kit.contents(queue.name), Counter(), "nothing stored", "Broker.publish")


@case("G7", "G1", needs=_NEEDS)
async def a_missing_destination_holds_up_nobody(kit: Kit) -> None:
    """Whatever becomes of a hundred delayed messages to a queue that never was, the delays of others end on time."""
    queue, nowhere = await kit.queue(), kit.name()
    await kit.publish(*[Outgoing(nowhere, kit.message(), 0.3) for _ in range(_STUCK)])
    await _on_time(kit, queue, 0.5)
    await _on_time(kit, queue, 0.5)


@case("G7", "G1", needs=_NEEDS, protocols=(SupportsDelete,))
async def a_deleted_destination_holds_up_nobody(kit: Kit) -> None:
    """A hundred delayed messages whose queue has gone when they fall due: the delays of others end on time, before and after."""
    queue, doomed = await kit.queue(), await kit.queue()
    await kit.put(doomed, *(f"{number}" for number in range(_STUCK)), delay=0.5)
    kit.true(await kit.within(cast("SupportsDelete", kit.backend).delete(doomed)), "deleted")
    await _on_time(kit, queue, 0.8)
    await _on_time(kit, queue, 0.3)


@case("G7", "G12", needs=(*_NEEDS, Capability.MAX_LENGTH))
async def a_full_destination_holds_up_nobody(kit: Kit) -> None:
    """A hundred delayed messages fall due in a full queue: none is refused or lost, and the delays of others end on time."""
    queue, full = await kit.queue(), await kit.queue(max_length=1)
    await kit.put(full, "first")
    await kit.put(full, *(f"{number}" for number in range(_STUCK)), delay=0.5)
    await _on_time(kit, queue, 0.8)
    await _on_time(kit, queue, 0.3)
    wanted = Counter(["first", *(f"{number}" for number in range(_STUCK))])
    kit.same(
        await kit.contents(full),
        wanted,
        "what fell due in the full queue",
        "max_length bounds publishes only",
    )


@case(
    "G7",
    "G8",
    ids="D07",
    needs=(*_NEEDS, Capability.PRIORITY),
    each={"low behind high": (0, 10), "high behind low": (10, 0)},
)
async def no_priority_holds_up_a_delay(kit: Kit, levels: tuple[int, int]) -> None:
    """A message that is due comes, whatever the priority of one published later with a longer delay."""
    soon, late = levels
    queue = await kit.queue()
    consumer, began = await kit.subscribe(queue), kit.now
    await kit.put(queue, "soon", delay=0.6, priority=soon)
    await kit.put(queue, "late", delay=2.0, priority=late)
    stored, came = kit.now, await _arrivals(kit, consumer, 2)
    kit.true(
        came["soon"] <= stored + 0.6 + _late(kit),
        "on time",
        f"after {came['soon'] - began:.3f} s",
        _HELD,
    )
    kit.true(
        came["late"] >= began + 2.0 - _EARLY,
        "not early",
        f"after {came['late'] - began:.3f} s",
        _HELD,
    )


@case("G7", "G11", ids="D05", needs=_NEEDS, protocols=(SupportsBrowse, SupportsTake))
async def a_delayed_message_can_be_cancelled_and_rescheduled(kit: Kit) -> None:
    """Taken out of its wait and settled: an Ack cancels it, a Move gives it another time."""
    if not shows_delayed(kit):
        raise NotShown("BROWSE states that it does not show delayed messages")
    queue, browser = await kit.queue(), cast("SupportsBrowse", kit.backend)
    await kit.put(queue, "cancelled", "sooner", delay=60.0)
    entries = await kit.within(browser.browse(queue, 10))
    taken = await kit.within(
        cast("SupportsTake", kit.backend).take(queue, [it.key for it in entries], 30.0)
    )
    by_name = {it.message.id: it for it in taken}
    kit.same(set(by_name), {"cancelled", "sooner"}, "both taken", "SupportsTake.take")
    consumer = await kit.subscribe(queue)
    move: Move = kit.successor(by_name["sooner"], queue, 0.5)
    kit.same(
        await kit.settle(consumer, Ack(by_name["cancelled"].receipt), move),
        [DONE, DONE],
        "settled",
        "take",
    )
    kit.same(list(await _arrivals(kit, consumer, 1)), ["sooner"], "the rescheduled one", "take")
    kit.same(kit.ids(await kit.drain(consumer)), [], "and no other", "take")


@case("G10", "G7", ids="D03", needs=_NEEDS)
async def the_wait_of_a_retry_occupies_no_handler(kit: Kit) -> None:
    """A worker with one slot handles others while a message waits for its next attempt."""
    broker, queue = await kit.broker(), Queue(kit.name(), retry=RetryPolicy(2, fixed(1.0)))
    seen: asyncio.Queue[bytes] = asyncio.Queue()
    failed = set[bytes]()

    async def handler(body: bytes) -> None:
        await seen.put(body)
        if body == b"again" and body not in failed:
            failed.add(body)
            raise Retry

    await kit.worker(broker, queue, handler, concurrency=1, prefetch=1)
    for body in (b"again", b"other"):
        await kit.within(broker.publish(queue, body))
    order = [await kit.within(seen.get()) for _ in range(3)]
    kit.same(
        order,
        [b"again", b"other", b"again"],
        "the other one in between",
        "settle: Move with a delay",
    )
