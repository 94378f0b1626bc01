"""Profile *lease*: claims that end by themselves, and owners that come too late."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mqcore.spi import DONE, STALE, Ack, Capability, Release, Settlement, SupportsCount, SupportsRenew

if TYPE_CHECKING:
    from tests.seam.conftest import Seam


@pytest.fixture(autouse=True)
def _needs(seam: Seam) -> None:
    seam.needs(Capability.LEASE)


async def test_a_lease_that_is_not_renewed_ends(seam: Seam) -> None:
    """G5, C45, L02: within lease + 1 s, on an idle system, another consumer that waits gets the message, doubtful."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    owner, other = await seam.subscribe(queue, lease=3.0), await seam.subscribe(queue, lease=3.0)
    await seam.receive(owner)
    waiting = asyncio.create_task(other.receive(1, 600.0))
    await seam.advance(2.9)
    assert not waiting.done(), "the lease still held"
    (delivery,) = await seam.provider.finish(waiting, 1.1)
    assert (delivery.message.id, delivery.attempt) == ("a", 1), "a backend does not count attempts"
    assert (delivery.redelivered, delivery.doubtful) == (True, True)


@pytest.mark.parametrize("how", ["ack", "release", "move"])
async def test_the_late_settlement_of_an_old_owner_is_refused(seam: Seam, how: str) -> None:
    """G5, L02: it is stale and changes nothing, while the new owner's is done."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    owner, other = await seam.subscribe(queue, lease=2.0), await seam.subscribe(queue, lease=60.0)
    (old,) = await seam.receive(owner)
    await seam.advance(3.0)
    (new,) = await seam.receive(other, within=1.0)
    late: dict[str, Settlement] = {
        "ack": Ack(old.receipt),
        "release": Release(old.receipt),
        "move": seam.successor(old, queue),
    }
    assert await seam.settle(owner, late[how]) == [STALE]
    assert await seam.receive(owner) == [], f"the late {how} should have changed nothing"
    assert await seam.settle(other, Ack(new.receipt)) == [DONE]
    assert not await seam.contents(queue)


async def test_a_renewed_lease_holds(seam: Seam) -> None:
    """G5, L01: a handler that runs longer than its lease is not duplicated as long as somebody renews."""
    backend = seam.supports(SupportsRenew)
    queue = await seam.queue()
    await seam.put(queue, "a", "b")
    owner, other = await seam.subscribe(queue, lease=3.0), await seam.subscribe(queue)
    a, b = await seam.receive(owner)
    for _ in range(5):
        await seam.advance(2.0)
        assert list(await backend.renew(queue, [a.receipt], 3.0)) == [True]
    got = await seam.drain(other, within=0.0)
    assert seam.ids(got) == ["b"], "only the one that was not renewed should have come back"
    assert list(await backend.renew(queue, [a.receipt, b.receipt, b"nobody's"], 3.0)) == [True, False, False]
    assert await seam.settle(owner, Ack(a.receipt), Ack(b.receipt)) == [DONE, STALE]


async def test_another_instance_may_renew_and_settle(seam: Seam) -> None:
    """G5: receipts are plain bytes, good on any open instance: the renewal thread has an instance of its own."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    owner = await seam.subscribe(queue, lease=2.0)
    (delivery,) = await seam.receive(owner)
    assert type(delivery.receipt) is bytes
    assert len(delivery.receipt) <= 64, "a receipt is small"
    other = await seam.open()
    assert isinstance(other, SupportsRenew)
    assert list(await other.renew(queue, [delivery.receipt], 60.0)) == [True]
    await seam.advance(30.0)
    second = await other.subscribe(queue, prefetch=10, lease=2.0)
    assert await seam.drain(second) == []
    assert await seam.settle(second, Ack(delivery.receipt)) == [DONE]
    assert await seam.settle(owner, Ack(delivery.receipt)) == [STALE]


async def test_a_renewal_after_the_settlement_is_lost(seam: Seam) -> None:
    """G5: what is settled cannot be renewed back into being."""
    backend = seam.supports(SupportsRenew)
    queue = await seam.queue()
    await seam.put(queue, "a", "b")
    consumer = await seam.subscribe(queue)
    a, b = await seam.receive(consumer)
    await seam.settle(consumer, Ack(a.receipt), Release(b.receipt))
    assert list(await backend.renew(queue, [a.receipt, b.receipt], 30.0)) == [False, False]
    assert list(await backend.renew("nowhere", [a.receipt], 30.0)) == [False]


async def test_ended_leases_return_to_their_old_places(seam: Seam) -> None:
    """G9: where ORDER says `release_in_place`, a crash does not send messages to the end."""
    if not seam.limit(Capability.ORDER, "release_in_place"):
        pytest.skip("declares no release in place")
    queue = await seam.queue()
    await seam.put(queue, *"abcd")
    owner = await seam.subscribe(queue, lease=2.0)
    await seam.receive(owner, 3)
    await seam.put(queue, "e")
    await seam.advance(3.0)
    assert seam.ids(await seam.drain(await seam.subscribe(queue))) == list("abcde")


async def test_an_ended_lease_gives_its_owner_room_again(seam: Seam) -> None:
    """G12: prefetch counts what is held; what was lost is not held."""
    queue = await seam.queue()
    await seam.put(queue, "a", "b")
    owner = await seam.subscribe(queue, prefetch=1, lease=3.0)
    (first,) = await seam.receive(owner)
    (second,) = await seam.receive(owner, within=4.0)
    assert (first.message.id, second.message.id) == ("a", "a"), "its own lost message is the first in the queue again"
    assert second.doubtful
    assert second.receipt != first.receipt
    assert await seam.receive(owner) == [], "and it may hold no more than one"


async def test_each_consumer_has_its_own_lease(seam: Seam) -> None:
    """G5: the lease belongs to the subscription, not to the queue."""
    queue = await seam.queue()
    await seam.put(queue, "short", "long")
    short, long = await seam.subscribe(queue, lease=2.0), await seam.subscribe(queue, lease=50.0)
    await seam.receive(short, 1)
    (kept,) = await seam.receive(long, 1)
    await seam.advance(10.0)
    assert seam.ids(await seam.drain(short)) == ["short"]
    assert await seam.settle(long, Ack(kept.receipt)) == [DONE]


async def test_leases_show_in_the_counts_and_end_there(seam: Seam) -> None:
    """G5: what a dead consumer holds is leased until its lease ends, then ready."""
    backend = seam.supports(SupportsCount)
    queue = await seam.queue()
    await seam.put(queue, *"abc")
    await seam.receive(await seam.subscribe(queue, lease=2.0), 2)
    (counts,) = await backend.count([queue])
    assert (counts.ready, counts.leased) == (1, 2)
    await seam.advance(3.0)
    (counts,) = await backend.count([queue])
    assert (counts.ready, counts.leased) == (3, 0)
