"""Profile *bounds*: `max_length` bounds what is published and ready, and nothing else."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from mqcore.spi import DONE, STORED, Capability, ErrorKind, Failed, Outgoing, QueueSpec, Reason, Release

if TYPE_CHECKING:
    from tests.seam.conftest import Seam


@pytest.fixture(autouse=True)
def _needs(seam: Seam) -> None:
    seam.needs(Capability.MAX_LENGTH)


def needs_mode(seam: Seam, mode: str) -> None:
    """Skip where MAX_LENGTH does not state this mode."""
    if mode not in str(seam.limit(Capability.MAX_LENGTH, "modes")).split(","):
        pytest.skip(f"declares no overflow={mode!r}")


async def test_a_full_queue_refuses_what_is_published(seam: Seam) -> None:
    """G12: FULL, for the item that found it full and for no other; the text names the queue."""
    needs_mode(seam, "reject")
    queue = await seam.queue(max_length=3)
    outcomes = await seam.publish(*[Outgoing(queue, seam.message(name)) for name in "abcde"])
    assert [type(it) for it in outcomes] == [type(STORED)] * 3 + [Failed] * 2
    for refused in outcomes[3:]:
        assert isinstance(refused, Failed)
        assert refused.kind is ErrorKind.FULL, f"a full queue should answer FULL, not {refused.kind}"
        assert queue in refused.text
    assert await seam.contents(queue) == Counter("abc")


async def test_only_ready_messages_count(seam: Seam) -> None:
    """G12: what is leased or delayed leaves room; what comes back may exceed the bound and then closes it."""
    needs_mode(seam, "reject")
    seam.needs(Capability.DELAY)
    queue = await seam.queue(max_length=2)
    await seam.put(queue, "delayed", delay=500.0)
    await seam.put(queue, "a", "b")
    consumer = await seam.subscribe(queue)
    held = await seam.receive(consumer)
    await seam.put(queue, "c", "d")
    assert await seam.settle(consumer, *[Release(it.receipt) for it in held]) == [DONE, DONE]
    (refused,) = await seam.publish(Outgoing(queue, seam.message("e")))
    assert isinstance(refused, Failed)
    assert sorted(seam.ids(await seam.drain(consumer))) == ["a", "b", "c", "d"], "nothing that was stored may be lost"


@pytest.mark.parametrize("overflow", ["reject", "dead_letter"])
async def test_a_move_is_never_refused(seam: Seam, overflow: str) -> None:
    """G12: retries, redrives and dead letters exceed the bound, and push nobody out."""
    needs_mode(seam, overflow)
    source, full = await seam.queue(), await seam.queue(max_length=1, overflow=overflow)
    await seam.put(full, "old")
    await seam.put(source, "a", "b")
    consumer = await seam.subscribe(source)
    moves = [seam.successor(it, full) for it in await seam.drain(consumer)]
    assert await seam.settle(consumer, *moves) == [DONE, DONE]
    assert await seam.publish(Outgoing(full, seam.message("c", hop=1))) == [STORED], "a successor that core publishes"
    assert await seam.contents(full) == Counter(["old", "a", "b", "c"])
    assert not await seam.contents(f"{full}.dlq")


async def test_what_falls_due_is_never_refused(seam: Seam) -> None:
    """G7, G12: a full destination holds up no delay and loses none."""
    needs_mode(seam, "reject")
    seam.needs(Capability.DELAY)
    queue = await seam.queue(max_length=1)
    await seam.put(queue, "x", "y", delay=1.0)
    await seam.put(queue, "a")
    await seam.advance(1.5)
    assert await seam.contents(queue) == Counter(["a", "x", "y"])


async def test_an_overflow_dead_letters_the_oldest_of_the_lowest_priority(seam: Seam) -> None:
    """G12: the publish succeeds, the oldest of the lowest goes; that may be the new one itself."""
    needs_mode(seam, "dead_letter")
    queue = await seam.queue(max_length=3, overflow="dead_letter")
    for name, priority in [("low-1", 1), ("high-1", 9), ("low-2", 1), ("high-2", 9), ("high-3", 9), ("lowest", 0)]:
        await seam.put(queue, name, priority=priority)
    assert seam.ids(await seam.drain(await seam.subscribe(queue))) == ["high-1", "high-2", "high-3"]
    letters = await seam.drain(await seam.subscribe(f"{queue}.dlq"))
    assert Counter(seam.ids(letters)) == Counter(["low-1", "low-2", "lowest"])


async def test_an_overflow_leaves_a_record(seam: Seam) -> None:
    """G11, G12: reason `overflow`, the queue, no attempt started, body and headers as they were, and no expiry."""
    needs_mode(seam, "dead_letter")
    queue = await seam.queue(max_length=1, overflow="dead_letter", ttl=500.0)
    await seam.publish(Outgoing(queue, seam.message("a", body=b"\x00body", headers={"h": "v"}, priority=3)))
    await seam.put(queue, "b")
    (letter,) = await seam.drain(await seam.subscribe(f"{queue}.dlq"))
    message, death = letter.message, letter.message.death
    assert death is not None, "a dead letter without a record"
    assert (death.reason, death.queue, death.attempts) == (Reason.OVERFLOW, queue, 0)
    assert death.last_at == pytest.approx(seam.provider.clock.now(), abs=60)
    assert (message.id, message.body, dict(message.headers), message.priority) == ("a", b"\x00body", {"h": "v"}, 3)
    assert (message.attempt, message.hop, message.expires_at, letter.expires_in) == (1, 1, None, None)


async def test_an_overflow_without_a_dead_letter_queue_drops(seam: Seam) -> None:
    """G2, G12: in a queue that has none, the oldest is dropped (and counted)."""
    needs_mode(seam, "dead_letter")
    queue = await seam.queue(max_length=2, overflow="dead_letter", dead_letter=False)
    await seam.put(queue, *"abcd")
    assert await seam.contents(queue) == Counter("cd")


async def test_an_overflow_is_not_stopped_by_the_bound_of_the_dead_letter_queue(seam: Seam) -> None:
    """G12: dead letters are never refused."""
    needs_mode(seam, "dead_letter")
    dlq = await seam.queue(max_length=1, dead_letter=False)
    await seam.backend.declare([QueueSpec(name=f"{dlq}.x", max_length=1, overflow="dead_letter", dead_letter=dlq)])
    await seam.put(f"{dlq}.x", *"abcde")
    assert await seam.contents(dlq) == Counter("abcd")
