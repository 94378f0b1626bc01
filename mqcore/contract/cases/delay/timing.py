"""When delayed messages arrive."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.delay.common import (
    EARLY,
    HELD,
    NEEDS,
    OWN,
    STUCK,
    arrival_times,
    tolerance,
)
from mqcore.contract.kit import NotShown
from mqcore.spi import (
    Capability,
    Durability,
    Outgoing,
    SupportsCount,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G7", ids="D01", needs=NEEDS, each={"0.05 s": 0.05, "0.5 s": 0.5, "2 s": 2.0})
async def a_delayed_message_comes_at_its_time(kit: Kit, delay: float) -> None:
    """A delayed message is never early, late by the granularity at most, and unmarked."""
    queue = await kit.queue()
    consumer, began = await kit.subscribe(queue), kit.now
    waiting = await kit.start(consumer.receive(1, 600.0))
    published = kit.now
    await kit.put(queue, "a", delay=delay)
    stored = kit.now
    (delivery,) = await kit.within(waiting)
    kit.true(
        kit.now >= published + delay - EARLY,
        f"not before {delay} s",
        f"{kit.now - began:.4f} s",
        OWN,
    )
    kit.true(
        kit.now <= stored + delay + tolerance(kit),
        f"at most {tolerance(kit)} s late",
        f"{kit.now - stored - delay:.4f} s",
        OWN,
    )

    marks = (delivery.message.body, delivery.attempt, delivery.redelivered, delivery.takeovers)
    kit.same(
        marks,
        (b"a", 1, False, False),
        "body, attempt, redelivered, takeovers",
        "Subscription.receive",
    )


@case("G7", "G16", ids="D01 D02", needs=NEEDS)
async def delays_keep_to_the_declared_granularity(kit: Kit) -> None:
    """Delays from 0.1 to 1.5 s keep to the declared granularity.

    The worst error of twelve delays is measured.
    """
    queue, delays = await kit.queue(), [0.1 + step * 7 % 12 * 0.127 for step in range(12)]
    consumer = await kit.subscribe(queue, prefetch=1)
    due: dict[str, tuple[float, float]] = {}

    for number, delay in enumerate(delays):
        began = kit.now
        await kit.put(queue, f"{number}", delay=delay)
        due[f"{number}"] = (began + delay, kit.now + delay)

    actual = await arrival_times(kit, consumer, len(delays))
    early = max(due[name][0] - at for name, at in actual.items())
    late = max(at - due[name][1] for name, at in actual.items())
    kit.measured["delay error (s)"] = max(late, 0.0)
    kit.true(early <= EARLY, f"none more than {EARLY} s early", f"{early:.4f} s early", OWN)
    kit.true(
        late <= tolerance(kit), f"none more than {tolerance(kit)} s late", f"{late:.4f} s late", OWN
    )


@case("G7", ids="D02", needs=NEEDS)
async def a_short_delay_is_not_stuck_behind_a_long_one(kit: Kit) -> None:
    """Messages arrive in the order of their due times, not of publishing."""
    queue = await kit.queue()
    consumer = await kit.subscribe(queue, prefetch=1)
    waiting = await kit.start(consumer.receive(1, 600.0))
    names = {"600": 600.0, "2.4": 2.4, "1.6": 1.6, "0.8": 0.8}
    for name, delay in names.items():
        await kit.put(queue, name, delay=delay)
    first = list(await kit.within(waiting))
    await kit.ack(consumer, first)
    actual = kit.ids(first) + list(await arrival_times(kit, consumer, 2))
    kit.same(actual, ["0.8", "1.6", "2.4"], "messages in the order of their due times", HELD)


@case("G7", "G9", ids="D02", needs=NEEDS)
async def delays_that_end_together_lose_nobody(kit: Kit) -> None:
    """Messages due at the same time arrive once each.

    They keep publish order where ORDER states `after_delay`.
    """
    queue, names = await kit.queue(), [f"{number:02}" for number in range(20)]
    await kit.put(queue, "last", delay=0.8)
    await kit.put(queue, *names, delay=0.4)
    await kit.advance(0.8 + tolerance(kit))
    *got, last = kit.ids(await kit.take(await kit.subscribe(queue), 21))
    kit.same(
        last,
        "last",
        "the message that is due last",
        HELD,
    )
    kit.same(sorted(got), names, "messages received", OWN)

    if kit.limit(Capability.ORDER, "after_delay"):
        kit.same(got, names, "messages due together, in publish order", "ORDER: after_delay")


@case("G9", "G7", needs=(*NEEDS, Capability.ORDER))
async def a_message_that_falls_due_goes_where_order_says(kit: Kit) -> None:
    """With `after_delay=end` a due message goes behind those that were ready when it fell due."""
    if kit.limit(Capability.ORDER, "after_delay") != "end":
        raise NotShown("ORDER states no after_delay=end")
    queue = await kit.queue()
    await kit.put(queue, "delayed", delay=0.4)
    await kit.put(queue, "before")
    await kit.advance(0.4 + tolerance(kit) + kit.harness.silence)
    await kit.put(queue, "after")
    got = kit.ids(await kit.take(await kit.subscribe(queue), 3))
    kit.same(got, ["before", "delayed", "after"], "messages in order", "ORDER: after_delay")


@case("G7", ids="D03 D10", needs=NEEDS)
async def delayed_messages_take_no_consumer_and_no_prefetch(kit: Kit) -> None:
    """Delayed messages use no prefetch, and are counted as delayed only."""
    queue = await kit.queue()
    await kit.put(queue, *(f"later-{number}" for number in range(STUCK)), delay=500.0)
    consumer = await kit.subscribe(queue, prefetch=1)

    for number in range(3):
        await kit.put(queue, f"{number}")
        got = await kit.take(consumer, 1)
        kit.same(kit.ids(got), [f"{number}"], "the ready message", OWN)
        await kit.ack(consumer, got)

    kit.same(await kit.receive(consumer), [], "messages received before they are due", OWN)
    if isinstance(kit.backend, SupportsCount):
        (counts,) = await kit.within(kit.backend.count([queue]))
        kit.counted(counts, ready=0, leased=0, delayed=STUCK)


@case("G7", ids="D04", needs=NEEDS)
async def who_publishes_a_delay_may_leave(kit: Kit) -> None:
    """A delay ends without its publisher and without any consumer."""
    queue, other = await kit.queue(), await kit.open()
    await kit.publish(Outgoing(queue, kit.message("a"), 0.5), backend=other)
    await kit.within(other.close())
    await kit.advance(0.5 + tolerance(kit))
    kit.same(await kit.contents(queue), Counter("a"), "messages in the queue", OWN)


@case("G7", "G2", ids="D04 B01", needs=(*NEEDS, Capability.DURABLE), hooks=("restart",))
async def a_delayed_message_survives_the_broker_as_a_ready_one_does(kit: Kit) -> None:
    """Confirmed delayed messages survive a kill of the server, as ready ones do."""
    if kit.capabilities.durability < Durability.PROCESS:
        raise NotShown(f"this server's durability is {kit.capabilities.durability.word}")
    queue, names = await kit.queue(), [f"{number}" for number in range(50)]
    expected = {f"{kind}-{name}" for kind in ("ready", "delayed") for name in names}
    await kit.put(queue, *(f"ready-{name}" for name in names))
    began = kit.now
    await kit.put(queue, *(f"delayed-{name}" for name in names), delay=2.0)
    await kit.within(kit.backend.close())
    await kit.harness.restart()
    await kit.open(kit.backend)
    consumer, actual = await kit.subscribe(queue), set[str]()
    until = (
        kit.now
        + 2.0
        + kit.harness.patience
        + float(kit.limit(Capability.DELAY, "after_crash") or 0.0)
    )

    while actual < expected and kit.now < until:
        got = await kit.receive(consumer, wait=1.0)
        actual.update(kit.ids(got))
        early = kit.now < began + 2.0 - EARLY and any(name.startswith("delayed") for name in actual)
        kit.true(
            not early, "no delayed message before it is due", f"after {kit.now - began:.3f} s", OWN
        )
        await kit.ack(consumer, got)

    kit.same(
        sorted(expected - actual),
        [],
        "confirmed messages that did not arrive",
        "delay: as durable as what is ready",
    )


@case("G7", ids="D08", needs=NEEDS)
async def many_consumers_do_not_multiply_what_falls_due(kit: Kit) -> None:
    """Each delayed message arrives once, however many consumers wait."""
    queue, names = await kit.queue(), [f"{number}" for number in range(20)]
    consumers = [await kit.subscribe(queue, lease=60.0, backend=await kit.open()) for _ in range(4)]
    waiting = [await kit.start(consumer.receive(100, 2.0)) for consumer in consumers]
    await kit.put(queue, *names, delay=0.5)
    got = [item for batch in await kit.within(asyncio.gather(*waiting)) for item in batch]
    for consumer in consumers:
        got += await kit.drain(consumer)
    kit.same(
        Counter(kit.ids(got)),
        Counter(names),
        "messages received",
        "Subscription.receive: what promotes the due",
    )
