"""Making and reading dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import (
    SupportsBrowse,
    SupportsTake,
)

if TYPE_CHECKING:
    from mqcore.broker import Broker
    from mqcore.contract.kit import Kit
    from mqcore.spi import Message


MOVE = "Subscription.settle: Move"


ONCE = RetryPolicy(1)


TWICE = RetryPolicy(2, fixed(0.0))


HEADERS = {"tenant": "t-1", "note": "Grüße 世界 🐇"}


CHOSEN = (SupportsBrowse, SupportsTake)


async def reject_all(
    kit: Kit, broker: Broker, jobs: Queue[str], *bodies: str, reason: str = "no"
) -> None:
    """Publish these bodies and reject each message."""
    await kit.within(broker.publish_many(jobs, bodies))
    async with broker.consume(jobs, retry=ONCE, prefetch=100) as consumer:
        for _ in bodies:
            await kit.within((await kit.within(anext(consumer))).reject(reason))


async def take_dead_letters(kit: Kit, queue: str, count: int) -> list[Message]:
    """Receive dead letters as a consumer does, so that a backend without BROWSE is tested too."""
    return [
        delivery.message for delivery in await kit.take(await kit.subscribe(f"{queue}.dlq"), count)
    ]
