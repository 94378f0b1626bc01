"""One consumer: a sorted buffer of what the broker has pushed.

    basic.deliver ─► buffer (highest priority first) ─ receive ─► Delivery ─ settle ─► ack

It has one channel, and on that a consumer for each queue of the broker that makes our queue. A
delivery that the broker marks as redelivered was taken over. A release stores a marked copy and
acknowledges the original, because AMQP's own way to give back looks like a crash.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from typing import Any

from pika import spec

from mqcore.spi import Clock, ConnectionLost, Delivery, Release, Settled, Settlement, Subscription
from mqcore_rabbitmq.errors import NOT_FOUND, closed_by, missing
from mqcore_rabbitmq.frames import Properties
from mqcore_rabbitmq.link import Channel
from mqcore_rabbitmq.settling import Settler
from mqcore_rabbitmq.topology import Topology
from mqcore_rabbitmq.unsettled import HeldMessage, Unsettled

__all__ = ["RabbitSubscription"]

_FIRST_MESSAGES = 0.02
"""Seconds within which a new consumer has the messages that are in the queue."""
_BAND_TIMEOUT = 0.25
"""Seconds within which a band has sent its messages once there is room."""
_CLOSE_STEP = 1.0
"""Seconds for each step of a close: release the buffer, give back the rest."""
_RELEASE_TIMEOUT = 10.0
"""Seconds within which the copies of released messages must be stored."""


class RabbitSubscription(Subscription):
    """Consumes one queue; `prefetch` limits what is handed out and unsettled.

    A quarantine is read with care, because what comes back there counts as a crash: its consumers
    exist only while somebody waits in `receive`, and what came too much is released.
    """

    def __init__(
        self,
        queue: str,
        prefetch: int,
        channel: Channel,
        topology: Topology,
        settler: Settler,
        clock: Clock,
    ) -> None:
        self.queue = queue
        self.on_end: Callable[[], None] = lambda: None
        self._topology, self._settler, self._clock = topology, settler, clock

        layout = topology.layout(queue)
        self._queues = (queue,) if layout is None else layout.queues
        self._is_quarantine = layout is not None and layout.spec.role == "quarantine"
        self._prefetch = prefetch
        self._channel = channel
        self._unsettled = Unsettled(channel, settler.generation, prefetch)

        self._tags: list[str] = []
        self._credit = 0
        """How many messages of each queue the consumers take together before settlements."""
        self._ending: list[asyncio.Future[Any]] = []
        self._starting: asyncio.Task[None] | None = None
        self._buffer: list[tuple[int, int, HeldMessage]] = []
        self._releasing: asyncio.Task[None] | None = None
        self._batches: set[asyncio.Future[None]] = set()
        """Batches with releases that are being settled."""
        self._is_paused = False
        self._is_closed = False
        self._error: Exception | None = None
        self._wake: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

        self._unsettled.on_room = self._wake_for_room
        self._unsettled.pause = self._pause_for_release
        channel.on_closed.append(self._on_channel_closed)
        channel.raw.add_on_cancel_callback(lambda _: self.gone())

    async def start(self) -> None:
        """Check that the queues exist; consuming begins with the first `receive`.

        Raises `QueueNotFound`.
        """
        checks = [
            self._channel.request(spec.Queue.Declare(queue=queue, passive=True))
            for queue in self._queues
        ]
        prefetch = self._channel.request(spec.Basic.Qos(prefetch_count=self._prefetch))
        try:
            await asyncio.gather(*checks, prefetch)
        except Exception:
            self._check()
            raise
        self._settler.unsettled[self._channel.serial] = self._unsettled

    # Consumers

    async def _consume(self) -> None:
        """Start consumers for what the prefetch allows beyond those that exist.

        The broker fixes the prefetch of a consumer when it starts. So one that grows gets further
        consumers on the same channel, and what it holds can still be settled.
        """
        more, self._credit = self._prefetch - self._credit, self._prefetch
        asked = self._channel.request(spec.Basic.Qos(prefetch_count=more))
        started = [self._channel.consume(queue, self._receiver(queue)) for queue in self._queues]
        with suppress(Exception):  # `receive` raises it
            await asyncio.gather(asked, *(answer for _, answer in started))
            self._tags += [tag for tag, _ in started]
        self._starting = None

    async def resize(self, prefetch: int) -> bool:
        """Take more messages at once; to take fewer, core has to subscribe again."""
        if prefetch < self._prefetch:
            return False
        self._check()
        self._prefetch = self._unsettled.prefetch = prefetch

        while self._starting is not None:
            await asyncio.shield(self._starting)
        if self._tags and self._credit < self._prefetch:
            self._starting = self._loop.create_task(self._consume())
            await asyncio.shield(self._starting)
        self._wake_for_room()
        return True

    async def _pause_for_release(self) -> None:
        """Stop the consumers before a release, or its copy would come back into this buffer.

        A caller that waits in `receive` still gets messages. One that drains has none in the
        buffer, which the broker would hand to the next consumer as taken over.
        """
        if self._wake is None and self._channel.closed is None:
            await self._stop()

    async def _stop(self) -> None:
        """End the consumers; afterwards everything that was on its way has arrived."""
        if self._starting is not None:
            await asyncio.shield(self._starting)
        if ending := self._cancel():
            await asyncio.wait(ending)

    def _cancel(self) -> list[asyncio.Future[Any]]:
        """Cancel the consumers; return the answers that are still open, earlier ones too."""
        tags, self._tags, self._credit = self._tags, [], 0
        open_answers = [answer for answer in self._ending if not answer.done()]
        self._ending = [*open_answers, *(self._channel.cancel(tag) for tag in tags)]
        return self._ending

    def _receiver(self, queue: str) -> Callable[..., None]:
        def on_message(method: Any, properties: Properties, body: bytes) -> None:
            held = HeldMessage(queue, method, properties, body)
            self._unsettled.add(held)
            if not self._settler.defers(properties, lambda: self._take_in(held)):
                self._take_in(held)

        return on_message

    def _take_in(self, held: HeldMessage) -> None:
        if held.tag in self._unsettled.held:
            heappush(self._buffer, (-held.level, held.tag, held))
            self._wake_for_room()
            if self._is_paused:
                self._release_unseen()

    # Receiving

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Hand out what is in the buffer, or wait for it.

        Raises after a loss, and `QueueNotFound` once the queue was deleted.
        """
        self._check()
        await asyncio.sleep(0)  # a consumer that never has to wait must leave the loop to others
        await self._wait_for_messages(self._loop.time() + timeout)
        if self._is_closed or self._is_paused:
            return []
        self._check()

        if self._is_quarantine:
            # The broker reads this before any settlement, which would make room for the next.
            self._cancel()
        return self._hand_out(limit)

    async def _wait_for_messages(self, deadline: float) -> None:
        """Return when there is something to hand out, nothing will come, or at the deadline."""
        while self._error is None and not (self._is_closed or self._is_paused):
            now = self._loop.time()

            if self._buffer and self._has_room():
                higher = self._higher_band()
                if higher is None or now >= deadline:
                    return
                await self._wait_for_band(higher, deadline - now)
            elif not self._tags and self._has_room():
                self._starting = self._starting or self._loop.create_task(self._consume())
                await asyncio.shield(self._starting)
                deadline = max(deadline, self._loop.time() + _FIRST_MESSAGES)
            elif now < deadline:
                await self._wait(deadline - now)
            else:
                if self._is_quarantine:
                    await self._stop()
                return

    def _higher_band(self) -> str | None:
        """Return a queue above the buffer's best level that may hold back messages (G8)."""
        best = -self._buffer[0][0]
        return next((queue for queue, level in self._unsettled.full.items() if level > best), None)

    async def _wait_for_band(self, queue: str, patience: float) -> None:
        """Give the broker time to send from a band: a quorum queue takes a while to settle."""
        answer = await self._channel.request(spec.Queue.Declare(queue=queue, passive=True))
        if answer.message_count and queue in self._unsettled.full:
            await self._wait(min(patience, _BAND_TIMEOUT))
        self._unsettled.full.pop(queue, None)

    def _hand_out(self, limit: int) -> list[Delivery]:
        deliveries: list[Delivery] = []
        now, ttl = self._clock.now(), self._topology.ttl(self.queue)
        while self._buffer and self._has_room() and len(deliveries) < limit:
            deliveries.append(self._unsettled.hand_out(heappop(self._buffer)[2], ttl, now))
        return deliveries

    def _has_room(self) -> bool:
        return self._unsettled.out < self._prefetch

    async def _wait(self, timeout: float) -> None:
        self._wake = self._loop.create_future()
        timer = self._loop.call_later(timeout, self._rouse)
        try:
            await self._wake
        finally:
            timer.cancel()
            self._wake = None

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _wake_for_room(self) -> None:
        """Wake a `receive` that waits for a message, a settlement, or room to consume again."""
        if self._has_room() and (self._buffer or not self._tags):
            self._rouse()

    # Settling

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """Acknowledge at once; store successors and released copies in one batch first (G3)."""
        if not any(isinstance(item, Release) for item in batch):
            return await self._settler.settle(batch, timeout)

        settled: asyncio.Future[None] = self._loop.create_future()
        self._batches.add(settled)
        try:
            return await self._settler.settle(batch, timeout)
        finally:
            self._batches.discard(settled)
            settled.set_result(None)

    async def prove(self, *, timeout: float) -> bool:
        """Whether the broker has read all acknowledgements up to now."""
        try:
            async with asyncio.timeout(timeout):
                await self._unsettled.prove()
        except Exception:  # noqa: BLE001 - lost, closed or silent: nothing is proven
            return False
        return True

    # Ending

    async def pause(self) -> None:
        """Stop consuming and release the buffer: the broker would mark it as after a crash."""
        self._is_paused = True
        self._rouse()
        await self._stop()
        self._release_unseen()
        while self._releasing is not None:
            await asyncio.shield(self._releasing)

    async def close(self) -> None:
        """Stop; everything that is still held returns to its queue."""
        if self._is_closed:
            return

        try:
            try:
                with suppress(Exception):
                    async with asyncio.timeout(_CLOSE_STEP):
                        await self.pause()
            finally:
                self.end()
                self._settler.unsettled.pop(self._channel.serial, None)
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_STEP):
                    # The queues have the messages now, not some time after the close.
                    await self._channel.return_all()
            await self._channel.close()
        finally:
            # Also when cancelled: the connection may last and would hold what this channel has.
            self._channel.abandon()

    def _release_unseen(self) -> None:
        """Start to release the buffer, unless that is under way."""
        if self._buffer and self._releasing is None and not self._is_closed:
            self._releasing = self._loop.create_task(self._release_buffer())

    async def _release_buffer(self) -> None:
        """Release the buffer, and what comes into it meanwhile, in the order of delivery.

        A copy goes to the end of its level. What was handed out is older, so its copies are stored
        first (G9). A release without an answer is left to the close, which gives its message back
        as after a crash.
        """
        try:
            while self._buffer and not self._is_closed:
                if self._batches:
                    await asyncio.wait(tuple(self._batches))
                    continue

                unseen, self._buffer = sorted(self._buffer), []
                now, ttl = self._clock.now(), self._topology.ttl(self.queue)
                deliveries = [self._unsettled.hand_out(held, ttl, now) for _, _, held in unseen]
                releases = [Release(delivery.receipt) for delivery in deliveries]
                with suppress(Exception):
                    await self._settler.settle(releases, _RELEASE_TIMEOUT)
        finally:
            self._releasing = None

    def end(self) -> None:
        """End a waiting `receive` and write the acknowledgements; the rest returns."""
        self._is_closed = True
        self._drop()

    def gone(self) -> None:
        """End because the queue was deleted."""
        self._fail(missing(self.queue))

    def _fail(self, error: Exception) -> None:
        """End with an error, and close the channel: other queues may still send to it."""
        if self._error is None:
            self._error = error
        self._settler.unsettled.pop(self._channel.serial, None)
        self._drop()
        self._channel.abandon()

    def _drop(self) -> None:
        self._buffer.clear()
        self._unsettled.drop_all()
        self.on_end()
        self._rouse()

    def _check(self) -> None:
        if self._is_closed:
            raise ConnectionLost(
                f"the subscription of queue {self.queue!r} is closed; subscribe again"
            )
        if self._error is not None:
            raise self._error

    def _on_channel_closed(self, reason: BaseException) -> None:
        if closed_by(reason, NOT_FOUND):
            self.gone()
        elif not self._is_closed:
            self._fail(reason if isinstance(reason, Exception) else ConnectionLost(f"{reason!r}"))
        self._unsettled.drop_all()
