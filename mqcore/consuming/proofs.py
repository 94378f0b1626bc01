"""Proof that acknowledgements have reached the broker, one request for a loop turn (G2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqcore.spi import Subscription, SupportsProof

if TYPE_CHECKING:
    from mqcore.events import Events
    from mqcore.messages.message import Message

__all__ = ["Proofs"]

_PATIENCE = 10.0
"""Seconds that the broker may take to prove an acknowledgement."""


class Proofs:
    """The proofs that are under way, one for each subscription."""

    def __init__(self, events: Events, queue: str) -> None:
        """An acknowledgement without proof is reported as an event of `queue`."""
        self._events = events
        self._queue = queue
        self._asked: dict[SupportsProof, asyncio.Task[bool]] = {}

    async def of(self, subscription: Subscription | None, message: Message) -> bool:
        """Whether this message, acknowledged on that subscription, cannot come again.

        All that ask in one loop turn share one request.
        """
        if not isinstance(subscription, SupportsProof):
            return subscription is not None
        if subscription not in self._asked:
            self._asked[subscription] = asyncio.create_task(self._ask(subscription))
        if await asyncio.shield(self._asked[subscription]):
            return True

        text = (
            "the broker has not confirmed the acknowledgement, so no handler is started; the "
            "message may come again"
        )
        self._events.emit("settle.unanswered", self._queue, message.id, message.attempt, error=text)
        return False

    async def _ask(self, subscription: SupportsProof) -> bool:
        await asyncio.sleep(0)
        del self._asked[subscription]  # acknowledgements from now on need another one
        try:
            return await subscription.prove(timeout=_PATIENCE)
        except Exception:  # noqa: BLE001 - whatever a driver raises: nothing is proven
            return False
