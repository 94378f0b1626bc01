"""Profile *ttl*: who receives an expired message is told so, wherever it stood; a backend never takes one away itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from mqcore.spi import DONE, STORED, Capability, Outgoing, Release, SupportsSweep

if TYPE_CHECKING:
    from tests.seam.conftest import Seam


@pytest.fixture(autouse=True)
def _needs(seam: Seam) -> None:
    seam.needs(Capability.EXPIRY)


async def left(seam: Seam, queue: str) -> dict[str, float | None]:
    """Return what each message of the queue has left."""
    consumer = await seam.subscribe(queue)
    got = await seam.drain(consumer, within=0.0)
    await seam.settle(consumer, *[Release(it.receipt) for it in got])
    await consumer.close()
    return {it.message.id: it.expires_in for it in got}


async def test_a_living_message_says_how_long_it_has(seam: Seam) -> None:
    """G6, T02: `expires_in` counts from publish, by the broker's clock; None is for ever."""
    queue = await seam.queue()
    await seam.put(queue, "mortal", ttl=10.0)
    await seam.put(queue, "immortal")
    await seam.advance(4.0)
    remaining = await left(seam, queue)
    assert remaining["immortal"] is None
    assert remaining["mortal"] == pytest.approx(6.0, abs=0.25)


async def test_an_expired_message_is_handed_out_as_expired(seam: Seam) -> None:
    """G6, T01: core dead-letters it, so it must come, with nothing left; the body unharmed."""
    queue = await seam.queue()
    await seam.put(queue, "a", ttl=1.0)
    await seam.advance(1.5)
    (delivery,) = await seam.drain(await seam.subscribe(queue))
    assert delivery.message.body == b"a"
    assert delivery.expires_in is not None
    assert delivery.expires_in <= 0, "half a second after its end it should have nothing left"


async def test_expired_and_living_messages_do_not_stand_in_each_others_way(seam: Seam) -> None:
    """G6, T03, P09: the short one behind the long one, the expired one before the living one."""
    queue = await seam.queue()
    for name, ttl in [("dead-1", 1.0), ("long", 100.0), ("dead-2", 2.0), ("for-ever", None)]:
        await seam.put(queue, name, ttl=ttl)
    await seam.advance(3.0)
    got = await seam.drain(await seam.subscribe(queue))
    expired = {it.message.id for it in got if it.expires_in is not None and it.expires_in <= 0}
    assert Counter(seam.ids(got)) == Counter(["dead-1", "long", "dead-2", "for-ever"])
    assert expired == {"dead-1", "dead-2"}


@pytest.mark.parametrize(
    ("of_message", "of_queue", "expected"), [(5.0, 20.0, 5.0), (20.0, 5.0, 5.0), (None, 5.0, 5.0), (5.0, None, 5.0)]
)
async def test_the_shorter_of_both_ttls_wins(
    seam: Seam, of_message: float | None, of_queue: float | None, expected: float
) -> None:
    """G6, T04: the message's own and its queue's."""
    queue = await seam.queue(ttl=of_queue)
    await seam.put(queue, "a", ttl=of_message)
    assert (await left(seam, queue))["a"] == pytest.approx(expected, abs=0.25)


async def test_release_does_not_wind_the_clock_back(seam: Seam) -> None:
    """G6, T05."""
    queue = await seam.queue(ttl=10.0)
    await seam.put(queue, "a")
    consumer = await seam.subscribe(queue)
    for _ in range(2):
        await seam.advance(3.0)
        (delivery,) = await seam.drain(consumer, within=0.0)
        await seam.settle(consumer, Release(delivery.receipt))
    assert (await left(seam, queue))["a"] == pytest.approx(4.0, abs=0.25)


async def test_a_move_copies_the_expiry_and_the_target_queue_adds_none(seam: Seam) -> None:
    """G6, T06: retry does not reset the clock; a queue's ttl is for what is published to it, not for what is moved."""
    source, target = await seam.queue(), await seam.queue(ttl=1.0)
    await seam.put(source, "a", ttl=10.0)
    await seam.put(source, "for-ever")
    await seam.advance(3.0)
    consumer = await seam.subscribe(source)
    got = await seam.drain(consumer, within=0.0)
    assert await seam.settle(consumer, *[seam.successor(it, target) for it in got]) == [DONE, DONE]
    remaining = await left(seam, target)
    assert remaining["a"] == pytest.approx(7.0, abs=0.25)
    assert remaining["for-ever"] is None


async def test_a_dead_letter_never_expires_again(seam: Seam) -> None:
    """G6, T10: core takes the expiry off, and the backend must not put it back."""
    queue = await seam.queue(ttl=1.0)
    await seam.put(queue, "a")
    await seam.advance(2.0)
    consumer = await seam.subscribe(queue)
    (delivery,) = await seam.drain(consumer)
    await seam.settle(consumer, seam.successor(delivery, f"{queue}.dlq", expires_at=None))
    await seam.advance(1_000.0 if seam.provider.clock.real is False else 2.0)
    assert await left(seam, f"{queue}.dlq") == {"a": None}


async def test_a_move_may_give_a_new_ttl(seam: Seam) -> None:
    """G6: `ttl` of an Outgoing counts from now, also in a Move."""
    queue = await seam.queue()
    await seam.put(queue, "a", ttl=100.0)
    await seam.advance(1.0)
    consumer = await seam.subscribe(queue)
    (delivery,) = await seam.drain(consumer, within=0.0)
    move = seam.successor(delivery, queue)
    move = type(move)(move.receipt, Outgoing(queue, move.to.message, 0.0, 5.0))
    await seam.settle(consumer, move)
    assert (await left(seam, queue))["a"] == pytest.approx(5.0, abs=0.25)


async def test_a_message_that_expires_inside_its_delay_is_handed_out_when_it_expires(seam: Seam) -> None:
    """G6, D06: and wakes a consumer that waits; core dead-letters it. It is never handed out alive before its time."""
    seam.needs(Capability.DELAY)
    queue = await seam.queue()
    consumer = await seam.subscribe(queue)
    assert await seam.publish(Outgoing(queue, seam.message("a"), 60.0, 2.0)) == [STORED]
    if not seam.capabilities[Capability.EXPIRY].limits.get("sweep"):
        pytest.skip("declares no sweep: it comes when its delay is over")
    waiting = asyncio.create_task(consumer.receive(1, 600.0))
    await seam.advance(1.9)
    assert not waiting.done(), "it was handed out before it expired and before it was due"
    (delivery,) = await seam.provider.finish(waiting, 1.0)
    assert delivery.expires_in is not None
    assert delivery.expires_in <= 0


async def test_a_sweep_finds_the_expired_wherever_they_stand(seam: Seam) -> None:
    """G6: under a backlog that nobody gets through, up to the limit, leased like any claim; the living are left alone."""
    backend = seam.supports(SupportsSweep)
    queue = await seam.queue()
    await seam.put(queue, *(f"living-{n}" for n in range(20)), priority=10)
    await seam.put(queue, *(f"dead-{n}" for n in range(5)), ttl=1.0, priority=0)
    await seam.put(queue, "not-yet", ttl=100.0, priority=0)
    assert list(await backend.sweep(queue, 10, 30.0)) == [], "nothing has expired yet"
    await seam.advance(2.0)
    first = list(await backend.sweep(queue, 3, 30.0))
    rest = list(await backend.sweep(queue, 10, 30.0))
    assert sorted(seam.ids(first + rest)) == [f"dead-{n}" for n in range(5)]
    assert len(first) == 3, "a limit of 3 with 5 expired should give 3"
    assert all(it.expires_in is not None and it.expires_in <= 0 for it in first + rest)
    consumer = await seam.subscribe(queue)
    await seam.ack(consumer, first)
    assert await seam.settle(consumer, *[Release(it.receipt) for it in rest]) == [DONE] * 2
    assert len(await seam.drain(consumer)) == 20 + 1 + 2
    assert list(await backend.sweep(queue, 10, 30.0)) == [], "what a consumer holds is not swept"


async def test_a_swept_message_that_came_back_is_swept_again(seam: Seam) -> None:
    """G6: released or abandoned, it is still expired."""
    backend = seam.supports(SupportsSweep)
    queue = await seam.queue()
    await seam.put(queue, "a", ttl=1.0)
    await seam.advance(2.0)
    consumer = await seam.subscribe(queue)
    for _ in range(3):
        (delivery,) = await backend.sweep(queue, 10, 30.0)
        await seam.settle(consumer, Release(delivery.receipt))
    await backend.sweep(queue, 10, 5.0)
    await seam.advance(6.0)
    assert seam.ids(await backend.sweep(queue, 10, 5.0)) == ["a"], "the lease of the sweep should have ended"
