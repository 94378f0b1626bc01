"""Delays that are refused."""

from __future__ import annotations

from collections import Counter
from math import inf, nan
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.delay.common import (
    NEEDS,
)
from mqcore.errors import ValidationError
from mqcore.queue import Queue
from mqcore.spi import (
    Capability,
    ErrorKind,
    Failed,
    Outgoing,
    Stored,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G7", "G12", ids="D09", needs=NEEDS)
async def a_delay_above_the_maximum_is_refused(kit: Kit) -> None:
    """A delay of the declared maximum works; a longer one is refused and not stored.

    The driver answers `Failed(PERMANENT)`. Core raises ValidationError before anything is sent.
    """
    most = kit.limit(Capability.DELAY, "max")
    kit.true(
        isinstance(most, (int, float)), "DELAY states its maximum in seconds", most, "Backend.open"
    )

    queue = await kit.queue()
    batch = [Outgoing(queue, kit.message(), most), Outgoing(queue, kit.message(), most * 1.01)]
    kept, refused = await kit.publish(*batch)
    kit.true(isinstance(kept, Stored), f"a delay of {most:g} s stored", kept, "Backend.publish")

    permanent = isinstance(refused, Failed) and refused.kind is ErrorKind.PERMANENT
    kit.true(permanent, "Failed(PERMANENT) above the maximum", refused, "Backend.publish")

    broker = await kit.broker()
    await kit.raises(
        ValidationError,
        broker.publish(queue, b"", delay=most * 1.01),
        "ValidationError",
        "Broker.publish",
    )


@case("G7", needs=NEEDS)
async def a_delay_that_is_none_is_refused(kit: Kit) -> None:
    """A negative, infinite or NaN delay raises ValidationError, and nothing is stored."""
    broker, queue = await kit.broker(), Queue(kit.name())
    await kit.within(broker.declare(queue))
    for bad in (-1.0, -0.001, inf, nan):
        await kit.raises(
            ValidationError,
            broker.publish(queue, b"", delay=bad),
            f"delay={bad} refused",
            "Broker.publish",
        )
    kit.same(await kit.contents(queue.name), Counter(), "messages stored", "Broker.publish")


@case(
    "G6",
    "G7",
    ids="D06",
    needs=(*NEEDS, Capability.EXPIRY),
    each={
        "equal": (5.0, 5.0, None),
        "longer": (6.0, 5.0, None),
        "queue": (6.0, None, 5.0),
        "both": (6.0, 10.0, 5.0),
    },
)
async def a_delay_beyond_the_expiry_is_refused(
    kit: Kit, times: tuple[float, float | None, float | None]
) -> None:
    """A delay that ends after the message expires raises ValidationError.

    The shorter ttl counts: the message's or the queue's.
    """
    delay, ttl, queue_ttl = times
    broker, queue = await kit.broker(), Queue(kit.name(), ttl=queue_ttl)
    await kit.raises(
        ValidationError,
        broker.publish(queue, b"", delay=delay, ttl=ttl),
        "ValidationError",
        "Broker.publish",
    )
    await kit.within(broker.declare(queue))
    kit.same(await kit.contents(queue.name), Counter(), "messages stored", "Broker.publish")
