"""Profile *operator*: counting and looking change nothing; taking, purging and deleting do what they say and no more."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from mqcore.spi import (
    DONE,
    STALE,
    Ack,
    Capability,
    ErrorKind,
    Failed,
    Outgoing,
    QueueSpec,
    Release,
    SupportsBrowse,
    SupportsCount,
    SupportsDelete,
    SupportsPurge,
    SupportsTake,
)

if TYPE_CHECKING:
    from tests.seam.conftest import Seam


# Count


async def test_counts_tell_ready_leased_and_delayed_apart(seam: Seam) -> None:
    """G11, D10: exactly, on a queue at rest, and with the name of its dead-letter queue."""
    backend = seam.supports(SupportsCount)
    queue = await seam.queue()
    await seam.put(queue, *"abcde")
    if seam.capabilities.has(Capability.DELAY):
        await seam.put(queue, "later", delay=500.0)
    consumer = await seam.subscribe(queue)
    held = await seam.receive(consumer, 2)
    await seam.ack(consumer, held[:1])
    (counts,) = await backend.count([queue])
    assert (counts.name, counts.role, counts.dead_letter) == (queue, "work", f"{queue}.dlq")
    assert (counts.ready, counts.leased) == (3, 1)
    assert counts.delayed == seam.capabilities.has(Capability.DELAY)


async def test_the_totals_only_grow(seam: Seam) -> None:
    """G16: where a broker counts what was published and settled, two looks give a rate."""
    backend = seam.supports(SupportsCount)
    queue = await seam.queue()
    seen = []
    for number in range(3):
        await seam.put(queue, f"{number}")
        consumer = await seam.subscribe(queue)
        await seam.ack(consumer, await seam.drain(consumer))
        await consumer.close()
        (counts,) = await backend.count([queue])
        seen.append((counts.published, counts.settled))
    assert seen in ([(1, 1), (2, 2), (3, 3)], [(None, None)] * 3)


async def test_a_quarantine_counts_in_its_queue_and_is_not_listed(seam: Seam) -> None:
    """G4: `.again` is part of the queue; a listing shows work and dead-letter queues only."""
    backend = seam.supports(SupportsCount)
    queue = await seam.queue()
    await seam.put(queue, "a", "b", "c")
    await seam.put(f"{queue}.again", "d", "e")
    again = await seam.subscribe(f"{queue}.again", prefetch=1)
    await seam.receive(again)
    (counts,) = await backend.count([queue])
    assert (counts.ready, counts.leased) == (4, 1)
    names = {counts.name for counts in await backend.count()}
    assert {queue, f"{queue}.dlq"} <= names
    assert f"{queue}.again" not in names


async def test_a_missing_queue_is_left_out_of_the_counts(seam: Seam) -> None:
    """G1: counting declares nothing and raises nothing."""
    backend = seam.supports(SupportsCount)
    queue = await seam.queue()
    assert [counts.name for counts in await backend.count(["nowhere", queue])] == [queue]
    (outcome,) = await seam.publish(Outgoing("nowhere", seam.message()))
    assert isinstance(outcome, Failed)


# Browse


async def test_browsing_shows_the_order_of_delivery(seam: Seam) -> None:
    """G11: highest priority first, first in first out; then the delayed, the next to fall due first."""
    seam.needs(Capability.BROWSE, Capability.PRIORITY, Capability.DELAY)
    backend = seam.supports(SupportsBrowse)
    queue = await seam.queue()
    await seam.put(queue, "late", delay=90.0, priority=10)
    await seam.put(queue, "soon", delay=30.0)
    await seam.put(queue, "low", priority=1)
    await seam.put(queue, "a", "b")
    await seam.put(queue, "high", priority=9)
    await seam.advance(2.0)
    entries = await backend.browse(queue, 100)
    assert [entry.message.id for entry in entries] == ["high", "a", "b", "low", "soon", "late"]
    assert [entry.state for entry in entries] == ["ready"] * 4 + ["delayed"] * 2
    assert [entry.due_in for entry in entries] == pytest.approx([0, 0, 0, 0, 28.0, 88.0], abs=0.25)
    assert entries[1].message.body == b"a"
    consumer = await seam.subscribe(queue)
    assert seam.ids(await seam.drain(consumer)) == ["high", "a", "b", "low"]


async def test_browsing_changes_nothing(seam: Seam) -> None:
    """G11, X08: neither order, nor counts, nor leases, nor marks."""
    seam.needs(Capability.BROWSE)
    backend = seam.supports(SupportsBrowse)
    queue = await seam.queue()
    await seam.put(queue, *"abcd")
    consumer = await seam.subscribe(queue)
    (held,) = await seam.receive(consumer, 1)
    for _ in range(3):
        shown = [entry.message.id for entry in await backend.browse(queue, 10) if entry.state != "leased"]
        assert shown == ["b", "c", "d"]
    if isinstance(seam.backend, SupportsCount):
        (counts,) = await seam.backend.count([queue])
        assert (counts.ready, counts.leased) == (3, 1)
    assert await seam.settle(consumer, Ack(held.receipt)) == [DONE]
    got = await seam.drain(consumer)
    assert [(it.message.id, it.redelivered) for it in got] == [("b", False), ("c", False), ("d", False)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_pages_join_to_the_whole(seam: Seam, size: int) -> None:
    """G11, C91: each entry once, whatever the size of a page; an entry that has gone meanwhile breaks no page."""
    seam.needs(Capability.BROWSE, Capability.DELAY)
    backend = seam.supports(SupportsBrowse)
    queue = await seam.queue()
    for number in range(6):
        await seam.put(queue, f"{number}", priority=number % 3)
    await seam.put(queue, "d1", delay=50.0)
    await seam.put(queue, "d2", delay=50.0)
    whole = [entry.message.id for entry in await backend.browse(queue, 100)]
    paged: list[str] = []
    after = None
    while page := await backend.browse(queue, size, after):
        paged += [entry.message.id for entry in page]
        after = page[-1].key
    assert paged == whole
    page = await backend.browse(queue, 2)
    consumer = await seam.subscribe(queue)
    await seam.ack(consumer, await seam.receive(consumer, 2))
    assert [entry.message.id for entry in await backend.browse(queue, 100, page[-1].key)] == whole[2:]


# Take


async def test_taking_leases_the_chosen_and_leaves_the_rest(seam: Seam) -> None:
    """G11, X03: one or some of many, ready or delayed; settled through any consumer of the queue."""
    browser, backend = seam.supports(SupportsBrowse), seam.supports(SupportsTake)
    seam.needs(Capability.DELAY)
    queue = await seam.queue()
    await seam.put(queue, *"abcde")
    await seam.put(queue, "later", "much later", delay=500.0)
    keys = {entry.message.id: entry.key for entry in await browser.browse(queue, 100)}
    taken = await backend.take(queue, [keys["d"], keys["b"], keys["later"]], 30.0)
    assert sorted(seam.ids(taken)) == ["b", "d", "later"]
    assert not any(it.redelivered for it in taken)
    consumer = await seam.subscribe(queue)
    assert seam.ids(await seam.drain(consumer)) == ["a", "c", "e"]
    by_name = {it.message.id: it for it in taken}
    settled = await seam.settle(
        consumer, seam.successor(by_name["b"], f"{queue}.dlq"), Ack(by_name["d"].receipt), Ack(by_name["later"].receipt)
    )
    assert settled == [DONE] * 3
    assert await seam.contents(f"{queue}.dlq") == Counter("b")


async def test_what_was_taken_can_be_given_back(seam: Seam) -> None:
    """G9, G11: to its place among the ready, or to the rest of its delay."""
    browser, backend = seam.supports(SupportsBrowse), seam.supports(SupportsTake)
    seam.needs(Capability.DELAY)
    queue = await seam.queue()
    await seam.put(queue, *"abc")
    await seam.put(queue, "later", delay=5.0)
    taken = await backend.take(queue, [entry.key for entry in await browser.browse(queue, 100)][1:], 60.0)
    consumer = await seam.subscribe(queue)
    await seam.settle(consumer, *[Release(it.receipt) for it in reversed(taken)])
    got = await seam.drain(consumer, within=0.0)
    assert sorted(seam.ids(got)) == ["a", "b", "c"], "the delayed one is not due yet"
    if seam.limit(Capability.ORDER, "release_in_place"):
        assert seam.ids(got) == ["a", "b", "c"]
    assert seam.ids(await seam.receive(consumer, within=5.5)) == ["later"]


async def test_what_is_gone_or_held_is_not_taken(seam: Seam) -> None:
    """G11, X03: a redrive beside another and beside consumers gets what is free; nothing is moved twice."""
    browser, backend = seam.supports(SupportsBrowse), seam.supports(SupportsTake)
    queue = await seam.queue()
    await seam.put(queue, *"abcd")
    keys = [entry.key for entry in await browser.browse(queue, 100)]
    consumer = await seam.subscribe(queue)
    a, _b = await seam.receive(consumer, 2)
    await seam.ack(consumer, [a])
    first = await backend.take(queue, [*keys, keys[2]], 30.0)
    assert sorted(seam.ids(first)) == ["c", "d"]
    assert list(await backend.take(queue, keys, 30.0)) == []


async def test_the_lease_of_what_was_taken_ends(seam: Seam) -> None:
    """G5, G11: a redrive that dies gives back what it took."""
    browser, backend = seam.supports(SupportsBrowse), seam.supports(SupportsTake)
    queue = await seam.queue()
    await seam.put(queue, "a")
    (taken,) = await backend.take(queue, [entry.key for entry in await browser.browse(queue, 1)], 2.0)
    await seam.advance(3.0)
    consumer = await seam.subscribe(queue)
    assert seam.ids(await seam.drain(consumer, within=1.0)) == ["a"]
    assert await seam.settle(consumer, Ack(taken.receipt)) == [STALE]


# Purge


async def test_a_purge_empties_the_queue_and_its_quarantine(seam: Seam) -> None:
    """G11, X05: ready and delayed go, and are counted; what is leased stays with its owner."""
    backend = seam.supports(SupportsPurge)
    seam.needs(Capability.DELAY)
    queue = await seam.queue()
    await seam.put(queue, "held")
    consumer = await seam.subscribe(queue)
    (held,) = await seam.receive(consumer)
    await seam.put(queue, *"abc", ttl=50.0)
    await seam.put(queue, "later", delay=5.0)
    await seam.put(f"{queue}.again", "suspect")
    await seam.put(f"{queue}.dlq", "dead")
    assert await backend.purge(queue) == 5
    await seam.advance(6.0)
    assert await seam.drain(consumer) == [], "what was purged should not come, not even when it would fall due"
    assert await seam.settle(consumer, Ack(held.receipt)) == [DONE]
    assert not await seam.contents(f"{queue}.again")
    assert await seam.contents(f"{queue}.dlq") == Counter(["dead"]), "the dead-letter queue is not purged with it"
    assert await backend.purge(queue) == 0


async def test_a_purged_queue_goes_on(seam: Seam) -> None:
    """G2: what is published after the purge arrives, in order."""
    backend = seam.supports(SupportsPurge)
    queue = await seam.queue()
    await seam.put(queue, *"abc")
    await backend.purge(queue)
    await seam.put(queue, *"def")
    assert seam.ids(await seam.drain(await seam.subscribe(queue))) == ["d", "e", "f"]


# Delete


async def test_a_deleted_queue_is_gone(seam: Seam) -> None:
    """G1: publish fails NOT_FOUND, subscribe raises it, late settlements are stale; its dead letters stay."""
    backend = seam.supports(SupportsDelete)
    queue = await seam.queue()
    await seam.put(queue, "a", "b")
    await seam.put(f"{queue}.dlq", "dead")
    consumer = await seam.subscribe(queue)
    (held,) = await seam.receive(consumer, 1)
    assert await backend.delete(queue) is True
    for name in (queue, f"{queue}.again"):
        (outcome,) = await seam.publish(Outgoing(name, seam.message()))
        assert isinstance(outcome, Failed)
        assert outcome.kind is ErrorKind.NOT_FOUND
    assert await seam.settle(consumer, Ack(held.receipt)) == [STALE]
    assert await seam.contents(f"{queue}.dlq") == Counter(["dead"])
    with pytest.raises(Exception, match=queue) as caught:
        await backend.delete(queue)
    assert seam.backend.classify(caught.value) is ErrorKind.NOT_FOUND


async def test_the_consumers_of_a_deleted_queue_learn_it(seam: Seam) -> None:
    """G14: `receive` raises NOT_FOUND, also one that waits, and not only when its time is over."""
    backend = seam.supports(SupportsDelete)
    queue = await seam.queue()
    waits, comes_later = await seam.subscribe(queue), await seam.subscribe(queue)
    waiting = asyncio.create_task(waits.receive(1, 600.0))
    await seam.advance(0.01)
    await backend.delete(queue)
    with pytest.raises(Exception, match=queue) as caught:
        await seam.provider.finish(waiting, 1.0)
    assert seam.backend.classify(caught.value) is ErrorKind.NOT_FOUND
    with pytest.raises(Exception, match=queue):
        await seam.receive(comes_later)
    await waits.close()


async def test_a_queue_declared_anew_is_empty(seam: Seam) -> None:
    """G1: nothing of the old one shows through, no message, no lease, no remembered id."""
    backend = seam.supports(SupportsDelete)
    queue = await seam.queue()
    await seam.put(queue, "a", "b")
    old = await seam.subscribe(queue)
    (held,) = await seam.receive(old, 1)
    await backend.delete(queue)
    await seam.backend.declare([QueueSpec(name=queue)])
    await seam.put(queue, "a")
    assert await seam.settle(old, Ack(held.receipt), Release(held.receipt)) == [STALE, STALE]
    assert await seam.contents(queue) == Counter("a")


@pytest.mark.parametrize("where", ["", ".again"])
async def test_a_queue_that_holds_messages_is_not_deleted_if_empty_was_asked(seam: Seam, where: str) -> None:
    """G2: leased ones and those in the quarantine count."""
    backend = seam.supports(SupportsDelete)
    queue = await seam.queue()
    await seam.put(f"{queue}{where}", "a")
    consumer = await seam.subscribe(f"{queue}{where}")
    (held,) = await seam.receive(consumer)
    assert await backend.delete(queue, if_empty=True) is False
    await seam.ack(consumer, [held])
    await consumer.close()
    assert await backend.delete(queue, if_empty=True, if_unused=True) is True


async def test_a_queue_that_is_consumed_is_not_deleted_if_unused_was_asked(seam: Seam) -> None:
    """G2: a consumer that waits counts as much as one that works."""
    backend = seam.supports(SupportsDelete)
    queue = await seam.queue()
    consumer = await seam.subscribe(queue)
    assert await backend.delete(queue, if_unused=True) is False
    await seam.put(queue, "a")
    assert seam.ids(await seam.drain(consumer)) == ["a"], "a refused delete should have changed nothing"
    await consumer.close()
    assert await backend.delete(queue, if_unused=True) is True
