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
    """A message whose publish was answered `Stored` is delivered at attempt 1, without marks."""
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
        (delivery.redelivered, delivery.takeovers),
        (False, 0),
        "redelivered, takeovers",
        "Subscription.receive",
    )


@case("G1", ids="C05 C30")
async def an_outcome_comes_for_each_item_in_its_order(kit: Kit) -> None:
    """`publish` returns an outcome for each item in order; a missing queue fails its items only.

    The outcome is `Failed(NOT_FOUND)` with the queue's name in its text.
    """
    queue, missing = await kit.queue(), kit.name()
    batch = [
        Outgoing(to, kit.message(name)) for to, name in [(queue, "a"), (missing, "b"), (queue, "c")]
    ]
    outcomes = await kit.publish(*batch)
    kinds = [type(outcome) for outcome in outcomes]
    kit.same(kinds, [Stored, Failed, Stored], "types of the outcomes, in order", "Backend.publish")

    failed = outcomes[1]
    is_named = (
        isinstance(failed, Failed) and failed.kind is ErrorKind.NOT_FOUND and missing in failed.text
    )
    kit.true(
        is_named,
        f"NOT_FOUND, with the queue's name {missing!r} in the text",
        failed,
        "Backend.publish",
    )
    kit.same(await kit.contents(queue), Counter("ac"), "messages in the queue", "Backend.publish")
    kit.same(await kit.publish(), [], "outcomes of an empty batch", "Backend.publish")


@case("G1", "G2", ids="C21")
async def overlapping_publishes_lose_nothing(kit: Kit) -> None:
    """Calls of `publish` may overlap, also on several instances: each message is stored once."""
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
        {item for call in outcomes for item in call},
        {STORED},
        "all stored",
        "Backend.publish: overlapping calls",
    )

    sent = Counter(item.message.id for batch in batches for item in batch)
    found = await kit.contents(queue)
    kit.same(
        (sent - found, found - sent),
        (Counter(), Counter()),
        "missing and doubled messages of 600",
        "Backend.publish",
    )


@case("G1", "G2", ids="C07")
async def a_cancelled_publish_leaves_the_instance_usable(kit: Kit) -> None:
    """A cancelled publish stores its message at most once, and the instance still works."""
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
        "confirmed messages that are missing",
        "Backend.publish: cancellation",
    )

    twice = [item for item, count in found.items() if count > 1]
    kit.same(twice, [], "messages stored twice", "Backend.publish: cancellation")


@case("G1", ids="C04 C07")
async def a_publish_that_ends_in_an_error_has_stored_nothing(kit: Kit) -> None:
    """A publish that raises or answers `Failed` during a close has stored nothing."""
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
        [name for name in refused if name in found], [], "refused messages that are stored", look
    )
    kit.same(
        [name for name in confirmed if name not in found],
        [],
        "confirmed messages that are missing",
        "Backend.publish",
    )


@case("G1", ids="B03", needs=(Capability.DEDUP,))
async def a_message_published_again_is_one_copy(kit: Kit) -> None:
    """Publishing the same id again is answered `duplicate` and stores nothing, per queue.

    That holds before and after the first copy is acked.
    """
    one, two, look = await kit.queue(), await kit.queue(), "Backend.publish: DEDUP"
    again = [Stored(duplicate=True)]
    await kit.put(one, "a")
    await kit.put(two, "a")
    kit.same(
        await kit.publish(Outgoing(one, kit.message("a"))),
        again,
        "the outcome of publishing the id again",
        look,
    )
    kit.same(await kit.contents(one), Counter("a"), "copies stored", look)
    kit.same(
        await kit.publish(Outgoing(one, kit.message("a"))),
        again,
        "the outcome of publishing the id again after the ack",
        look,
    )

    broker = await kit.broker()
    receipt = await kit.within(broker.publish(two, b"a", id="a"))
    kit.same((receipt.id, receipt.duplicate), ("a", True), "id and duplicate of the receipt", look)
    kit.same(
        (await kit.contents(one), await kit.contents(two)),
        (Counter(), Counter("a")),
        "further copies",
        look,
    )
