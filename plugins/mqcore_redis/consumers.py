"""The consumers of one session, and the wakers that they share."""

import asyncio

from mqcore_redis.batches import Batches
from mqcore_redis.session import Session
from mqcore_redis.subscription import RedisSubscription
from mqcore_redis.waker import Waker

__all__ = ["Consumers"]


class Consumers:
    """The open consumers, and a waker for each slot that they are in."""

    def __init__(self, session: Session, batches: Batches) -> None:
        self._session, self._batches = session, batches
        self._wakers: dict[str, Waker] = {}
        self._open: set[RedisSubscription] = set()
        session.on_broken = self._wake

    async def subscribe(self, queue: str, prefetch: int, lease: float) -> RedisSubscription:
        """Start a consumer. Raises `QueueNotFound`."""
        group = self._session.keys.group(queue)
        waker = self._wakers.setdefault(group, Waker(self._session, group))
        consumer = RedisSubscription(
            self._session, self._batches, waker, queue, prefetch=prefetch, lease=lease
        )
        await consumer.start()
        self._open.add(consumer)
        consumer.closed = self._open.discard
        return consumer

    async def end(self) -> None:
        """End all consumers.

        Their claims are not returned: after a reconnect core goes on with them.
        """
        await asyncio.gather(
            *(consumer.end(lost=False) for consumer in list(self._open)), return_exceptions=True
        )

    async def close(self) -> None:
        """Close the wakers."""
        await asyncio.gather(*(waker.close() for waker in self._wakers.values()))

    def _wake(self) -> None:
        """Rouse all consumers, so that they notice a broken connection."""
        for consumer in self._open:
            consumer.rouse()
