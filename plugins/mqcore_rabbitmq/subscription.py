"""One consumer: what the broker has pushed, sorted, and handed out when it is asked for.

    basic.deliver ─► buffer (highest priority first) ─ receive ─► Delivery ─ settle ─► ack │ successor stored, then ack

One channel, and on it a consumer for each queue of the broker that makes the queue of ours. A
delivery that the broker marks as redelivered was taken over. A release stores a copy with a mark of
ours and lets go of the original, for AMQP's own way to give back cannot be told from a crash.
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

_A_MOMENT = 0.02
"""Seconds in which what is in the queue has come to a consumer that has just begun."""
_A_WHILE = 0.25
"""Seconds in which a band has sent what it has, once there is room."""
_LAST_WORD = 1.0
"""Seconds that a close may take to give back what nobody has seen."""
_RELEASED = 10.0
"""Seconds within which a copy of it is stored, or is given up."""


class RabbitSubscription(Subscription):
    """Consumes one queue of ours; `prefetch` is the most that is handed out and unsettled.

    A quarantine is read carefully, for what comes back there counts as a crash: nothing is taken
    from the broker but while somebody waits in `receive`, and what is left over is given back as
    released.
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
        self._careful = layout is not None and layout.spec.role == "quarantine"
        self._prefetch = prefetch
        self._channel = channel
        self._unsettled = Unsettled(channel, settler.generation, prefetch)
        self._tags: list[str] = []
        self._ending: list[asyncio.Future[Any]] = []
        self._starting: asyncio.Task[None] | None = None
        self._buffer: list[tuple[int, int, HeldMessage]] = []
        self._releasing: asyncio.Task[None] | None = None
        self._given_back: set[asyncio.Future[None]] = set()
        """Batches of releases that are being settled."""
        self._paused = False
        self._closed = False
        self._error: Exception | None = None
        self._wake: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._unsettled.on_room = self._made_room
        self._unsettled.pause = self._pause
        channel.on_closed.append(self._on_closed)
        channel.raw.add_on_cancel_callback(lambda _: self.gone())

    async def start(self) -> None:
        """Make sure that the queues are there; nothing is consumed before somebody receives.

        Raises `QueueNotFound`.
        """
        there = [
            self._channel.request(spec.Queue.Declare(queue=queue, passive=True))
            for queue in self._queues
        ]
        try:
            await asyncio.gather(
                *there, self._channel.request(spec.Basic.Qos(prefetch_count=self._prefetch))
            )
        except Exception:
            self._check()
            raise
        self._settler.unsettled[self._channel.serial] = self._unsettled

    async def _consume(self) -> None:
        started = [self._channel.consume(queue, self._receiver(queue)) for queue in self._queues]
        with suppress(Exception):  # whoever receives is told
            await asyncio.gather(*(answer for _, answer in started))
            self._tags = [tag for tag, _ in started]
        self._starting = None

    async def _pause(self) -> None:
        """Take nothing more for now: before a release, or its copy comes straight back into our own buffer.

        Whoever releases and asks for more is served again; one who drains has nothing in the buffer
        that nobody started, which the broker would give to the next consumer as taken over.
        """
        if self._wake is None and self._channel.closed is None:
            await self._stop()

    async def _stop(self) -> None:
        """Consume no more; what was on its way is here after it."""
        if self._starting is not None:
            await asyncio.shield(self._starting)
        if ending := self._cancel():
            await asyncio.wait(ending)

    def _cancel(self) -> list[asyncio.Future[Any]]:
        """End the consumers; the answers to it, of those too that are being ended already."""
        tags, self._tags = self._tags, []
        under_way = [answer for answer in self._ending if not answer.done()]
        self._ending = [*under_way, *(self._channel.cancel(tag) for tag in tags)]
        return self._ending

    def _receiver(self, queue: str) -> Callable[..., None]:
        def on_message(_: object, method: Any, properties: Properties, body: bytes) -> None:
            held = HeldMessage(queue, method, properties, body)
            self._unsettled.add(held)
            if not self._settler.defers(properties, lambda: self._take_in(held)):
                self._take_in(held)

        return on_message

    def _take_in(self, held: HeldMessage) -> None:
        if held.tag in self._unsettled.held:
            heappush(self._buffer, (-held.level, held.tag, held))
            self._made_room()
            if self._paused:
                self._release_unseen()

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Hand out what is there, or wait for it.

        Raises after a loss, and `QueueNotFound` once the queue was deleted.
        """
        self._check()
        await asyncio.sleep(
            0
        )  # a consumer that always finds something must not keep the loop for itself
        await self._come(self._loop.time() + timeout)
        if self._closed or self._paused:
            return []
        self._check()
        if self._careful:
            # the broker reads this before any settlement, which would make room for the next
            # message
            self._cancel()
        return self._hand_out(limit)

    async def _come(self, deadline: float) -> None:
        """Return when there is something to hand out, when there will be nothing any more, and at the deadline."""
        while self._error is None and not (self._closed or self._paused):
            now = self._loop.time()
            if self._buffer and self._room():
                higher = self._kept_back()
                if higher is None or now >= deadline:
                    return
                await self._ask_for(higher, deadline - now)
            elif not self._tags and self._room():
                self._starting = self._starting or self._loop.create_task(self._consume())
                await asyncio.shield(self._starting)
                deadline = max(deadline, self._loop.time() + _A_MOMENT)
            elif now < deadline:
                await self._wait(deadline - now)
            else:
                if self._careful:
                    await self._stop()
                return

    def _kept_back(self) -> str | None:
        """Return a band above all that we have, of which our prefetch has kept something back until just now."""
        best = -self._buffer[0][0]
        return next((queue for queue, level in self._unsettled.full.items() if level > best), None)

    async def _ask_for(self, queue: str, patience: float) -> None:
        """Give the broker the time to send what a band has, if it has anything: a quorum queue takes its while to settle."""
        answer = await self._channel.request(spec.Queue.Declare(queue=queue, passive=True))
        if answer.message_count and queue in self._unsettled.full:
            await self._wait(min(patience, _A_WHILE))
        self._unsettled.full.pop(queue, None)

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """Acknowledge at once; store successors and given-back copies in one batch, then let go of their sources."""
        if not any(isinstance(it, Release) for it in batch):
            return await self._settler.settle(batch, timeout)

        answered: asyncio.Future[None] = self._loop.create_future()
        self._given_back.add(answered)
        try:
            return await self._settler.settle(batch, timeout)
        finally:
            self._given_back.discard(answered)
            answered.set_result(None)

    async def prove(self, *, timeout: float) -> bool:
        """Ask something on the same channel: the broker answers that after it has read the acknowledgements."""
        try:
            async with asyncio.timeout(timeout):
                await self._unsettled.prove()
        except Exception:  # noqa: BLE001 - lost, closed or silent: nothing is proven
            return False
        return True

    async def pause(self) -> None:
        """Consume no more, and release what came and was not asked for: the broker would mark it as it marks a crash."""
        self._paused = True
        self._rouse()
        # not before the broker has said that they have begun; what was on its way is here after it
        await self._stop()
        self._release_unseen()
        while self._releasing is not None:
            await asyncio.shield(self._releasing)

    async def close(self) -> None:
        """Stop; what is still held comes back to its queue."""
        if self._closed:
            return
        try:
            try:
                with suppress(Exception):
                    async with asyncio.timeout(_LAST_WORD):
                        await self.pause()
            finally:
                self.end()
                self._settler.unsettled.pop(self._channel.serial, None)
            with suppress(Exception):
                async with asyncio.timeout(_LAST_WORD):
                    await (
                        self._channel.return_all()
                    )  # the queues know of it now, and not some time after the close
            await self._channel.close()
        finally:  # also when we are cancelled: the connection may last, and would keep what was sent to this channel
            self._channel.abandon()

    def _release_unseen(self) -> None:
        """Begin to give back what is in the buffer, unless that is under way."""
        if self._buffer and self._releasing is None and not self._closed:
            self._releasing = self._loop.create_task(self._release_buffer())

    async def _release_buffer(self) -> None:
        """Release what is in the buffer, and what comes into it meanwhile, in the order of delivery.

        A copy goes to the end of its level. What was handed out is older, so what is being released
        of that is stored first (G9). What has no answer is left to the close, which gives it back
        as after a crash.
        """
        try:
            while self._buffer and not self._closed:
                if self._given_back:
                    await asyncio.wait(tuple(self._given_back))
                    continue

                unseen, self._buffer = sorted(self._buffer), []
                now, ttl = self._clock.now(), self._topology.ttl(self.queue)
                deliveries = [self._unsettled.hand_out(held, ttl, now) for _, _, held in unseen]
                with suppress(Exception):
                    await self._settler.settle(
                        [Release(it.receipt) for it in deliveries], _RELEASED
                    )
        finally:
            self._releasing = None

    def end(self) -> None:
        """End a waiting receive, and write what was settled; what is being settled comes back with the rest."""
        self._closed = True
        self.on_end()
        self._unsettled.drop_all()
        self._buffer.clear()
        self._rouse()

    def gone(self) -> None:
        """The queue was deleted."""
        self._fail(missing(self.queue))

    def _fail(self, error: Exception) -> None:
        """Take note that there is nothing to consume any more; nothing that is held is ours.

        Our channel ends with it: others of our queues may still be there, and would send to nobody.
        """
        if self._error is None:
            self._error = error
        self._buffer.clear()
        self._unsettled.drop_all()
        self._settler.unsettled.pop(self._channel.serial, None)
        self.on_end()
        self._channel.abandon()
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _check(self) -> None:
        if self._error is not None and not self._closed:
            raise self._error
        if self._closed:
            raise ConnectionLost(
                f"the subscription of queue {self.queue!r} is closed; subscribe again"
            )

    def _room(self) -> bool:
        return self._unsettled.out < self._prefetch

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
        now, ttl = self._clock.now(), self._topology.ttl(self.queue)
        while self._buffer and self._room() and len(deliveries) < limit:
            deliveries.append(self._unsettled.hand_out(heappop(self._buffer)[2], ttl, now))
        return deliveries

    def _on_closed(self, reason: BaseException) -> None:
        if closed_by(reason, NOT_FOUND):
            self.gone()
        elif not self._closed:
            self._fail(reason if isinstance(reason, Exception) else ConnectionLost(f"{reason!r}"))
        self._unsettled.drop_all()
