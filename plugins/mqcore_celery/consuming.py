"""One consumer of a channel: it reads a queue on the loop and puts what comes into an inbox."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqcore import MqcoreError, RetryPolicy, fixed

if TYPE_CHECKING:
    from mqcore import Consumer, Received
    from mqcore_celery.inbox import Inbox
    from mqcore_celery.shared import SharedBroker

__all__ = ["UNLIMITED", "Arrival", "Subscription", "next_size", "requeuing"]

UNLIMITED = 4096
"""What a prefetch of 0 means."""
_log = logging.getLogger("mqcore.celery")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that has come in for a consumer."""

    subscription: Subscription
    received: Received[bytes]


def requeuing(max_requeues: int) -> RetryPolicy:
    """Return the policy of a message that is requeued: at once, so many times at most."""
    return RetryPolicy(max_attempts=max_requeues, backoff=fixed(0))


def next_size(size: int, wanted: int, base: int) -> int:
    """Return the next prefetch: `size` is what there is, `base` what Celery began with."""
    if wanted > size:
        return wanted if size < base else max(wanted, size + size // 4)
    if wanted <= base or wanted * 2 <= size:
        return wanted
    return size


class Subscription:
    """One consumer. Its methods run on the loop."""

    def __init__(
        self, shared: SharedBroker, inbox: Inbox, queue: str, tag: str, prefetch: int
    ) -> None:
        """`queue` is its name for mqcore; `prefetch` is 0 for no limit."""
        self.queue, self.tag = queue, tag
        self.is_cancelled = False
        """Set by kombu's thread: what has come in and was not delivered goes back."""
        self._shared, self._inbox = shared, inbox
        self._base = self._size = self._wanted = prefetch or UNLIMITED
        self._consumer: Consumer[bytes] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._resizing = asyncio.Lock()

    async def start(self) -> None:
        """Consume. Raises what prevents it."""
        shared = self._shared
        self._consumer = shared.broker.consume(
            shared.queues.get(self.queue, self.queue),
            prefetch=self._size,
            retry=requeuing(shared.options.max_requeues),
            lease=shared.options.lease,
            after_crash="count",
        )
        await self._consumer.__aenter__()
        self._reading = asyncio.create_task(self._read(self._consumer))

    async def _read(self, consumer: Consumer[bytes]) -> None:
        loop = asyncio.get_running_loop()
        try:
            async for received in consumer:
                self._inbox.put(Arrival(self, received), loop)
        except MqcoreError as error:
            self._inbox.fail(error)

    async def resize(self, prefetch: int) -> None:
        """Hold at most so many messages, 0 for no limit.

        Celery asks for one more with each ETA task that it holds, and for one less when it starts
        it. On some brokers a smaller prefetch is a new subscription. So this grows by a quarter at
        least, and shrinks when half is enough, or when Celery is back where it began.
        """
        self._wanted = prefetch or UNLIMITED
        async with self._resizing:
            if (size := next_size(self._size, self._wanted, self._base)) == self._size:
                return
            self._size = size
            if self._consumer is not None:
                with suppress(MqcoreError):  # closed, or the connection is lost
                    await self._consumer.resize(size)

    async def stop(self) -> None:
        """Receive nothing more; what was delivered may still be settled."""
        if self._consumer is not None:
            await self._consumer.stop()

    async def close(self) -> None:
        """Stop, and give back what is not settled."""
        if self._consumer is not None:
            await self._consumer.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
