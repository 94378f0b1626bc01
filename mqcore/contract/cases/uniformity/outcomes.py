"""What a confirmed, failed or unknown publish means."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.cases.uniformity.common import DEDUP, WINDOWS
from mqcore.contract.kit import NotShown
from mqcore.errors import (
    PublishFailed,
    PublishUnknown,
    QueueNotFound,
    UnsupportedFeature,
)
from mqcore.queue import Queue
from mqcore.spi import (
    Capability,
    Durability,
    Outgoing,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.contract.kit import Kit
    from mqcore.spi import Backend, Outcome


@case("G1", "G2", ids="B01 C70", hooks=("restart",))
async def what_was_confirmed_survives_the_broker(kit: Kit) -> None:
    """Every confirmed message survives a kill of the server."""
    if kit.capabilities.durability is Durability.MEMORY:
        raise NotShown("its durability is memory: nothing is promised")
    queue, names = await kit.queue(), [f"{n:02}" for n in range(50)]
    await kit.put(queue, *names)
    await kit.kill(kit.backend)
    await kit.harness.restart()
    consumer = await kit.subscribe(queue, backend=await kit.open())
    kit.same(
        sorted(kit.ids(await kit.take(consumer, len(names)))),
        names,
        "messages after the restart",
        "Backend.publish",
    )


@case("G1", ids="B02")
async def what_nobody_takes_is_an_error_with_its_id(kit: Kit) -> None:
    """Publishing to a missing queue raises QueueNotFound with the message's id."""
    broker = await kit.broker()
    error = await kit.raises(
        QueueNotFound, broker.publish(kit.name(), b"x", id="me"), "QueueNotFound", "Backend.publish"
    )
    kit.same(isinstance(error, PublishFailed) and error.id, "me", "the id of the error")
    (ending,) = await kit.within(broker.publish_many(kit.name(), [b"x"]))
    kit.true(
        isinstance(ending, QueueNotFound), "QueueNotFound as a value", ending, "Backend.publish"
    )


@case("G1", ids="B03 C71", needs=WINDOWS)
async def an_unknown_published_again_is_stored_once(kit: Kit) -> None:
    """Publishing again with the id of a PublishUnknown stores one copy."""
    silent = True

    def make() -> Backend:
        backend = kit.harness.make_backend()
        real = backend.publish

        async def publish(batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
            outcomes = await real(batch, timeout=timeout)
            return [Unknown("the answer got lost")] * len(batch) if silent else outcomes

        cast("Any", backend).publish = publish
        return backend

    jobs, broker = Queue(kit.name(), str), await kit.broker(make_backend=make)
    error = await kit.raises(
        PublishUnknown, broker.publish(jobs, "x"), "PublishUnknown when no answer comes"
    )
    silent = False
    id_ = cast("PublishUnknown", error).id
    receipt = await kit.within(broker.publish(jobs, "x", id=id_))
    kit.same((receipt.id, receipt.duplicate), (id_, True), "id and duplicate of the receipt", DEDUP)
    kit.same(await kit.contents(jobs.name), Counter([id_]), "copies stored", DEDUP)


@case(
    "G16",
    "G12",
    ids="U02 U03",
    needs=(Capability.MAX_LENGTH,),
    each={mode: mode for mode in ("reject", "dead_letter")},
)
async def an_overflow_mode_works_or_is_refused(kit: Kit, mode: Any) -> None:
    """An overflow mode in `modes` works; another raises UnsupportedFeature.

    Then no queue is created.
    """
    broker, jobs = await kit.broker(), Queue(kit.name(), str, max_length=1, overflow=mode)
    if mode in str(kit.limit(Capability.MAX_LENGTH, "modes")).split(","):
        await kit.within(broker.publish(jobs, "x"))
    else:
        await kit.raises(
            UnsupportedFeature,
            broker.publish(jobs, "x"),
            f"UnsupportedFeature for overflow={mode!r}",
        )
        await kit.raises(
            QueueNotFound,
            broker.publish(jobs.name, b"x"),
            "QueueNotFound, for no queue was created",
        )
