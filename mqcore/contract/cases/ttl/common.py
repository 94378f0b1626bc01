"""Reading what is left of a time to live."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.spi import (
    Capability,
    Delivery,
    Release,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


NEEDS = (Capability.EXPIRY,)


BOTH = (Capability.EXPIRY, Capability.DELAY)


EXPIRES_IN = "Delivery.expires_in"


SWEEP = "SupportsSweep.sweep"


def has_expired(delivery: Delivery) -> bool:
    """Whether the time to live of a delivery is over."""
    return delivery.expires_in is not None and delivery.expires_in <= 0


async def time_left(kit: Kit, queue: str, count: int = 1) -> dict[str, float | None]:
    """Return the time left of each message in the queue, and release them all."""
    consumer = await kit.subscribe(queue)
    got = await kit.take(consumer, count)
    await kit.settle(consumer, *[Release(delivery.receipt) for delivery in got])
    await kit.within(consumer.close())
    return {delivery.message.id: delivery.expires_in for delivery in got}
