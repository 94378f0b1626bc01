"""Pipelined requests about queues and exchanges, with refusals as answers or typed errors.

    run(request, request, …) ─► one channel ─► the answers │ closed with 404, 406 or another code

A refusal closes its channel. So channels are borrowed, and reused if they stay open.
"""

import re
from asyncio import gather
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from pika import spec
from pika.exceptions import ChannelClosedByBroker

from mqcore.spi import TopologyMismatch
from mqcore_rabbitmq.errors import (
    NOT_FOUND,
    PRECONDITION_FAILED,
    RESOURCE_LOCKED,
    closed_by,
    missing,
)
from mqcore_rabbitmq.ladder import exit_to, foot
from mqcore_rabbitmq.layout import Layout, Server
from mqcore_rabbitmq.link import Channel, Link

__all__ = ["Rpc"]

_QUEUE = re.compile(r"queue '([^']*)'")
_TRIES = 10
_KNOWN = {"x-max-length": "max_length", "x-message-ttl": "retention", "x-queue-type": "durability"}


class Rpc:
    """Sends requests on one connection."""

    def __init__(self, link: Link, server: Server) -> None:
        self.link = link
        self.server = server
        self._idle: list[Channel] = []

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Channel]:
        """Borrow a channel."""
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

    async def run(self, *requests: Any) -> list[Any]:
        """Send requests at once and return their answers.

        Raises pika's error if the broker refuses one, which closes the channel.
        """
        async with self.channel() as channel:
            return await gather(*map(channel.request, requests))

    async def has(self, request: Any) -> bool:
        """Whether the object of a request exists, also if it is exclusive to another connection."""
        try:
            await self.run(request)
        except ChannelClosedByBroker as error:
            if not closed_by(error, NOT_FOUND, RESOURCE_LOCKED):
                raise
            return closed_by(error, RESOURCE_LOCKED)
        return True

    async def declare(self, layouts: Iterable[Layout]) -> None:
        """Declare queues, and bind them to the exit of the delay ladders.

        A temporary queue ends with this connection. If another process is deleting a queue just
        now, its binding fails: then all is declared again. Raises `TopologyMismatch`.
        """
        requests: list[Any] = [foot()]
        for layout in layouts:
            own = layout.spec.role == "temporary"
            for queue in layout.queues:
                arguments = layout.arguments(queue, self.server)
                requests.append(
                    spec.Queue.Declare(
                        queue=queue, durable=not own, exclusive=own, arguments=arguments
                    )
                )
                requests.append(exit_to(queue))

        for left in reversed(range(_TRIES)):
            try:
                await self.run(*requests)
            except ChannelClosedByBroker as error:
                if closed_by(error, PRECONDITION_FAILED):
                    raise _mismatch(error) from error
                if not left or not closed_by(error, NOT_FOUND):
                    raise
            else:
                return

    async def counts(self, queues: Iterable[str]) -> dict[str, spec.Queue.DeclareOk]:
        """Return the ready messages and consumers of each queue.

        Without queues that are missing, or exclusive to another connection.
        """
        found: dict[str, spec.Queue.DeclareOk] = {}
        left = deque(dict.fromkeys(queues))

        while left:  # the first missing queue closes the channel
            try:
                async with self.channel() as channel:
                    for answer in [
                        channel.request(spec.Queue.Declare(queue=queue, passive=True))
                        for queue in left
                    ]:
                        found[left[0]] = await answer
                        left.popleft()
            except ChannelClosedByBroker as error:
                if not closed_by(error, NOT_FOUND, RESOURCE_LOCKED):
                    raise
                left.popleft()
        return found

    async def count(self, queue: str, others: Iterable[str]) -> dict[str, spec.Queue.DeclareOk]:
        """As `counts`, for a queue and those that belong to it. Raises `QueueNotFound`."""
        found = await self.counts([queue, *others])
        if queue not in found:
            raise missing(queue)
        return found


def _mismatch(error: ChannelClosedByBroker) -> TopologyMismatch:
    text = str(error.reply_text)
    found = _QUEUE.search(text)
    queue = found[1] if found else "?"
    setting = next((f" ({ours})" for theirs, ours in _KNOWN.items() if theirs in text), "")
    return TopologyMismatch(
        f"queue {queue!r} exists on RabbitMQ with other settings{setting}: {text}. RabbitMQ cannot "
        "change them. Declare the existing settings, use the queue as it is with declare=False, or "
        f'empty it and delete it with "mqcore queues delete {queue}"'
    )
