"""Publishing."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.core.common import CLOSE, loop_turns
from mqcore.spi import (
    STORED,
    Capability,
    ErrorKind,
    Failed,
    Outgoing,
    Stored,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G1", "G2", ids="C20")
async def a_confirmed_message_is_there_to_be_received(kit: Kit) -> None:
    """`Stored` means that a consumer who comes later gets it, as a first delivery without marks."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    kit.same(
        (delivery.message.id, delivery.attempt),
        ("a", 1),
        "the message at its first attempt",
        "Backend.publish",
    )
    kit.same(
        (delivery.redelivered, delivery.takeovers), (False, 0), "no marks", "Subscription.receive"
    )


@case("G1", ids="C05 C30")
async def an_outcome_comes_for_each_item_in_its_order(kit: Kit) -> None:
    """A queue that is missing fails its own items, with NOT_FOUND and its name, and no others."""
    queue, missing = await kit.queue(), kit.name()
    batch = [
        Outgoing(to, kit.message(name)) for to, name in [(queue, "a"), (missing, "b"), (queue, "c")]
    ]
    outcomes = await kit.publish(*batch)
    kinds = [type(outcome) for outcome in outcomes]
    kit.same(kinds, [Stored, Failed, Stored], "an outcome each, in order", "Backend.publish")
    failed = outcomes[1]
    told = (
        isinstance(failed, Failed) and failed.kind is ErrorKind.NOT_FOUND and missing in failed.text
    )
    kit.true(
        told, f"NOT_FOUND, with the queue's name {missing!r} in the text", failed, "Backend.publish"
    )
    kit.same(await kit.contents(queue), Counter("ac"), "the others stored", "Backend.publish")
    kit.same(await kit.publish(), [], "nothing for an empty batch", "Backend.publish")


@case("G1", "G2", ids="C21")
async def overlapping_publishes_lose_nothing(kit: Kit) -> None:
    """Calls of `publish` may overlap: 30 at once from three instances, each message stored once."""
    queue = await kit.queue()
    producers = [kit.backend, await kit.open(), await kit.open()]
    batches = [
        [Outgoing(queue, kit.message(f"{batch}-{n}")) for n in range(20)] for batch in range(30)
    ]
    patience = kit.harness.patience
    calls = [
        producers[n % len(producers)].publish(batch, timeout=patience)
        for n, batch in enumerate(batches)
    ]
    outcomes = await kit.within(asyncio.gather(*calls))
    kit.same(
        [len(call) for call in outcomes],
        [20] * 30,
        "an outcome for each item of each call",
        "Backend.publish",
    )
    kit.same(
        {it for call in outcomes for it in call},
        {STORED},
        "all stored",
        "Backend.publish: overlapping calls",
    )
    sent = Counter(item.message.id for batch in batches for item in batch)
    found = await kit.contents(queue)
    kit.same(
        (sent - found, found - sent),
        (Counter(), Counter()),
        "of 600 none missing, none twice",
        "Backend.publish",
    )


@case("G1", "G2", ids="C07")
async def a_cancelled_publish_leaves_the_instance_usable(kit: Kit) -> None:
    """Cancelled at any moment it may be stored or not, at most once; the next publish works, and a consumer still gets all."""
    queue, confirmed = await kit.queue(), list[str]()
    for turn in range(60):
        publishing = asyncio.create_task(
            kit.backend.publish([Outgoing(queue, kit.message(f"c{turn}"))], timeout=5.0)
        )
        await loop_turns(turn % 6)
        publishing.cancel()
        (got,) = await asyncio.gather(publishing, return_exceptions=True)
        if not isinstance(got, BaseException) and list(got) == [STORED]:
            confirmed.append(f"c{turn}")
        await kit.put(queue, f"{turn}")
        confirmed.append(f"{turn}")
    found = await kit.contents(queue)
    kit.same(
        Counter(confirmed) - found,
        Counter(),
        "no confirmed message missing",
        "Backend.publish: cancellation",
    )
    twice = [it for it, count in found.items() if count > 1]
    kit.same(twice, [], "nothing stored twice", "Backend.publish: cancellation")


@case("G1", ids="C04 C07")
async def a_publish_that_ends_in_an_error_has_stored_nothing(kit: Kit) -> None:
    """The instance is closed while it publishes: what was refused, by an outcome or by raising, is not there, nor comes later."""
    queue, refused, confirmed = await kit.queue(), list[str](), list[str]()
    for turn in range(40):
        name, backend = f"{turn}", await kit.open()
        publishing = asyncio.create_task(
            backend.publish([Outgoing(queue, kit.message(name))], timeout=5.0)
        )
        await loop_turns(turn % 20)
        await kit.within(backend.close(), CLOSE)
        (ending,) = await kit.within(asyncio.gather(publishing, return_exceptions=True))
        outcome = ending if isinstance(ending, BaseException) else ending[0]
        if isinstance(outcome, (Exception, Failed)):
            refused.append(name)
        elif outcome == STORED:
            confirmed.append(name)
    found = await kit.contents(queue)
    look = "Backend.publish: what it raises or refuses after something was written"
    kit.same(
        [name for name in refused if name in found], [], "nothing stored of what was refused", look
    )
    kit.same(
        [name for name in confirmed if name not in found],
        [],
        "all of what was confirmed",
        "Backend.publish",
    )


@case("G1", ids="B03", needs=(Capability.DEDUP,))
async def a_message_published_again_is_one_copy(kit: Kit) -> None:
    """The same id again is `duplicate` and stores nothing, before the ack and after; it counts for each queue by itself."""
    one, two, look = await kit.queue(), await kit.queue(), "Backend.publish: DEDUP"
    again = [Stored(duplicate=True)]
    await kit.put(one, "a")
    await kit.put(two, "a")
    kit.same(
        await kit.publish(Outgoing(one, kit.message("a"))),
        again,
        "a duplicate while it is there",
        look,
    )
    kit.same(await kit.contents(one), Counter("a"), "one copy", look)
    kit.same(
        await kit.publish(Outgoing(one, kit.message("a"))), again, "a duplicate after the ack", look
    )
    broker = await kit.broker()
    receipt = await kit.within(broker.publish(two, b"a", id="a"))
    kit.same((receipt.id, receipt.duplicate), ("a", True), "what the receipt says", look)
    kit.same(
        (await kit.contents(one), await kit.contents(two)),
        (Counter(), Counter("a")),
        "no second copy",
        look,
    )
