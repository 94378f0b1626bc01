"""Profile *move and dedup*: the successor first, one copy of each name, and never a loss for a duplicate."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    Ack,
    Capability,
    Death,
    ErrorKind,
    Failed,
    Message,
    Move,
    Outgoing,
    Reason,
    Release,
    Settlement,
    Stored,
    SupportsCount,
)

if TYPE_CHECKING:
    from tests.seam.conftest import Seam

DUPLICATE = Stored(duplicate=True)


# Move


async def test_a_move_stores_the_successor_and_lets_go_of_the_source(seam: Seam) -> None:
    """G3: to another queue, with everything that the successor says, and a place at the end."""
    source, target = await seam.queue(), await seam.queue()
    await seam.put(source, "a")
    await seam.put(target, "before")
    consumer = await seam.subscribe(source)
    (delivery,) = await seam.receive(consumer)
    move = seam.successor(delivery, target, attempt=2, failed_at=1_700_000_000.5)
    assert await seam.settle(consumer, move) == [DONE]
    got = await seam.drain(await seam.subscribe(target))
    assert seam.ids(got) == ["before", "a"]
    assert got[1].message == move.to.message
    assert (got[1].redelivered, got[1].doubtful) == (False, False), "a successor has never been handed out"
    assert not await seam.contents(source)


async def test_a_move_keeps_its_id_and_is_not_taken_for_a_duplicate(seam: Seam) -> None:
    """G1, G3: twenty retries of one id into its own queue, each inside the window of all before."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    consumer = await seam.subscribe(queue)
    for hop in range(20):
        (delivery,) = await seam.receive(consumer, within=1.0)
        assert (delivery.message.id, delivery.message.hop) == ("a", hop), f"the {hop}. Move lost its message"
        assert await seam.settle(consumer, seam.successor(delivery, queue, attempt=hop + 2)) == [DONE]
    assert await seam.contents(queue) == Counter("a")


async def test_a_failed_move_leaves_its_source_leased(seam: Seam) -> None:
    """G3, X06: a missing target is NOT_FOUND; the source is still ours, and can be settled otherwise."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    consumer, other = await seam.subscribe(queue), await seam.subscribe(queue)
    (delivery,) = await seam.receive(consumer)
    (failed,) = await seam.settle(consumer, seam.successor(delivery, "nowhere"))
    assert isinstance(failed, Failed)
    assert failed.kind is ErrorKind.NOT_FOUND
    assert await seam.receive(other) == [], "the source should still be leased"
    assert await seam.settle(consumer, seam.successor(delivery, f"{queue}.dlq")) == [DONE]
    assert await seam.contents(f"{queue}.dlq") == Counter("a")


async def test_a_stale_move_stores_nothing_where_moves_are_atomic(seam: Seam) -> None:
    """G3, G5: without ATOMIC_MOVE a successor may be left, as a counted duplicate."""
    seam.needs(Capability.ATOMIC_MOVE)
    queue = await seam.queue()
    await seam.put(queue, "a")
    consumer = await seam.subscribe(queue)
    (delivery,) = await seam.receive(consumer)
    move = seam.successor(delivery, f"{queue}.dlq")
    await seam.ack(consumer, [delivery])
    assert await seam.settle(consumer, move, seam.successor(replace(delivery, receipt=b"forged"), queue)) == [
        STALE,
        STALE,
    ]
    assert not await seam.contents(f"{queue}.dlq")
    assert not await seam.contents(queue)


async def test_a_move_that_is_repeated_stores_one_copy(seam: Seam) -> None:
    """G1, G3: after an unknown outcome core settles again."""
    seam.needs(Capability.DEDUP)
    queue = await seam.queue()
    await seam.put(queue, "a")
    consumer = await seam.subscribe(queue)
    (delivery,) = await seam.receive(consumer)
    move = seam.successor(delivery, f"{queue}.dlq")
    first, second = await seam.settle(consumer, move, move)
    assert (first, second) == (DONE, STALE)
    assert await seam.contents(f"{queue}.dlq") == Counter("a")


async def test_a_successor_stored_before_a_crash_is_stored_once(seam: Seam) -> None:
    """G1, G3: publish the successor, die before the ack, take over, move again: the same (id, hop), one copy."""
    seam.needs(Capability.DEDUP)
    queue = await seam.queue()
    await seam.put(queue, "a")
    consumer = await seam.subscribe(queue)
    (delivery,) = await seam.receive(consumer)
    move = seam.successor(delivery, f"{queue}.dlq")
    assert await seam.publish(move.to) == [STORED]
    assert await seam.settle(consumer, move) == [DONE]
    assert await seam.contents(f"{queue}.dlq") == Counter("a")
    assert not await seam.contents(queue)


async def test_a_dead_letter_carries_its_record(seam: Seam) -> None:
    """G11, X02: the original byte for byte, and the record beside it, whatever text is in it."""
    queue = await seam.queue()
    await seam.publish(Outgoing(queue, seam.message("a", body=b"\x00\xff", headers={"h": "Grüße"}, priority=9)))
    consumer = await seam.subscribe(queue)
    (delivery,) = await seam.receive(consumer)
    death = Death(
        reason=Reason.REJECTED,
        queue=queue,
        attempts=3,
        first_at=1_700_000_000.25,
        last_at=1_700_000_001.5,
        error_type="shop.Error",
        error="line one\nline two: Grüße 世界",
        traceback="Traceback …\n" * 300,
    )
    await seam.settle(consumer, seam.successor(delivery, f"{queue}.dlq", death=death, attempt=1))
    (letter,) = await seam.drain(await seam.subscribe(f"{queue}.dlq"))
    assert letter.message.death == death
    assert (letter.message.body, dict(letter.message.headers)) == (b"\x00\xff", {"h": "Grüße"})
    assert (letter.message.id, letter.message.priority, letter.message.hop) == ("a", 9, 1)


async def test_a_redrive_brings_a_dead_letter_back(seam: Seam) -> None:
    """G11, X03: a Move like any other, from the dead-letter queue to the origin; twice around is no duplicate."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    work, dead = await seam.subscribe(queue), await seam.subscribe(f"{queue}.dlq")
    for turn in range(3):
        (delivery,) = await seam.receive(work, within=1.0)
        assert delivery.message.redriven == turn
        assert await seam.settle(work, seam.successor(delivery, f"{queue}.dlq")) == [DONE]
        (letter,) = await seam.receive(dead, within=1.0)
        assert await seam.settle(dead, seam.successor(letter, queue, redriven=turn + 1, attempt=1)) == [DONE]
    await work.close()
    assert await seam.contents(queue) == Counter("a")


async def test_copies_of_one_routed_message_may_share_a_dead_letter_queue(seam: Seam) -> None:
    """G1, G11, G15: same id, same hop, but out of two queues: two dead letters, and two messages when both come back."""
    one, two = await seam.queue(), await seam.queue()
    shared, end = f"{one}.dlq", await seam.queue()
    message = seam.message("a")
    await seam.publish(Outgoing(one, message), Outgoing(two, message))
    for source in (one, two):
        consumer = await seam.subscribe(source)
        (delivery,) = await seam.drain(consumer)
        letter = delivery.message.moved(source)
        assert await seam.settle(consumer, Move(delivery.receipt, Outgoing(shared, letter))) == [DONE]
    consumer = await seam.subscribe(shared)
    letters = await seam.drain(consumer)
    assert seam.ids(letters) == ["a", "a"], "the second dead letter was taken for a copy of the first: lost"
    await seam.settle(consumer, *[Move(it.receipt, Outgoing(end, it.message.moved(shared))) for it in letters])
    assert await seam.contents(end) == Counter(["a", "a"])


async def test_moves_inside_a_batch_keep_their_order(seam: Seam) -> None:
    """G9: a batch of Moves is stored in its order."""
    queue = await seam.queue()
    names = [f"{n:02}" for n in range(20)]
    await seam.put(queue, *names)
    consumer = await seam.subscribe(queue)
    got = await seam.drain(consumer)
    await seam.settle(consumer, *[seam.successor(it, f"{queue}.dlq") for it in reversed(got)])
    assert seam.ids(await seam.drain(await seam.subscribe(f"{queue}.dlq"))) == names[::-1]


async def test_a_quarantined_message_is_released_by_a_move_without_a_doubt(seam: Seam) -> None:
    """G4: inside `<queue>.again` a Move to the same queue is an orderly release: fresh, at the end, not doubtful."""
    queue = await seam.queue()
    await seam.put(queue, "a", "b")
    consumer, again = await seam.subscribe(queue), await seam.subscribe(f"{queue}.again", prefetch=1)
    await seam.settle(consumer, *[seam.successor(it, f"{queue}.again") for it in await seam.drain(consumer)])
    (a,) = await seam.receive(again)
    await seam.settle(again, seam.successor(a, f"{queue}.again"))
    (b,) = await seam.receive(again, within=1.0)
    await seam.ack(again, [b])
    (a,) = await seam.receive(again, within=1.0)
    assert (b.message.id, a.message.id) == ("b", "a")
    assert (a.redelivered, a.doubtful) == (False, False)


# Dedup


async def test_a_message_published_twice_is_stored_once(seam: Seam) -> None:
    """G1, B03: the receipt says so; the first copy is the one that stays; in one batch and in the next."""
    seam.needs(Capability.DEDUP)
    queue = await seam.queue()
    first, second = seam.message("a", body=b"first"), seam.message("a", body=b"second")
    assert await seam.publish(Outgoing(queue, first), Outgoing(queue, second)) == [STORED, DUPLICATE]
    assert await seam.publish(Outgoing(queue, first)) == [DUPLICATE]
    got = await seam.drain(await seam.subscribe(queue))
    assert [it.message.body for it in got] == [b"first"]


@pytest.mark.parametrize("then", ["leased", "acked", "released", "moved", "delayed"])
async def test_a_message_is_a_duplicate_whatever_became_of_the_first(seam: Seam, then: str) -> None:
    """G1: also after the ack."""
    seam.needs(Capability.DEDUP)
    queue = await seam.queue()
    consumer = await seam.subscribe(queue)
    await seam.put(queue, "a", delay=50.0 if then == "delayed" else 0.0)
    if then != "delayed":
        (delivery,) = await seam.receive(consumer)
        steps: dict[str, Settlement] = {
            "acked": Ack(delivery.receipt),
            "released": Release(delivery.receipt),
            "moved": seam.successor(delivery, f"{queue}.dlq"),
        }
        if then in steps:
            assert await seam.settle(consumer, steps[then]) == [DONE]
    assert await seam.publish(Outgoing(queue, seam.message("a"))) == [DUPLICATE]
    assert len(await seam.drain(consumer)) == (then == "released")


async def test_dedup_is_for_each_queue(seam: Seam) -> None:
    """G1, G15: a fan-out stores the same id in every queue."""
    one, two = await seam.queue(), await seam.queue()
    message = seam.message("a")
    assert await seam.publish(Outgoing(one, message), Outgoing(two, message)) == [STORED, STORED]


async def test_the_hop_is_part_of_the_name(seam: Seam) -> None:
    """G1: what core publishes as a successor meets its own kind only."""
    seam.needs(Capability.DEDUP)
    queue = await seam.queue()
    batch = [Outgoing(queue, Message(id="a", body=b"", hop=hop)) for hop in (0, 1, 2, 1, 0, 12)]
    outcomes = [STORED, STORED, STORED, DUPLICATE, DUPLICATE, STORED]
    assert await seam.publish(*batch) == outcomes


async def test_ids_that_look_alike_are_not_the_same(seam: Seam) -> None:
    """G1: an id and a hop are never glued together so that two names become one."""
    queue = await seam.queue()
    names = [("a", 11), ("a1", 1), ("a-1", 0), ("a:1", 0), ("a", 1), ("A", 1), ("a:1:0", 0), ("a/1", 1)]
    batch = [Outgoing(queue, Message(id=name, body=b"", hop=hop)) for name, hop in names]
    assert await seam.publish(*batch) == [STORED] * len(names)


async def test_another_instance_sees_the_same_window(seam: Seam) -> None:
    """G1: after a reconnect publishing an unknown again stores one copy."""
    seam.needs(Capability.DEDUP)
    queue = await seam.queue()
    await seam.put(queue, "a")
    other = await seam.open()
    outcomes = await seam.provider.finish(other.publish([Outgoing(queue, seam.message("a"))], timeout=5.0), 5.0)
    assert outcomes == [DUPLICATE]


async def test_a_refused_message_is_not_remembered(seam: Seam) -> None:
    """G1, G12: what was certainly not stored may be published again."""
    seam.needs(Capability.DEDUP, Capability.MAX_LENGTH)
    queue = await seam.queue(max_length=1)
    await seam.put(queue, "a")
    (refused,) = await seam.publish(Outgoing(queue, seam.message("b")))
    assert isinstance(refused, Failed)
    assert await seam.contents(queue) == Counter("a")
    await seam.put(queue, "b")


async def test_a_duplicate_of_what_is_there_is_no_refusal(seam: Seam) -> None:
    """G1, G12: in a full queue, `duplicate` is still the true answer: it is stored."""
    seam.needs(Capability.DEDUP, Capability.MAX_LENGTH)
    queue = await seam.queue(max_length=1)
    await seam.put(queue, "a")
    assert await seam.publish(Outgoing(queue, seam.message("a"))) == [DUPLICATE]


async def test_a_duplicate_changes_no_count(seam: Seam) -> None:
    """G1: nothing was stored, so nothing is counted."""
    seam.needs(Capability.DEDUP)
    backend = seam.supports(SupportsCount)
    queue = await seam.queue()
    await seam.put(queue, "a")
    await seam.publish(Outgoing(queue, seam.message("a")))
    (counts,) = await backend.count([queue])
    assert (counts.ready, counts.published) in {(1, 1), (1, None)}
