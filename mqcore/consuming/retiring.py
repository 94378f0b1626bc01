"""Subscriptions that another one has replaced, until all that they hold is settled.

Where a broker fixes the prefetch of a subscription, a consumer that is resized subscribes again.
What the old subscription holds may be settled on it only (RabbitMQ), so it stays, and counts.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqcore.consuming.grace import Grace

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.clock import Clock
    from mqcore.consuming.subscription import LiveSubscription

__all__ = ["Retiring"]


class Retiring:
    """The replaced subscriptions of one receiver."""

    def __init__(self, clock: Clock) -> None:
        """Begin with none."""
        self._clock = clock
        self._tasks: dict[LiveSubscription, asyncio.Task[None]] = {}

    @property
    def subscriptions(self) -> list[LiveSubscription]:
        """Those that hold something."""
        return list(self._tasks)

    def holding(self) -> int:
        """Return how many messages they hold."""
        return sum(len(subscription.held) for subscription in self._tasks)

    def add(self, subscription: LiveSubscription, settled: Callable[[], None]) -> None:
        """Receive nothing more on this one, and close it when it holds nothing.

        `settled` is called when some of what it holds is settled.
        """
        self._tasks[subscription] = asyncio.create_task(self._retire(subscription, settled))

    async def _retire(self, subscription: LiveSubscription, settled: Callable[[], None]) -> None:
        await subscription.retire(settled)
        await subscription.close(Grace(self._clock, 0.0))
        del self._tasks[subscription]

    def end(self) -> list[LiveSubscription]:
        """Return those that are left, for the receiver to close."""
        for task in self._tasks.values():
            task.cancel()
        return list(self._tasks)
