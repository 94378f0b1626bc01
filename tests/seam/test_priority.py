"""Profile *priority*: one scale, 0 lowest to 10 highest, strict among the ready, first in first out inside a level."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mqcore.spi import Capability, Outgoing, Release

if TYPE_CHECKING:
    from tests.seam.conftest import Seam


@pytest.fixture(autouse=True)
def _needs(seam: Seam) -> None:
    seam.needs(Capability.PRIORITY)


async def test_the_highest_goes_first(seam: Seam) -> None:
    """G8, P01: all eleven levels, published in no order."""
    queue = await seam.queue()
    levels = [3, 10, 0, 7, 5, 1, 9, 2, 8, 4, 6]
    await seam.publish(*[Outgoing(queue, seam.message(f"{level}", priority=level)) for level in levels])
    consumer = await seam.subscribe(queue)
    assert seam.ids(await seam.drain(consumer)) == [f"{level}" for level in range(10, -1, -1)]


async def test_inside_a_level_the_first_goes_first(seam: Seam) -> None:
    """G8, P02: levels mixed in one batch and in many."""
    queue = await seam.queue()
    for number in range(30):
        await seam.put(queue, f"{number:02}", priority=number % 3)
    expected = [f"{n:02}" for level in (2, 1, 0) for n in range(30) if n % 3 == level]
    assert seam.ids(await seam.drain(await seam.subscribe(queue))) == expected


async def test_a_message_keeps_its_priority(seam: Seam) -> None:
    """G8, P05: the number itself comes back, on a first delivery and on a second."""
    queue = await seam.queue()
    await seam.put(queue, "a", priority=9)
    await seam.put(queue, "z", priority=0)
    consumer = await seam.subscribe(queue)
    for _ in range(2):
        got = await seam.drain(consumer)
        assert [(it.message.id, it.message.priority) for it in got] == [("a", 9), ("z", 0)]
        await seam.settle(consumer, *[Release(it.receipt) for it in reversed(got)])


async def test_a_high_message_passes_all_that_nobody_has_yet(seam: Seam) -> None:
    """G8, P04: inversion is bounded by what is held already, never by a backlog or by a driver's buffer."""
    queue = await seam.queue()
    await seam.put(queue, *(f"low-{n}" for n in range(60)), priority=0)
    consumer = await seam.subscribe(queue, prefetch=20)
    held = await seam.receive(consumer, 5)
    await seam.put(queue, "high", priority=10)
    await seam.ack(consumer, held)
    assert seam.ids(await seam.receive(consumer, 1, within=1.0)) == ["high"]


@pytest.mark.parametrize(("low", "high"), [(0, 10), (4, 5), (5, 6), (9, 10)])
async def test_a_released_message_does_not_pass_a_higher_one(seam: Seam, low: int, high: int) -> None:
    """G8, P05: priority survives a release."""
    queue = await seam.queue()
    await seam.put(queue, "low", priority=low)
    consumer = await seam.subscribe(queue)
    (delivery,) = await seam.receive(consumer)
    await seam.put(queue, "high", priority=high)
    await seam.settle(consumer, Release(delivery.receipt))
    assert seam.ids(await seam.receive(consumer, 1, within=1.0)) == ["high"]


async def test_priority_survives_a_crash_a_move_and_a_delay(seam: Seam) -> None:
    """G8, P05, D07: what comes back or falls due is sorted like anything else."""
    seam.needs(Capability.DELAY)
    queue = await seam.queue()
    await seam.put(queue, "crashed", priority=7)
    await seam.put(queue, "moved", priority=8)
    consumer = await seam.subscribe(queue)
    moved, _crashed = await seam.drain(consumer)
    await seam.settle(consumer, seam.successor(moved, queue))
    await seam.put(queue, "delayed", priority=9, delay=1.0)
    await seam.put(queue, "plain", priority=5)
    await consumer.close()
    await seam.advance(1.0)
    await asyncio.sleep(0)
    consumer = await seam.subscribe(queue)
    assert seam.ids(await seam.drain(consumer, within=1.0)) == ["delayed", "moved", "crashed", "plain"]


async def test_a_moved_message_has_the_priority_that_the_move_says(seam: Seam) -> None:
    """G8: the successor is a message of its own."""
    queue = await seam.queue()
    await seam.put(queue, "a", priority=2)
    await seam.put(queue, "b", priority=5)
    consumer = await seam.subscribe(queue)
    by_name = {it.message.id: it for it in await seam.drain(consumer)}
    await seam.settle(consumer, seam.successor(by_name["a"], queue, priority=10), Release(by_name["b"].receipt))
    got = await seam.drain(consumer, within=1.0)
    assert [(it.message.id, it.message.priority) for it in got] == [("a", 10), ("b", 5)]
