"""One consumer: what the broker has pushed, sorted, and handed out when it is asked for.

    basic.deliver ─► buffer (highest priority first) ─ receive ─► Delivery ─ settle ─► ack │ successor stored, then ack

One channel, and on it a consumer for each queue of the broker that makes the queue of ours. A delivery that the broker marks as
redelivered is doubtful. A release stores a copy with a mark of ours and lets go of the original, for AMQP's own way to give back
cannot be told from a crash.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from pika import BasicProperties, spec

from mqcore.spi import (
    ConnectionLost,
    Delivery,
    Message,
    Release,
    Settled,
    Settlement,
    Subscription,
)
from mqcore_rabbitmq.errors import NOT_FOUND, closed_by
from mqcore_rabbitmq.link import Channel
from mqcore_rabbitmq.topology import missing
from mqcore_rabbitmq.window import Held, Window
from mqcore_rabbitmq.wire import RELEASED, ageless, expires_of, level_of, message_of

if TYPE_CHECKING:
    from mqcore_rabbitmq.backend import RabbitBackend

__all__ = ["RabbitSubscription", "read"]


_A_MOMENT = 0.02
"""Seconds in which what is in the queue has come to a consumer that has just begun."""
_A_WHILE = 0.25
"""Seconds in which a band has sent what it has, once there is room."""
_LAST_WORD = 1.0
"""Seconds that a close may take to give back what nobody has seen."""


class RabbitSubscription(Subscription):
    """Consumes one queue of ours; `prefetch` is the most that is handed out and unsettled.

    `careful`: the queue is a quarantine, where what comes back doubtful counts as a crash. Then nothing is taken from the broker
    but while somebody waits in `receive`, and what is left over is given back as released.
    """

    def __init__(
        self, backend: "RabbitBackend", queue: str, prefetch: int, channel: Channel, *, careful: bool = False
    ) -> None:
        self.queue = queue
        self._careful = careful
        self.window = Window(channel, backend.generation, prefetch)
        self._backend = backend
        self._clock = backend.clock
        self._prefetch = prefetch
        self._channel = channel
        self._queues: Sequence[str] = ()
        self._tags: list[str] = []
        self._resuming: asyncio.Task[None] | None = None
        self._buffer: list[tuple[int, int, Held]] = []
        self._closed = False
        self._error: Exception | None = None
        self._wake: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.window.on_room = self._made_room
        channel.on_closed.append(self._on_closed)
        channel.raw.add_on_cancel_callback(self._on_cancelled)

    async def start(self, queues: Sequence[str]) -> None:
        """Make sure that these queues are there; nothing is consumed before somebody receives. Raises `QueueNotFound`."""
        self._queues = queues
        try:
            there = [self._channel.ask(spec.Queue.Declare(queue=queue, passive=True)) for queue in queues]
            await asyncio.gather(*there, self._channel.ask(spec.Basic.Qos(prefetch_count=self._prefetch)))
        except Exception as error:
            if closed_by(error, NOT_FOUND):
                raise missing(self.queue) from error
            raise

    async def _consume(self) -> None:
        try:
            for queue in self._queues:
                self._tags.append(await self._channel.consume(queue, self._receiver(queue)))
        except Exception as error:  # noqa: BLE001 - whoever receives is told
            self.fail(missing(self.queue) if closed_by(error, NOT_FOUND) else error)
        finally:
            self._resuming = None

    async def pause(self) -> None:
        """Take nothing more for now: before a release, or its copy comes straight back into our own buffer.

        Whoever releases and asks for more is served again; one who drains has nothing in the buffer that nobody started, which the
        broker would give to the next consumer as doubtful.
        """
        if self._wake is None and self._channel.closed is None:
            await asyncio.gather(*self._stop_consuming())

    def _stop_consuming(self) -> list[asyncio.Future[Any]]:
        tags, self._tags = self._tags, []
        return [self._channel.cancel(tag) for tag in tags]

    def _receiver(self, queue: str) -> Any:
        def on_message(_: object, method: Any, properties: BasicProperties, body: bytes) -> None:
            tag = method.delivery_tag
            held = Held(tag, queue, properties, body, level=level_of(properties))
            held.redelivered = held.doubtful = method.redelivered
            self.window.add(held)
            if not self._backend.passing.holds_up(properties, lambda: self._take_in(held)):
                self._take_in(held)

        return on_message

    def _take_in(self, held: Held) -> None:
        if held.tag in self.window.held:
            heappush(self._buffer, (-held.level, held.tag, held))
            self._made_room()

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Hand out what is there, or wait for it. Raises after a loss, and `QueueNotFound` once the queue was deleted."""
        self._check()
        await asyncio.sleep(0)  # a consumer that always finds something must not keep the loop for itself
        await self._come(self._loop.time() + timeout)
        if self._closed:
            return []
        self._check()
        if self._careful:
            self._stop_consuming()  # the broker reads this before any settlement, which would make room for the next message
        return self._hand_out(limit)

    async def _come(self, deadline: float) -> None:
        """Return when there is something to hand out, when there will be nothing any more, and at the deadline."""
        while self._error is None and not self._closed:
            now = self._loop.time()
            if self._buffer and self._room():
                higher = self._kept_back()
                if higher is None or now >= deadline:
                    return
                await self._ask_for(higher, deadline - now)
            elif not self._tags and self._room():
                self._resuming = self._resuming or self._loop.create_task(self._consume())
                await asyncio.shield(self._resuming)
                deadline = max(deadline, self._loop.time() + _A_MOMENT)
            elif now < deadline:
                await self._wait(deadline - now)
            else:
                if self._careful:
                    await self.pause()  # what was on its way is here after it
                return

    def _kept_back(self) -> str | None:
        """Return a band above all that we have, of which our prefetch has kept something back until just now."""
        best = -self._buffer[0][0]
        return next((queue for queue, level in self.window.full.items() if level > best), None)

    async def _ask_for(self, queue: str, patience: float) -> None:
        """Give the broker the time to send what a band has, if it has anything: a quorum queue takes its while to settle."""
        answer = await self._channel.ask(spec.Queue.Declare(queue=queue, passive=True))
        if answer.message_count and queue in self.window.full:
            await self._wait(min(patience, _A_WHILE))
        self.window.full.pop(queue, None)

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """Acknowledge at once; store successors and given-back copies in one batch, then let go of their sources."""
        return await self._backend.settle(batch, timeout)

    async def close(self) -> None:
        """Stop; what is still held comes back to its queue."""
        if self._closed:
            return
        if self._careful:
            await self._give_back_unseen()
        self.end()
        self._backend.leave(self)
        with suppress(Exception):
            async with asyncio.timeout(_LAST_WORD):
                await asyncio.gather(*self._stop_consuming())
                await self._channel.give_all_back()  # the queues know of it now, and not some time after the close
        await self._channel.close()

    async def _give_back_unseen(self) -> None:
        """Release what came and was not asked for."""
        with suppress(Exception):
            async with asyncio.timeout(_LAST_WORD):
                if self._resuming is not None:
                    await self._resuming
                await asyncio.gather(*self._stop_consuming())
            unseen, self._buffer = [held for _, _, held in self._buffer], []
            for held in unseen:
                held.out = True
                self.window.out += 1
            if unseen:
                await self._backend.settle([Release(self.window.receipt(held)) for held in unseen], _LAST_WORD)

    def end(self) -> None:
        """End a waiting receive, and write what was settled."""
        self._closed = True
        self.window.flush()
        self._buffer.clear()
        self._rouse()

    def gone(self) -> None:
        """The queue was deleted by this very instance."""
        self.fail(missing(self.queue))

    def fail(self, error: Exception) -> None:
        """Take note that there is nothing to consume any more; nothing that is held is ours."""
        if self._error is None:
            self._error = error
        self._buffer.clear()
        self.window.drop_all()
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _check(self) -> None:
        if self._error is not None and not self._closed:
            raise self._error
        if self._closed:
            raise ConnectionLost(f"the subscription of queue {self.queue!r} is closed; subscribe again")

    def _room(self) -> bool:
        return self.window.out < self._prefetch

    async def _wait(self, timeout: float) -> None:
        self._wake = self._loop.create_future()
        timer = self._loop.call_later(timeout, self._rouse)
        try:
            await self._wake
        finally:
            timer.cancel()
            self._wake = None

    def _made_room(self) -> None:
        """Wake a receive that waits for something to be settled, or for room to consume again."""
        if self._room() and (self._buffer or not self._tags):
            self._rouse()

    def _hand_out(self, limit: int) -> list[Delivery]:
        deliveries: list[Delivery] = []
        now = self._clock.now()
        while self._buffer and self._room() and len(deliveries) < limit:
            held = heappop(self._buffer)[2]
            deliveries.append(self._delivery(held, now))
            held.out = True
            self.window.out += 1
        return deliveries

    def _delivery(self, held: Held, now: float) -> Delivery:
        message, expires = read(held, self._backend.ttl_of(self.queue), now)
        left = None if expires is None else expires - now
        return Delivery(message, self.window.receipt(held), left, held.redelivered, held.doubtful)

    def _on_closed(self, reason: BaseException) -> None:
        if not self._closed:
            self.fail(reason if isinstance(reason, Exception) else ConnectionLost(f"{reason!r}"))
        self.window.drop_all()

    def _on_cancelled(self, _: object) -> None:
        self.gone()


def read(held: Held, ttl: float | None, now: float) -> tuple[Message, float | None]:
    """Return the message of a delivery, and when it expires: the ttl of its queue counts here if it did not at publish (G6)."""
    expires = expires_of(held.properties)
    message = message_of(held.properties, held.body, expires)
    if RELEASED in (held.properties.headers or {}):
        held.redelivered = True
    if ttl is not None and not message.hop and ageless(held.properties):
        since = now if message.published_at is None else message.published_at
        expires = since + ttl if expires is None else min(expires, since + ttl)
        message = replace(message, expires_at=expires)
    held.expires = expires
    return message, expires
