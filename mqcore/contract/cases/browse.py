"""Profile *browse*: counting and looking change nothing; taking, purging and deleting do what they say and no more."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.looks import leaves_marks, shows_delayed
from mqcore.errors import QueueNotFound
from mqcore.queue import Queue
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
    from collections.abc import Awaitable

    from mqcore.contract.kit import Kit
    from mqcore.spi import Delivery, Entry, QueueCounts

_COUNT, _BROWSE, _TAKE = "SupportsCount.count", "SupportsBrowse.browse", "SupportsTake.take"
_PURGE, _DELETE = "SupportsPurge.purge", "SupportsDelete.delete"
_LOOKS, _TAKES = (Capability.BROWSE,), (SupportsBrowse, SupportsTake)


async def _counts(kit: Kit, *queues: str) -> list[QueueCounts]:
    return list(await kit.within(cast("SupportsCount", kit.backend).count(list(queues) or None)))


async def _browse(kit: Kit, queue: str, limit: int = 100, after: str | None = None) -> list[Entry]:
    return list(await kit.within(cast("SupportsBrowse", kit.backend).browse(queue, limit, after)))


async def _keys(kit: Kit, queue: str) -> dict[str, str]:
    """Return the keys of a queue's entries by message id, in their order."""
    return {entry.message.id: entry.key for entry in await _browse(kit, queue)}


async def _taken(kit: Kit, queue: str, keys: list[str], lease: float = 30.0) -> dict[str, Delivery]:
    got = await kit.within(cast("SupportsTake", kit.backend).take(queue, keys, lease))
    kit.same(len({it.message.id for it in got}), len(got), "each taken once", _TAKE)
    return {it.message.id: it for it in got}


async def _delete(kit: Kit, queue: str, **options: bool) -> bool:
    return await kit.within(cast("SupportsDelete", kit.backend).delete(queue, **options))


async def _answers(kit: Kit, queue: str, answer: str, why: str, **options: bool) -> None:
    """Fail unless delete answers `True` or `False`, as it should: `why`."""
    asked = ", ".join(f"{name}=True" for name in options)
    kit.true(
        str(await _delete(kit, queue, **options)) == answer,
        f"{answer} from delete({asked}): {why}",
        look=_DELETE,
    )


async def _not_found(kit: Kit, work: Awaitable[object], look: str) -> None:
    """Fail unless the work raises what the driver classifies as NOT_FOUND."""
    error = await kit.raises(Exception, work, "an exception of the kind NOT_FOUND", look)
    kit.kind(error, ErrorKind.NOT_FOUND)


@case("G11", ids="D10", protocols=(SupportsCount,))
async def counts_tell_ready_leased_and_delayed_apart(kit: Kit) -> None:
    """Exactly, on a queue at rest, and with the name of its dead-letter queue."""
    queue, later = await kit.queue(), int(kit.capabilities.has(Capability.DELAY))
    await kit.put(queue, *"abcde")
    await kit.put(queue, *["later"] * later, delay=500.0)
    consumer = await kit.subscribe(queue, prefetch=2)
    held = await kit.take(consumer, 2)
    (counts,) = await _counts(kit, queue)
    kit.same(
        (counts.name, counts.role, counts.dead_letter),
        (queue, "work", f"{queue}.dlq"),
        "what it is",
        _COUNT,
    )
    kit.same(
        (counts.ready, counts.leased, counts.delayed),
        (3, 2, later),
        "ready, leased, delayed",
        _COUNT,
    )
    await kit.ack(consumer, held)
    await kit.within(consumer.close())
    await kit.advance(kit.harness.silence)
    (counts,) = await _counts(kit, queue)
    kit.same((counts.ready, counts.leased, counts.delayed), (3, 0, later), "after the acks", _COUNT)


@case("G16", protocols=(SupportsCount,))
async def counts_tell_what_a_queue_was_declared_with(kit: Kit) -> None:
    """To another instance, too; or `spec` is None: who adopts a queue holds its options against it (`declare=False`)."""
    has = kit.capabilities.has
    modes = str(kit.limit(Capability.MAX_LENGTH, "modes") or "reject,dead_letter").split(",")
    settings: dict[str, Any] = {"ttl": 500.0} if has(Capability.EXPIRY) else {}
    settings |= {"max_length": 7, "overflow": modes[-1]} if has(Capability.MAX_LENGTH) else {}
    queue, letters = kit.name(), f"{kit.name()}.letters"
    specs = [
        QueueSpec(name=queue, dead_letter=letters, **settings),
        QueueSpec(name=f"{queue}.again", role="quarantine", dead_letter=letters),
        QueueSpec(name=letters, role="dead_letter", retention=9000.0),
    ]
    await kit.within(kit.backend.declare(specs))
    other = cast("SupportsCount", await kit.open())
    for counts, spec in zip(
        await kit.within(other.count([queue, letters])), (specs[0], specs[2]), strict=True
    ):
        kit.true(counts.spec in (None, spec), f"{spec}, or None", counts.spec, _COUNT)
    await _delete(kit, letters)


@case("G16", protocols=(SupportsCount,))
async def the_totals_only_grow(kit: Kit) -> None:
    """Where a broker counts what was published and settled, two looks give a rate; where not, both are None."""
    queue, seen = await kit.queue(), list[Any]()
    for number in range(3):
        await kit.put(queue, f"{number}")
        await kit.contents(queue)
        (counts,) = await _counts(kit, queue)
        seen.append((counts.published, counts.settled))
    kit.true(
        seen in ([(1, 1), (2, 2), (3, 3)], [(None, None)] * 3),
        "(1, 1), (2, 2), (3, 3) or None",
        seen,
        _COUNT,
    )


@case("G4", protocols=(SupportsCount,))
async def a_quarantine_counts_in_its_queue_and_is_not_listed(kit: Kit) -> None:
    """`.again` is part of the queue; a listing shows work and dead-letter queues only."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b", "c")
    await kit.put(f"{queue}.again", "d", "e")
    await kit.take(await kit.subscribe(f"{queue}.again", prefetch=1), 1)
    (counts,) = await _counts(kit, queue)
    kit.same((counts.ready, counts.leased), (4, 1), "ready and leased with the quarantine", _COUNT)
    names = {counts.name for counts in await _counts(kit)}
    listed = (queue in names, f"{queue}.dlq" in names, f"{queue}.again" in names)
    kit.same(listed, (True, True, False), "queue, dead-letter queue and quarantine listed", _COUNT)


@case("G1", protocols=(SupportsCount,))
async def a_missing_queue_is_left_out_of_the_counts(kit: Kit) -> None:
    """Counting declares nothing and raises nothing; a Broker that is asked for it by name says `QueueNotFound`."""
    queue, nowhere = await kit.queue(), kit.name()
    kit.same(
        [it.name for it in await _counts(kit, nowhere, queue)],
        [queue],
        "the one that is there",
        _COUNT,
    )
    (outcome,) = await kit.publish(Outgoing(nowhere, kit.message()))
    kit.true(isinstance(outcome, Failed), "still missing", outcome, _COUNT)
    await kit.raises(
        QueueNotFound, (await kit.broker()).counts(nowhere), "QueueNotFound", "Broker.counts"
    )


@case("G11", needs=(*_LOOKS, Capability.PRIORITY, Capability.DELAY), protocols=(SupportsBrowse,))
async def browsing_shows_the_order_of_delivery(kit: Kit) -> None:
    """Highest priority first, first in first out; then the delayed, the next to fall due first, with the time they have left."""
    queue = await kit.queue()
    await kit.put(queue, "late", delay=90.0, priority=10)
    await kit.put(queue, "soon", delay=30.0)
    await kit.put(queue, "low", priority=0)
    await kit.put(queue, "a", "b")
    await kit.put(queue, "high", priority=10)
    entries = await _browse(kit, queue)
    wanted = [
        ("high", "ready"),
        ("a", "ready"),
        ("b", "ready"),
        ("low", "ready"),
        ("soon", "delayed"),
        ("late", "delayed"),
    ][: None if shows_delayed(kit) else 4]
    kit.same(
        [(it.message.id, it.state) for it in entries], wanted, "the order of delivery", _BROWSE
    )
    error = max(
        abs(it.due_in - due)
        for it, due in zip(entries, [0, 0, 0, 0, 30.0, 90.0][: len(wanted)], strict=True)
    )
    kit.true(error < 1.0, "due_in 0, and about 30 and 90 s", [it.due_in for it in entries], _BROWSE)
    kit.same(entries[1].message.body, b"a", "the whole message", _BROWSE)
    got = kit.ids(await kit.take(await kit.subscribe(queue), 4))
    kit.same(got, ["high", "a", "b", "low"], "delivered as it was shown", _BROWSE)


@case("G11", ids="X08", needs=_LOOKS, protocols=(SupportsBrowse,))
async def browsing_changes_nothing(kit: Kit) -> None:
    """Neither order, nor counts, nor leases, nor marks: who receives afterwards sees first deliveries."""
    queue = await kit.queue()
    await kit.put(queue, *"abcd")
    consumer = await kit.subscribe(queue, prefetch=1)
    (held,) = await kit.take(consumer, 1)
    for _ in range(3):
        shown = [it.message.id for it in await _browse(kit, queue) if it.state != "leased"]
        kit.same(shown, ["b", "c", "d"], "what is ready, each time", _BROWSE)
    if isinstance(kit.backend, SupportsCount):
        (counts,) = await _counts(kit, queue)
        kit.same((counts.ready, counts.leased), (3, 1), "ready and leased", _BROWSE)
    kit.same(
        await kit.settle(consumer, Ack(held.receipt)), [DONE], "the lease of who holds one", _BROWSE
    )
    got = await kit.take(await kit.subscribe(queue), 2) + await kit.take(consumer, 1)
    marked = leaves_marks(kit)
    marks = sorted(
        (it.message.id, it.redelivered and not marked, 0 if marked else it.takeovers, it.attempt)
        for it in got
    )
    kit.same(marks, [(name, False, 0, 1) for name in "bcd"], "first deliveries", _BROWSE)


@case("G11", ids="X08", needs=_LOOKS, protocols=(SupportsBrowse,))
async def peeking_at_a_queue_and_its_dead_letters_changes_nothing(kit: Kit) -> None:
    """`Broker.peek` and `dead_letters().list()` show the same again and again, and the messages are still there."""
    broker, queue = await kit.broker(), Queue(kit.name())
    in_place = kit.limit(Capability.ORDER, "release_in_place")
    published = [b"a", b"b", b"c", b"d"] if in_place else [b"a", b"b"]
    for body in published:
        await kit.within(broker.publish(queue, body))
    async with broker.consume(queue, prefetch=1) as deliveries:
        for _ in range(2):
            await kit.within((await kit.within(anext(deliveries))).reject("no"))
    for body in (
        (b"c", b"d") if not in_place else ()
    ):  # else the consumer would give one back, behind the other
        await kit.within(broker.publish(queue, body))
    await kit.advance(kit.harness.silence)
    letters = broker.dead_letters(queue)
    for _ in range(3):
        shown = [it.message.body for it in await kit.within(broker.peek(queue))]
        listed = [it.body for it in await kit.within(letters.list())]
        kit.same((shown, listed), ([b"c", b"d"], [b"a", b"b"]), "ready and dead, in order", _BROWSE)
    left = [(await kit.contents(name)).total() for name in (queue.name, f"{queue.name}.dlq")]
    kit.same(left, [2, 2], "both still there", _BROWSE)


@case(
    "G11",
    ids="C91",
    needs=(*_LOOKS, Capability.DELAY),
    protocols=(SupportsBrowse,),
    each={"1": 1, "3": 3, "8": 8},
)
async def pages_join_to_the_whole(kit: Kit, size: int) -> None:
    """Each entry once, whatever the size of a page; an entry that has gone meanwhile breaks no page."""
    queue = await kit.queue()
    await kit.put(queue, *(f"{number}" for number in range(6)))
    later = ["d1", "d2"] * shows_delayed(kit)
    await kit.put(queue, *later, delay=50.0)
    whole = list(await _keys(kit, queue))
    kit.same(sorted(whole), ["0", "1", "2", "3", "4", "5", *later], "all of them", _BROWSE)
    paged: list[str] = []
    after = None
    while page := await _browse(kit, queue, size, after):
        kit.true(
            len(page) <= size and len(paged) <= len(whole),
            f"pages of at most {size}, and an end",
            paged,
            _BROWSE,
        )
        paged += [entry.message.id for entry in page]
        after = page[-1].key
    kit.same(paged, whole, "the pages joined", _BROWSE)
    page = await _browse(kit, queue, 2)
    consumer = await kit.subscribe(queue, prefetch=2)
    await kit.ack(consumer, await kit.take(consumer, 2))
    await kit.within(consumer.close())
    rest = [it.message.id for it in await _browse(kit, queue, 100, page[-1].key)]
    rest = (
        rest if kit.limit(Capability.ORDER, "release_in_place") else sorted(rest)
    )  # a driver may have fetched some
    kit.same(rest, whole[2:], "what comes after a page whose entries have gone", _BROWSE)


@case("G11", ids="X03", needs=_LOOKS, protocols=_TAKES)
async def taking_leases_the_chosen_and_leaves_the_rest(kit: Kit) -> None:
    """One or some of many, ready or delayed, as first deliveries; settled through any consumer of the queue."""
    queue, later = await kit.queue(), ["later"] * shows_delayed(kit)
    await kit.put(queue, *"abcde")
    await kit.put(queue, *later, delay=500.0)
    keys = await _keys(kit, queue)
    taken = await _taken(kit, queue, [keys[name] for name in ["d", "b", *later]])
    kit.same(sorted(taken), ["b", "d", *later], "the chosen", _TAKE)
    kit.true(
        leaves_marks(kit) or not any(it.redelivered for it in taken.values()),
        "no marks",
        look=_TAKE,
    )
    consumer = await kit.subscribe(queue)
    kit.same(kit.ids(await kit.take(consumer, 3)), ["a", "c", "e"], "the rest", _TAKE)
    kit.same(kit.ids(await kit.drain(consumer)), [], "and no more", _TAKE)
    acks = [Ack(taken[name].receipt) for name in ["d", *later]]
    settled = await kit.settle(consumer, kit.successor(taken["b"], f"{queue}.dlq"), *acks)
    kit.same(settled, [DONE] * len(taken), "settled like any claim", _TAKE)
    kit.same(await kit.contents(f"{queue}.dlq"), Counter("b"), "the moved one", _TAKE)


@case("G9", "G11", needs=(*_LOOKS, Capability.DELAY), protocols=_TAKES)
async def what_was_taken_can_be_given_back(kit: Kit) -> None:
    """A ready one to the ready, to its old place where ORDER says so; a delayed one to the rest of its delay."""
    queue, began = await kit.queue(), kit.now
    await kit.put(queue, *"abc")
    await kit.put(queue, "later", delay=1.5)
    keys = await _keys(kit, queue)
    taken = await _taken(kit, queue, list(keys.values())[1:], 60.0)
    consumer = await kit.subscribe(queue, prefetch=3)
    await kit.settle(consumer, *[Release(it.receipt) for it in reversed(taken.values())])
    got = await kit.take(consumer, 3)
    kit.same(sorted(kit.ids(got)), ["a", "b", "c"], "the delayed one is not due yet", _TAKE)
    if kit.limit(Capability.ORDER, "release_in_place"):
        kit.same(kit.ids(got), ["a", "b", "c"], "the old places", "ORDER: release_in_place")
    await kit.ack(consumer, got)
    kit.same(kit.ids(await kit.take(consumer, 1)), ["later"], "the delayed one in the end", _TAKE)
    kit.true(
        kit.now - began >= 1.5 - 0.005,
        "not before its delay is over",
        f"after {kit.now - began:.3f} s",
        _TAKE,
    )


@case("G11", ids="X03", needs=_LOOKS, protocols=_TAKES)
async def what_is_gone_or_held_is_not_taken(kit: Kit) -> None:
    """A redrive beside another and beside consumers gets what is free; nothing is handed out twice."""
    queue = await kit.queue()
    await kit.put(queue, *"abcd")
    keys = list((await _keys(kit, queue)).values())
    consumer = await kit.subscribe(queue, prefetch=2)
    a, _b = await kit.take(consumer, 2)
    await kit.ack(consumer, [a])
    free = await _taken(kit, queue, [*keys, keys[2]])
    kit.true(set(free) <= {"c", "d"}, "neither the acked nor the held one", sorted(free), _TAKE)
    kit.same(sorted(await _taken(kit, queue, keys)), [], "nothing twice", _TAKE)
    kit.same(sorted({*free, *kit.ids(await kit.drain(consumer))}), ["c", "d"], "none lost", _TAKE)


@case("G5", "G11", needs=(*_LOOKS, Capability.LEASE), protocols=_TAKES)
async def the_lease_of_what_was_taken_ends(kit: Kit) -> None:
    """A redrive that dies gives back what it took, and settles nothing any more."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    taken = await _taken(kit, queue, list((await _keys(kit, queue)).values()), 1.0)
    await kit.advance(1.0)
    consumer = await kit.subscribe(queue)
    kit.same(kit.ids(await kit.take(consumer, 1)), ["a"], "back in the queue", _TAKE)
    kit.same(
        await kit.settle(consumer, Ack(taken["a"].receipt)),
        [STALE],
        "the old receipt",
        "Subscription.settle",
    )


@case("G11", ids="X05", protocols=(SupportsPurge,))
async def a_purge_empties_the_queue_and_its_quarantine(kit: Kit) -> None:
    """Ready and delayed go and are counted; what is leased stays with its owner, and the dead letters stay."""
    queue, delays = await kit.queue(), shows_delayed(kit)
    purge = cast("SupportsPurge", kit.backend).purge
    await kit.put(queue, "held")
    consumer = await kit.subscribe(queue, prefetch=1)
    (held,) = await kit.take(consumer, 1)
    await kit.put(queue, *"abc")
    await kit.put(queue, *["later"] * delays, delay=0.8)
    await kit.put(f"{queue}.again", "suspect")
    await kit.put(f"{queue}.dlq", "dead")
    kit.same(await kit.within(purge(queue)), 4 + delays, "how many went", _PURGE)
    await kit.advance(1.0)
    kit.same(
        await kit.settle(consumer, Ack(held.receipt)),
        [DONE],
        "the held one still its owner's",
        _PURGE,
    )
    kit.same(
        kit.ids(await kit.drain(consumer)),
        [],
        "nothing comes, not even when it would fall due",
        _PURGE,
    )
    kit.same(await kit.contents(f"{queue}.again"), Counter(), "nothing in the quarantine", _PURGE)
    kit.same(await kit.contents(f"{queue}.dlq"), Counter(["dead"]), "the dead letters stay", _PURGE)
    kit.same(await kit.within(purge(queue)), 0, "nothing is left to purge", _PURGE)


@case("G11", "G2", ids="X05", protocols=(SupportsPurge,))
async def a_purged_queue_goes_on(kit: Kit) -> None:
    """What is published after the purge arrives, in order."""
    queue = await kit.queue()
    await kit.put(queue, *"abc")
    await kit.within(cast("SupportsPurge", kit.backend).purge(queue))
    await kit.put(queue, *"def")
    kit.same(
        kit.ids(await kit.take(await kit.subscribe(queue), 3)),
        ["d", "e", "f"],
        "the new ones",
        _PURGE,
    )


@case("G1", ids="C12", protocols=(SupportsDelete,))
async def a_deleted_queue_is_gone(kit: Kit) -> None:
    """With its quarantine: a publish fails NOT_FOUND, late settlements are stale, a second delete raises; dead letters stay."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    await kit.put(f"{queue}.dlq", "dead")
    consumer = await kit.subscribe(queue, prefetch=1)
    (held,) = await kit.take(consumer, 1)
    await _answers(kit, queue, "True", "the queue goes")
    for name in (queue, f"{queue}.again"):
        (outcome,) = await kit.publish(Outgoing(name, kit.message()))
        missing = isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND
        kit.true(missing, f"NOT_FOUND for {name}", outcome, _DELETE)
    kit.same(
        await kit.settle(consumer, Ack(held.receipt)),
        [STALE],
        "a late settlement",
        "Subscription.settle",
    )
    kit.same(
        await kit.contents(f"{queue}.dlq"), Counter(["dead"]), "the dead letters stay", _DELETE
    )
    await _not_found(kit, cast("SupportsDelete", kit.backend).delete(queue), _DELETE)
    await _not_found(kit, kit.backend.subscribe(queue, prefetch=1, lease=30.0), "Backend.subscribe")


@case("G14", ids="C06", protocols=(SupportsDelete,))
async def the_consumers_of_a_deleted_queue_learn_it(kit: Kit) -> None:
    """`receive` raises NOT_FOUND, at once for one that waits, and for one that asks later."""
    queue = await kit.queue()
    waits, comes_later = await kit.subscribe(queue), await kit.subscribe(queue)
    waiting = await kit.start(waits.receive(1, 600.0))
    await _delete(kit, queue)
    await _not_found(kit, waiting, "Subscription.receive: while it waits")
    await _not_found(kit, comes_later.receive(1, 0.5), "Subscription.receive")


@case("G1", "G14", protocols=(SupportsDelete,))
async def who_only_publishes_goes_on_after_another_has_deleted_the_queue(kit: Kit) -> None:
    """What an instance knows of a queue may be out of date: declared again it is there again, however often it was deleted."""
    broker, queue = await kit.broker(), Queue(kit.name())
    other, look = await kit.open(), "Backend.declare: of what this instance has declared before"
    for turn in range(3):
        await kit.within(broker.publish(queue, b"before"))
        await kit.within(cast("SupportsDelete", other).delete(queue.name))
        endings = await kit.within(broker.publish_many(queue, [b"a", b"b"]))
        came = [type(ending).__name__ for ending in endings]
        kit.same(
            came,
            ["Receipt", "Receipt"],
            f"turn {turn}: both stored in the queue that was declared again",
            look,
        )
        kit.same(sum((await kit.contents(queue.name)).values()), 2, "both messages", look)


@case("G1", protocols=(SupportsDelete,))
async def a_queue_declared_anew_is_empty(kit: Kit) -> None:
    """Nothing of the old one shows through: no message, no lease, no remembered id."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    old = await kit.subscribe(queue, prefetch=1)
    (held,) = await kit.take(old, 1)
    await _delete(kit, queue)
    await kit.within(kit.backend.declare([QueueSpec(name=queue)]))
    await kit.put(queue, "a")
    settled = await kit.settle(old, Ack(held.receipt), Release(held.receipt))
    kit.same(settled, [STALE, STALE], "receipts of the old queue", "Subscription.settle")
    kit.same(await kit.contents(queue), Counter("a"), "only the new message", _DELETE)


@case("G2", protocols=(SupportsDelete,), each={"queue": "", "quarantine": ".again"})
async def a_queue_that_holds_messages_is_not_deleted_if_empty_was_asked(
    kit: Kit, where: str
) -> None:
    """Leased ones and those in the quarantine count."""
    queue = await kit.queue()
    await kit.put(f"{queue}{where}", "a")
    consumer = await kit.subscribe(f"{queue}{where}")
    held = await kit.take(consumer, 1)
    await _answers(kit, queue, "False", f"{queue}{where} holds a message", if_empty=True)
    await kit.ack(consumer, held)
    await kit.within(consumer.close())
    await _answers(
        kit, queue, "True", "it is empty and has no consumer", if_empty=True, if_unused=True
    )


@case("G2", protocols=(SupportsDelete,))
async def a_queue_that_is_consumed_is_not_deleted_if_unused_was_asked(kit: Kit) -> None:
    """A consumer that waits counts as much as one that works; a refused delete has changed nothing."""
    queue = await kit.queue()
    consumer = await kit.subscribe(queue)
    await _answers(kit, queue, "False", "it has a consumer", if_unused=True)
    await kit.put(queue, "a")
    got = await kit.take(consumer, 1)
    kit.same(kit.ids(got), ["a"], "still consumed", _DELETE)
    await kit.ack(consumer, got)
    await kit.within(consumer.close())
    await _answers(kit, queue, "True", "its consumer was closed", if_unused=True)


@case("G1", "G11", ids="C05")
async def a_look_at_a_missing_queue_says_that_it_is_missing(kit: Kit) -> None:
    """Browse, take, purge and delete raise NOT_FOUND, and make no queue."""
    nowhere, backend = kit.name(), kit.backend
    if isinstance(backend, SupportsBrowse):
        await _not_found(kit, backend.browse(nowhere, 10), _BROWSE)
    if isinstance(backend, SupportsTake):
        await _not_found(kit, backend.take(nowhere, ["key"], 30.0), _TAKE)
    if isinstance(backend, SupportsPurge):
        await _not_found(kit, backend.purge(nowhere), _PURGE)
    if isinstance(backend, SupportsDelete):
        await _not_found(kit, backend.delete(nowhere), _DELETE)
    (outcome,) = await kit.publish(Outgoing(nowhere, kit.message()))
    kit.true(isinstance(outcome, Failed), "still missing", outcome, "Backend.publish")
