"""Due times and their tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.spi import (
    Capability,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.spi import Subscription


NEEDS = (Capability.DELAY,)


EARLY = 0.005


SLACK = 0.5
"""Seconds that a busy machine may add between the broker and this process, in real time."""


STUCK = 100


OWN = "delay: what stands between publish and due"


HELD = "delay: one message must never hold up another"


def tolerance(kit: Kit) -> float:
    """Return how many seconds a message may come after its due time."""
    granularity = kit.limit(Capability.DELAY, "granularity")
    kit.true(
        isinstance(granularity, (int, float)),
        "DELAY states its granularity in seconds",
        granularity,
        "Backend.open",
    )
    return float(granularity) + (SLACK if kit.clock.real else 0.0)


async def arrival_times(kit: Kit, consumer: Subscription, count: int) -> dict[str, float]:
    """Receive `count` messages and return when each arrived."""
    actual: dict[str, float] = {}
    while len(actual) < count:
        got = await kit.take(consumer, 1)
        actual.update((name, kit.now) for name in kit.ids(got))
        await kit.ack(consumer, got)
    return actual
