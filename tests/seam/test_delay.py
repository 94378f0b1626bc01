"""Profile *delay*: never early, in the order of due times, and nobody waits for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from mqcore.spi import DONE, Capability, ErrorKind, Failed, Outgoing, Stored, SupportsCount

if TYPE_CHECKING:
    from tests.seam.conftest import Seam

EARLY = 0.005


@pytest.fixture(autouse=True)
def _needs(seam: Seam) -> None:
    seam.needs(Capability.DELAY)


def late(seam: Seam) -> float:
    """How late the backend may be."""
    granularity = seam.limit(Capability.DELAY, "granularity")
    assert isinstance(granularity, float)
    return granularity


@pytest.mark.parametrize("delay", [0.05, 1.0, 3.3])
async def test_a_delayed_message_comes_at_its_time(seam: Seam, delay: float) -> None:
    """G7, D01: never early, at most the granularity late, and it wakes a consumer that waits."""
    queue = await seam.queue()
    consumer = await seam.subscribe(queue)
    began = seam.now
    await seam.put(queue, "a", delay=delay)
    waiting = asyncio.create_task(consumer.receive(1, 600.0))
    await seam.advance(max(0.0, began + delay - EARLY - seam.now))
    assert not waiting.done(), f"a delay of {delay} s was over {EARLY} s too early"
    assert seam.ids(await seam.provider.finish(waiting, EARLY + late(seam))) == ["a"]


async def test_a_short_delay_is_not_stuck_behind_a_long_one(seam: Seam) -> None:
    """G7, D02: in the order of due times, not of publishing; a consumer that waits for the long one takes the short."""
    queue = await seam.queue()
    consumer = await seam.subscribe(queue)
    waiting = asyncio.create_task(consumer.receive(1, 600.0))
    await seam.advance(0.01)
    for name, delay in [("6", 6.0), ("3.3", 3.3), ("1", 1.0), ("0.2", 0.2)]:
        await seam.put(queue, name, delay=delay)
        await seam.advance(0.01)
    assert seam.ids(await seam.provider.finish(waiting, 0.5 + late(seam))) == ["0.2"]
    await seam.advance(6.5 + late(seam))
    assert seam.ids(await seam.drain(consumer)) == ["1", "3.3", "6"]


async def test_delays_that_end_together_keep_the_order_of_publishing(seam: Seam) -> None:
    """G7, G9: inside a level, by due time, then first in first out."""
    queue = await seam.queue()
    names = [f"{number:02}" for number in range(20)]
    await seam.put(queue, *names, delay=1.0)
    await seam.advance(1.0 + late(seam))
    got = seam.ids(await seam.drain(await seam.subscribe(queue), within=late(seam)))
    assert sorted(got) == names
    if seam.limit(Capability.ORDER, "after_delay"):
        assert got == names


async def test_a_message_that_falls_due_stands_behind_those_that_were_ready(seam: Seam) -> None:
    """G9: at the end of its level by due time, where ORDER says `after_delay` is `end`."""
    if seam.limit(Capability.ORDER, "after_delay") != "end":
        pytest.skip("declares another place after a delay")
    queue = await seam.queue()
    await seam.put(queue, "delayed", delay=1.0)
    await seam.put(queue, "before")
    await seam.advance(2.0 + late(seam))
    await seam.put(queue, "after")
    assert seam.ids(await seam.drain(await seam.subscribe(queue))) == ["before", "delayed", "after"]


async def test_a_delayed_message_takes_no_consumer_and_no_prefetch(seam: Seam) -> None:
    """G7, D03: a consumer with room for one goes on working while a hundred wait."""
    queue = await seam.queue()
    await seam.put(queue, *(f"later-{n}" for n in range(100)), delay=500.0)
    consumer = await seam.subscribe(queue, prefetch=1)
    for number in range(3):
        await seam.put(queue, f"{number}")
        (delivery,) = await seam.receive(consumer, within=1.0)
        assert delivery.message.id == f"{number}"
        await seam.ack(consumer, [delivery])
    assert await seam.receive(consumer) == []
    if isinstance(seam.backend, SupportsCount):
        (counts,) = await seam.backend.count([queue])
        assert (counts.ready, counts.leased, counts.delayed) == (0, 0, 100)


async def test_a_move_may_delay_its_successor(seam: Seam) -> None:
    """G7, G10: the wait of a retry is a broker's delay; the source is gone at once."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    consumer = await seam.subscribe(queue, prefetch=1)
    (first,) = await seam.receive(consumer)
    assert await seam.settle(consumer, seam.successor(first, queue, 2.0, attempt=2)) == [DONE]
    assert await seam.receive(consumer, within=1.9) == []
    (second,) = await seam.receive(consumer, within=0.2 + late(seam))
    assert (second.message.id, second.attempt, second.redelivered) == ("a", 2, False)
    await consumer.close()


async def test_a_retried_message_is_delayed_again_and_again(seam: Seam) -> None:
    """G7, G10: ten delays in a row of one message (a broker that counts loops must not drop it)."""
    queue = await seam.queue()
    await seam.put(queue, "a", delay=0.1)
    consumer = await seam.subscribe(queue)
    for attempt in range(1, 11):
        (delivery,) = await seam.receive(consumer, within=0.2 + late(seam))
        assert delivery.attempt == attempt
        await seam.settle(consumer, seam.successor(delivery, queue, 0.1, attempt=attempt + 1))


async def test_who_publishes_a_delay_may_leave(seam: Seam) -> None:
    """G7, D04: the delay is the broker's, not the publisher's or a consumer's."""
    queue = await seam.queue()
    other = await seam.open()
    await seam.provider.finish(other.publish([Outgoing(queue, seam.message("a"), 1.0)], timeout=5.0), 5.0)
    await other.close()
    await seam.advance(1.0 + late(seam))
    assert await seam.contents(queue) == Counter("a")


async def test_many_consumers_do_not_multiply_what_falls_due(seam: Seam) -> None:
    """G7, D08: each delayed message comes once, however many wait for it."""
    queue = await seam.queue()
    consumers = [await (await seam.open()).subscribe(queue, prefetch=100, lease=60.0) for _ in range(5)]
    await seam.put(queue, *(f"{n}" for n in range(20)), delay=1.0)
    waiting = asyncio.gather(*(consumer.receive(100, 5.0) for consumer in consumers))
    got = await seam.provider.finish(waiting, 5.0 + late(seam))
    assert Counter(name for batch in got for name in seam.ids(batch)) == Counter(f"{n}" for n in range(20))


async def test_a_delay_above_the_maximum_is_refused(seam: Seam) -> None:
    """G7, D09: the declared maximum is kept, more than it certainly not stored."""
    most = seam.limit(Capability.DELAY, "max")
    assert isinstance(most, float), "DELAY should state its maximum"
    queue = await seam.queue()
    kept, refused = await seam.publish(
        Outgoing(queue, seam.message("kept"), most), Outgoing(queue, seam.message("refused"), most * 1.01)
    )
    assert isinstance(kept, Stored)
    assert isinstance(refused, Failed)
    assert refused.kind is ErrorKind.PERMANENT


async def test_a_missing_target_of_a_delayed_message_holds_up_nobody(seam: Seam) -> None:
    """G7: the delays of others come on time, whatever became of a hundred delayed messages to a queue that is gone."""
    queue = await seam.queue()
    batch = [Outgoing("nowhere", seam.message(), 0.5) for _ in range(100)]
    await seam.publish(*batch, Outgoing(queue, seam.message("a"), 0.5))
    await seam.advance(0.5 + late(seam))
    assert await seam.contents(queue) == Counter("a")
