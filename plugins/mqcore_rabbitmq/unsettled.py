"""The deliveries of one channel that are not settled yet, and their acknowledgements.

Every delivery has a tag, and tags only grow. Acknowledgements are written once per loop turn: one
for all tags below the lowest open one, and one for each other tag. So a slow first handler holds
back the credit of one message, not of all.
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
    """One delivery. `is_out`: it was handed out; `is_settling`: a settlement of it is under way."""

    __slots__ = (
        "body",
        "expires",
        "is_out",
        "is_settling",
        "level",
        "properties",
        "queue",
        "redelivered",
        "tag",
        "takeovers",
    )

    def __init__(self, queue: str, method: Any, properties: Properties, body: bytes) -> None:
        self.queue, self.properties, self.body = queue, properties, body
        self.tag: int = method.delivery_tag
        self.level = level_of(properties)
        was_released, takeovers = released_as(properties)
        self.redelivered: bool = method.redelivered or was_released
        # AMQP has a flag, not a count: several takeovers in a row count once.
        self.takeovers: int = takeovers + bool(method.redelivered)
        self.expires: float | None = None
        self.is_out = self.is_settling = False

    def message(self, ttl: float | None, now: float) -> Message:
        """Return the message, delivered from a queue with this ttl; its expiry is kept."""
        message = message_of(self.properties, self.body, ttl, now)
        if self.queue == LOST:
            message = parked(self.properties, message)
        self.expires = message.expires_at
        return message


class Unsettled:
    """The open deliveries of one channel.

    `on_room` is called after each settlement, `pause` before a release.
    """

    def __init__(self, channel: Channel, generation: bytes, prefetch: int = 0) -> None:
        self.channel = channel
        self.held: dict[int, HeldMessage] = {}
        self.out = 0
        """How many are handed out."""
        self.on_room: Callable[[], None] = lambda: None
        self.pause: Callable[[], Awaitable[object]] = partial(asyncio.sleep, 0)
        self.full: dict[str, int] = {}
        """Queues whose prefetch was used up until a moment ago, and their levels.

        The broker may have more of these messages.
        """
        self._generation = generation
        self._settled: list[int] = []
        self.prefetch = prefetch
        """How many messages of each queue the broker sends before settlements."""
        self._by_queue: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()

    @property
    def alive(self) -> bool:
        """Whether the channel still holds these deliveries."""
        return self.channel.closed is None

    def holds(self, message: HeldMessage) -> bool:
        """Whether the channel still holds this delivery."""
        return self.alive and message.tag in self.held

    def add(self, message: HeldMessage) -> None:
        """Add a delivery. Calls must be in the order of the tags: the first one is the lowest."""
        self.held[message.tag] = message
        self._by_queue[message.queue] += 1
        self.full.pop(message.queue, None)

    def hand_out(self, held: HeldMessage, ttl: float | None, now: float) -> Delivery:
        """Return a delivery for core."""
        message = held.message(ttl, now)
        expires_in = None if message.expires_at is None else message.expires_at - now
        return Delivery(
            message,
            self.receipt(held),
            expires_in,
            held.redelivered,
            held.takeovers,
            counted=False,
            unreadable=held.properties.unreadable,
        )

    def receipt(self, message: HeldMessage) -> bytes:
        """Hand a delivery out, and return its receipt: generation, channel and tag."""
        message.is_out = True
        self.out += 1
        return _RECEIPT.pack(self._generation, self.channel.serial, message.tag)

    def ack(self, message: HeldMessage) -> None:
        """Acknowledge a delivery by the end of this loop turn."""
        self._remove(message)
        self._settled.append(message.tag)
        if len(self._settled) == 1:
            self._loop.call_soon(self.flush)

    async def prove(self) -> None:
        """Return when the broker has read all acknowledgements up to now.

        It answers the requests of a channel in their order; this one changes nothing.
        """
        self.flush()
        await self.channel.request(spec.Basic.Qos(prefetch_count=self.prefetch))

    def give_back(self, message: HeldMessage) -> None:
        """Return a delivery to its queue; the broker will mark it as redelivered."""
        self._remove(message)
        self.channel.send(spec.Basic.Nack(delivery_tag=message.tag, requeue=True))

    def drop_all(self) -> None:
        """Forget all deliveries, after the acknowledgements that wait are written."""
        self.flush()
        self.held.clear()
        self._by_queue.clear()
        self.out = 0

    def flush(self) -> None:
        """Write the acknowledgements that wait, now."""
        settled, self._settled = self._settled, []
        if not settled or not self.alive:
            return

        settled.sort()
        lowest_open = next(iter(self.held), settled[-1] + 1)
        together = sum(tag < lowest_open for tag in settled)

        if together:
            last = settled[together - 1]
            self.channel.send(spec.Basic.Ack(delivery_tag=last, multiple=together > 1))
        for tag in settled[together:]:
            self.channel.send(spec.Basic.Ack(delivery_tag=tag))
        self.channel.flush()

    def _remove(self, message: HeldMessage) -> None:
        if self.held.pop(message.tag, None) is None:
            return

        if self._by_queue[message.queue] >= self.prefetch:
            self.full[message.queue] = message.level
        self._by_queue[message.queue] -= 1
        if message.is_out:
            self.out -= 1
            self.on_room()


def read_receipt(receipt: bytes, generation: bytes) -> tuple[int, int]:
    """Return channel and tag of a receipt of this generation, zeros for any other."""
    if len(receipt) != _RECEIPT.size or not receipt.startswith(generation):
        return 0, 0
    _, serial, tag = _RECEIPT.unpack(receipt)
    return serial, tag
