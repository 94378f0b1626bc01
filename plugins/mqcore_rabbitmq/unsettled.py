"""What one channel has delivered and nobody has settled, and acknowledging it with few words.

Every delivery has a tag, and tags only grow. Settled ones are told to the broker once a loop turn:
those below the lowest open tag together, the others one by one, so that a slow first handler holds
back one credit and not all.
"""

import asyncio
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from pika import spec

from mqcore.spi import Delivery, Message
from mqcore_rabbitmq.frames import Properties
from mqcore_rabbitmq.layout import LOST
from mqcore_rabbitmq.link import Channel
from mqcore_rabbitmq.message_format import level_of, message_of, parked, released_as

__all__ = ["HeldMessage", "Unsettled", "read_receipt"]

_RECEIPT = struct.Struct(">4sIQ")


class HeldMessage:
    """One delivery. `out`: it has been handed out; `busy`: a settlement of it is under way."""

    __slots__ = (
        "body",
        "busy",
        "expires",
        "level",
        "out",
        "properties",
        "queue",
        "redelivered",
        "tag",
        "takeovers",
    )

    def __init__(self, queue: str, method: Any, properties: Properties, body: bytes) -> None:
        self.queue, self.tag, self.properties, self.body = (
            queue,
            method.delivery_tag,
            properties,
            body,
        )
        self.level = level_of(properties)
        given_back, before = released_as(properties)
        self.redelivered: bool = method.redelivered or given_back
        self.takeovers: int = before + bool(
            method.redelivered
        )  # AMQP has a flag, and says once what happened twice
        self.expires: float | None = None
        self.out = self.busy = False

    def message(self, ttl: float | None, now: float) -> Message:
        """Return what was delivered from a queue with this ttl; when it expires is kept from now on."""
        message = message_of(self.properties, self.body, ttl, now)
        if self.queue == LOST:
            message = parked(self.properties, message)
        self.expires = message.expires_at
        return message


class Unsettled:
    """The open deliveries of one channel.

    `on_room` is called when one was settled, `pause` before one is released.
    """

    def __init__(self, channel: Channel, generation: bytes, prefetch: int = 0) -> None:
        self.channel = channel
        self.held: dict[int, HeldMessage] = {}
        self.out = 0
        self.on_room: Callable[[], None] = lambda: None
        self.pause: Callable[[], Awaitable[object]] = partial(asyncio.sleep, 0)
        self._generation = generation
        self._settled: list[int] = []
        self._prefetch = prefetch
        self._by_queue: Counter[str] = Counter()
        self.full: dict[str, int] = {}
        """Queues of which the broker may have more that our prefetch has kept back until just now, and their levels.
        """
        self._loop = asyncio.get_running_loop()

    @property
    def alive(self) -> bool:
        """Whether what is in here is still ours."""
        return self.channel.closed is None

    def holds(self, held: HeldMessage) -> bool:
        """Whether a delivery is still ours."""
        return self.alive and held.tag in self.held

    def add(self, held: HeldMessage) -> None:
        """Take note of a delivery.

        Must be called in the order of the tags: the first that is held is the lowest.
        """
        self.held[held.tag] = held
        self._by_queue[held.queue] += 1
        self.full.pop(held.queue, None)

    def hand_out(self, held: HeldMessage, ttl: float | None, now: float) -> Delivery:
        """Return a delivery as core gets it."""
        message = held.message(ttl, now)
        left = None if message.expires_at is None else message.expires_at - now
        return Delivery(
            message,
            self.receipt(held),
            left,
            held.redelivered,
            held.takeovers,
            counted=False,
            unreadable=held.properties.unreadable,
        )

    def receipt(self, held: HeldMessage) -> bytes:
        """Hand one out, and return what a late use can be told by: generation, channel and tag."""
        held.out = True
        self.out += 1
        return _RECEIPT.pack(self._generation, self.channel.serial, held.tag)

    def ack(self, held: HeldMessage) -> None:
        """Let go of a message, by the end of this loop turn."""
        self._forget(held)
        self._settled.append(held.tag)
        if len(self._settled) == 1:
            self._loop.call_soon(self.flush)

    async def prove(self) -> None:
        """Return when the broker has read all acknowledgements so far: it answers a channel's requests in their order."""
        self.flush()
        await self.channel.request(
            spec.Basic.Qos(prefetch_count=self._prefetch)
        )  # as it is already

    def give_back(self, held: HeldMessage) -> None:
        """Give a message back to its queue as it is; the broker will say that it was delivered before."""
        self._forget(held)
        self.channel.send(spec.Basic.Nack(delivery_tag=held.tag, requeue=True))

    def drop_all(self) -> None:
        """Forget everything: the queue has gone, or the channel.

        What was settled is told first, while it is known what was not.
        """
        self.flush()
        self.held.clear()
        self._by_queue.clear()
        self.out = 0

    def flush(self) -> None:
        """Write the acknowledgements that wait."""
        settled, self._settled = self._settled, []
        if not settled or not self.alive:
            return
        settled.sort()
        lowest = next(iter(self.held), settled[-1] + 1)
        together = sum(tag < lowest for tag in settled)
        if together:
            self.channel.send(
                spec.Basic.Ack(delivery_tag=settled[together - 1], multiple=together > 1)
            )
        for tag in settled[together:]:
            self.channel.send(spec.Basic.Ack(delivery_tag=tag))

    def _forget(self, held: HeldMessage) -> None:
        if self.held.pop(held.tag, None) is None:
            return
        if self._by_queue[held.queue] >= self._prefetch:
            self.full[held.queue] = held.level
        self._by_queue[held.queue] -= 1
        if held.out:
            self.out -= 1
            self.on_room()


def read_receipt(receipt: bytes, generation: bytes) -> tuple[int, int]:
    """Return channel and tag of a receipt of this generation, zeros for any other."""
    if len(receipt) != _RECEIPT.size or not receipt.startswith(generation):
        return 0, 0
    _, serial, tag = _RECEIPT.unpack(receipt)
    return serial, tag
