"""Declaring: many queues in one round trip, and what the broker has against it as a typed error.

Requests go in a row with `nowait`, and one that is answered ends them; when it is not, the broker has closed the channel, and its
words tell which queue it was and why.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from pika import spec
from pika.exceptions import ChannelClosedByBroker

from mqcore.spi import QueueNotFound, TopologyMismatch
from mqcore_rabbitmq.errors import NOT_FOUND, PRECONDITION_FAILED, RESOURCE_LOCKED, closed_by
from mqcore_rabbitmq.ladder import declare_exit, exit_to
from mqcore_rabbitmq.layout import Layout, Server
from mqcore_rabbitmq.link import Channel, Link

__all__ = ["Admin", "missing"]

_QUEUE = re.compile(r"queue '([^']*)'")
_KNOWN = {"x-max-length": "max_length", "x-message-ttl": "retention", "x-queue-type": "durability"}


class Admin:
    """Requests about queues and exchanges, on a channel of their own that a refusal may close."""

    def __init__(self, link: Link, server: Server) -> None:
        self.link = link
        self.server = server
        self._idle: list[Channel] = []

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Channel]:
        """Lend a channel; one that came through it unharmed is lent again."""
        while self._idle and self._idle[-1].closed is not None:
            self._idle.pop()
        channel = self._idle.pop() if self._idle else await self.link.channel()
        try:
            yield channel
        except BaseException:
            channel.abandon()
            raise
        if channel.closed is None:
            self._idle.append(channel)

    async def declare(self, layouts: Iterable[Layout]) -> None:
        """Make sure of queues and of the way by which delayed messages reach them. Raises `TopologyMismatch`."""
        try:
            async with self.channel() as channel:
                declare_exit(channel)
                for layout in layouts:
                    for queue in layout.queues:
                        arguments = layout.arguments(queue, self.server)
                        channel.tell(spec.Queue.Declare(queue=queue, durable=True, nowait=True, arguments=arguments))
                        channel.tell(exit_to(queue))
                await channel.ask(spec.Basic.Qos(prefetch_count=0))
        except ChannelClosedByBroker as error:
            if error.reply_code == PRECONDITION_FAILED:
                raise _mismatch(error) from error
            raise

    async def temporary(self, layout: Layout, link: Link) -> None:
        """Declare a queue that goes with the connection `link`."""
        channel = await link.channel()
        try:
            arguments = layout.arguments(layout.name, self.server)
            channel.tell(
                spec.Queue.Declare(
                    queue=layout.name, exclusive=True, auto_delete=False, nowait=True, arguments=arguments
                )
            )
            channel.tell(exit_to(layout.name))
            await channel.ask(spec.Basic.Qos(prefetch_count=0))
        finally:
            await channel.close()

    async def counts(self, queues: Sequence[str]) -> list[spec.Queue.DeclareOk | None]:
        """Ask how many ready messages and consumers each has; None for one that is missing or another connection's own."""
        found: list[spec.Queue.DeclareOk | None] = []
        while len(found) < len(queues):
            async with self.channel() as channel:
                asked = [channel.ask(spec.Queue.Declare(queue=queue, passive=True)) for queue in queues[len(found) :]]
                for future in asked:
                    try:
                        found.append(await future)
                    except ChannelClosedByBroker as error:
                        if not (closed_by(error, NOT_FOUND) or closed_by(error, RESOURCE_LOCKED)):
                            raise
                        found.append(None)
                        break
                for future in asked:
                    if future.done() and not future.cancelled():
                        future.exception()
        return found

    async def run(self, requests: Callable[[Channel], None]) -> None:
        """Send requests that have no answers of their own, and wait until the broker has done them."""
        async with self.channel() as channel:
            requests(channel)
            await channel.ask(spec.Basic.Qos(prefetch_count=0))


def missing(queue: str) -> QueueNotFound:
    """Return the error for a queue that is not there."""
    return QueueNotFound(f"RabbitMQ has no queue {queue!r}: declare it first")


def _mismatch(error: ChannelClosedByBroker) -> TopologyMismatch:
    text = str(error.reply_text)
    found = _QUEUE.search(text)
    queue = found[1] if found else "?"
    setting = next((f" ({ours})" for theirs, ours in _KNOWN.items() if theirs in text), "")
    return TopologyMismatch(
        f"queue {queue!r} exists on RabbitMQ with other settings{setting} than it was declared with: {text}. "
        "Use the same settings everywhere, or delete the queue first"
    )
