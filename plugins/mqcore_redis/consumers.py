"""The consumers of one session: they share what wakes them, and are kept registered while they have their hands full."""

import asyncio

from mqcore_redis.batches import Batches
from mqcore_redis.session import Session
from mqcore_redis.subscription import ALIVE, RedisSubscription
from mqcore_redis.waker import Waker

__all__ = ["Consumers"]


class Consumers:
    """Those that are open, and a waker for each slot that they are in."""

    def __init__(self, session: Session, batches: Batches) -> None:
        self._session, self._batches = session, batches
        self._wakers: dict[str, Waker] = {}
        self._open: set[RedisSubscription] = set()
        self._tending = asyncio.create_task(self._tend())
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
        """End them all.

        What they hold is not given back: after a reconnect core goes on with it.
        """
        await asyncio.gather(
            *(consumer.end(lost=False) for consumer in list(self._open)), return_exceptions=True
        )

    async def close(self) -> None:
        """Let go of what wakes them."""
        self._tending.cancel()
        await asyncio.gather(*(waker.close() for waker in self._wakers.values()))

    def _wake(self) -> None:
        """The connection broke: who sleeps shall learn it."""
        for consumer in self._open:
            consumer.wake()

    async def _tend(self) -> None:
        """Keep the consumers registered that hold all they may, and so do not claim."""
        while True:
            await asyncio.sleep(ALIVE / 3)
            signs = [
                sign for consumer in self._open if (sign := consumer.sign_of_life()) is not None
            ]
            await self._session.gather(signs)
