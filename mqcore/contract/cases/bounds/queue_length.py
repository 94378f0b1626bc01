"""Bounded queues: what a full queue refuses, drops or dead-letters."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.kit import NotShown
from mqcore.errors import QueueFull
from mqcore.publishing.options import Receipt
from mqcore.queue import Queue
from mqcore.spi import (
    DONE,
    Capability,
    ErrorKind,
    Failed,
    Level,
    Outgoing,
    QueueSpec,
    Reason,
    Release,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.spi import Outcome


_NEEDS = (Capability.MAX_LENGTH,)


_FULL = "Backend.publish: QueueSpec.max_length"


_OVERFLOW = "Backend.publish: overflow='dead_letter'"


_NEARLY = 20
"""An approximate bound must refuse a message within this number of publishes."""


def _mode(kit: Kit, mode: str) -> None:
    """Raise NotShown where MAX_LENGTH does not state this mode."""
    if mode not in str(kit.limit(Capability.MAX_LENGTH, "modes") or "reject,dead_letter").split(
        ","
    ):
        raise NotShown(f"MAX_LENGTH states no overflow={mode!r}")


def _full(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and outcome.kind is ErrorKind.FULL


async def _refused(kit: Kit, queue: str) -> list[str]:
    """Publish one message at a time until one is refused, and return the names stored before it."""
    nearly = kit.capabilities[Capability.MAX_LENGTH].level is Level.APPROXIMATE
    stored: list[str] = []
    for number in range(_NEARLY if nearly else 1):
        (outcome,) = await kit.publish(Outgoing(queue, kit.message(f"more-{number}")))
        if isinstance(outcome, Failed):
            kit.true(
                _full(outcome) and queue in outcome.text,
                "FULL, and the queue's name in the text",
                outcome,
                _FULL,
            )
            return stored
        stored.append(f"more-{number}")

    kit.true(
        holds=False,
        expected="a full queue refuses",
        actual=f"{len(stored)} more were stored",
        look=_FULL,
    )

    return stored


@case("G12", "G1", needs=_NEEDS)
async def a_full_queue_refuses_what_is_published(kit: Kit) -> None:
    """A full queue answers `Failed(FULL)` and stores nothing.

    When messages have left it, it accepts new ones.
    """
    _mode(kit, "reject")
    queue = await kit.queue(max_length=3)
    await kit.put(queue, *"abc")
    stored = ["a", "b", "c", *await _refused(kit, queue)]
    kit.same(await kit.contents(queue), Counter(stored), "what was stored and no more", _FULL)

    await kit.put(queue, "again")
    kit.same(
        await kit.contents(queue),
        Counter(["again"]),
        "messages in the queue after it was emptied",
        _FULL,
    )


@case("G12", "G1", needs=_NEEDS)
async def the_bound_is_exact_inside_a_batch(kit: Kit) -> None:
    """Inside a batch exactly the messages that find the queue full are refused, in order."""
    _mode(kit, "reject")
    if kit.capabilities[Capability.MAX_LENGTH].level is Level.APPROXIMATE:
        raise NotShown("MAX_LENGTH is declared approximate")
    queue, other = await kit.queue(max_length=3), await kit.queue()
    batch = [Outgoing(queue, kit.message(name)) for name in "abcde"] + [
        Outgoing(other, kit.message("f"))
    ]
    outcomes = await kit.publish(*batch)
    kit.same(
        [_full(item) for item in outcomes],
        [False] * 3 + [True] * 2 + [False],
        "which items were refused with FULL",
        _FULL,
    )
    kit.same(await kit.contents(queue), Counter("abc"), "messages in the full queue", _FULL)
    kit.same(
        await kit.contents(other), Counter("f"), "messages in the other queue of the batch", _FULL
    )


@case("G12", needs=(*_NEEDS, Capability.DELAY))
async def only_ready_messages_count(kit: Kit) -> None:
    """Leased and delayed messages do not count for `max_length`, and a release is never refused.

    What comes back may exceed the bound; then the queue is full until it has drained. Nothing
    stored is lost.
    """
    _mode(kit, "reject")
    queue = await kit.queue(max_length=2)
    await kit.put(queue, "delayed", delay=500.0)
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue)
    held = await kit.take(consumer, 2)
    await kit.put(queue, "c", "d")
    released = await kit.settle(consumer, *[Release(delivery.receipt) for delivery in held])
    kit.same(released, [DONE, DONE], "a release is never refused", "Subscription.settle: Release")

    await kit.within(consumer.close())
    more = await _refused(kit, queue)
    kit.same(
        await kit.contents(queue),
        Counter(["a", "b", "c", "d", *more]),
        "messages in the queue",
        _FULL,
    )


@case("G12", "G3", needs=_NEEDS, each={"reject": "reject", "dead_letter": "dead_letter"})
async def a_move_is_never_refused(kit: Kit, overflow: str) -> None:
    """A Move to a full queue is stored and evicts nothing: a retry, a redrive, a dead letter."""
    _mode(kit, overflow)
    source, full = await kit.queue(), await kit.queue(max_length=1, overflow=overflow)
    await kit.put(full, "old")
    await kit.put(source, "a", "b")
    consumer = await kit.subscribe(source)
    moves = [kit.successor(item, full) for item in await kit.take(consumer, 2)]
    kit.same(
        await kit.settle(consumer, *moves), [DONE, DONE], "both moved", "Subscription.settle: Move"
    )
    kit.same(
        await kit.contents(full),
        Counter(["old", "a", "b"]),
        "messages in the full queue",
        "Subscription.settle: Move",
    )
    kit.same(
        await kit.contents(f"{full}.dlq"),
        Counter(),
        "messages in the dead-letter queue",
        "Subscription.settle: Move",
    )


@case("G12", "G7", needs=(*_NEEDS, Capability.DELAY))
async def what_falls_due_is_never_refused(kit: Kit) -> None:
    """A delayed message that falls due in a full queue is stored: it was confirmed."""
    _mode(kit, "reject")
    queue = await kit.queue(max_length=1)
    await kit.put(queue, "x", "y", delay=0.5)
    await kit.put(queue, "a")
    await kit.advance(0.5 + float(kit.limit(Capability.DELAY, "granularity") or 0.0))
    kit.same(
        await kit.contents(queue),
        Counter("axy"),
        "all messages",
        "delay: max_length bounds publishes only",
    )


@case("G12", "G8", needs=(*_NEEDS, Capability.PRIORITY))
async def an_overflow_dead_letters_the_oldest_of_the_lowest_priority(kit: Kit) -> None:
    """On overflow the publish succeeds, and the oldest of the lowest priority is dead-lettered.

    That may be the new message itself.
    """
    _mode(kit, "dead_letter")
    queue = await kit.queue(max_length=3, overflow="dead_letter")
    for name, priority in [
        ("low-1", 1),
        ("high-1", 9),
        ("low-2", 1),
        ("high-2", 9),
        ("high-3", 9),
        ("lowest", 0),
    ]:
        await kit.put(queue, name, priority=priority)

    kit.same(
        await kit.contents(queue),
        Counter(["high-1", "high-2", "high-3"]),
        "messages left in the queue",
        _OVERFLOW,
    )
    kit.same(
        await kit.contents(f"{queue}.dlq"),
        Counter(["low-1", "low-2", "lowest"]),
        "messages in the dead-letter queue",
        _OVERFLOW,
    )


@case("G12", "G11", ids="X01", needs=_NEEDS)
async def an_overflow_leaves_a_record(kit: Kit) -> None:
    """A message dead-lettered by overflow records reason `overflow`, its queue and 0 attempts.

    Body, headers and id are unchanged, and it has no expiry.
    """
    _mode(kit, "dead_letter")
    queue = await kit.queue(
        max_length=1,
        overflow="dead_letter",
        ttl=500.0 if kit.capabilities.has(Capability.EXPIRY) else None,
    )
    await kit.publish(Outgoing(queue, kit.message("a", body=b"\x00body", headers={"h": "v"})))
    await kit.put(queue, "b")
    (letter,) = await kit.take(await kit.subscribe(f"{queue}.dlq"), 1)
    message, death = letter.message, letter.message.death
    actual = death and (death.reason, death.queue, death.attempts)
    kit.same(actual, (Reason.OVERFLOW, queue, 0), "reason, queue, attempts", _OVERFLOW)

    kept = (
        message.id,
        message.body,
        dict(message.headers),
        message.attempt,
        message.expires_at,
        letter.expires_in,
    )
    kit.same(
        kept,
        ("a", b"\x00body", {"h": "v"}, 1, None, None),
        "the message as it was, without an expiry",
        _OVERFLOW,
    )


@case("G12", "G2", needs=_NEEDS)
async def an_overflow_without_a_dead_letter_queue_drops_the_oldest(kit: Kit) -> None:
    """On overflow a queue without a dead-letter queue drops its oldest message."""
    _mode(kit, "dead_letter")
    queue = await kit.queue(max_length=2, overflow="dead_letter", dead_letter=False)
    await kit.put(queue, *"abcd")
    kit.same(await kit.contents(queue), Counter("cd"), "messages left in the queue", _OVERFLOW)


@case("G12", "G11", needs=_NEEDS)
async def the_bound_of_a_dead_letter_queue_stops_no_dead_letter(kit: Kit) -> None:
    """An overflowed message goes to its dead-letter queue even when that queue is full."""
    _mode(kit, "dead_letter")
    dlq, name = await kit.queue(max_length=1, dead_letter=False), kit.name()
    spec = QueueSpec(name=name, max_length=1, overflow="dead_letter", dead_letter=dlq)
    await kit.within(kit.backend.declare([spec]))
    await kit.put(name, *"abcde")
    kit.same(
        await kit.contents(dlq), Counter("abcd"), "messages in the dead-letter queue", _OVERFLOW
    )


@case("G12", "G1", needs=_NEEDS)
async def a_publisher_is_told_that_the_queue_is_full(kit: Kit) -> None:
    """Publishing to a full queue raises `QueueFull` with the message's id.

    In a batch it is a value in the place of the receipt.
    """
    _mode(kit, "reject")
    broker, queue = await kit.broker(), Queue(kit.name(), max_length=2)
    endings = await kit.within(broker.publish_many(queue, [b"a", b"b"]))
    kit.same([type(ending) for ending in endings], [Receipt, Receipt], "both stored", _FULL)

    more = await _refused(kit, queue.name)
    error = cast(
        "QueueFull",
        await kit.raises(QueueFull, broker.publish(queue, b"c", id="mine"), "QueueFull", _FULL),
    )
    kit.same(error.id, "mine", "the message's id", "QueueFull.id")

    (ending,) = await kit.within(broker.publish_many(queue, [b"d"]))
    kit.same(type(ending), QueueFull, "QueueFull as a value", "Broker.publish_many")
    kit.same(
        (await kit.contents(queue.name)).total(),
        2 + len(more),
        "what was stored and no more",
        _FULL,
    )
