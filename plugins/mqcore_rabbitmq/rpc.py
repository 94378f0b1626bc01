"""Requests about queues and exchanges: many in one round trip, and what the broker has against them as an answer or a typed error.

    run(request, request, …) ─► one channel ─► the answers │ the broker closes it: 404 no, 406 a mismatch, else as it is

A refusal closes its channel, so they are lent, and one that came through it unharmed is lent again.
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
    """Requests on one connection."""

    def __init__(self, link: Link, server: Server) -> None:
        self.link = link
        self.server = server
        self._idle: list[Channel] = []

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Channel]:
        """Lend a channel."""
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
        """Send requests in a row; their answers.

        Raises what closed the channel for the first that is refused.
        """
        async with self.channel() as channel:
            return await gather(*map(channel.request, requests))

    async def has(self, request: Any) -> bool:
        """Send a request that fails for what does not exist; whether it does, were it another connection's own."""
        try:
            await self.run(request)
        except ChannelClosedByBroker as error:
            if not closed_by(error, NOT_FOUND, RESOURCE_LOCKED):
                raise
            return closed_by(error, RESOURCE_LOCKED)
        return True

    async def declare(self, layouts: Iterable[Layout]) -> None:
        """Make sure of queues and of the way by which delayed messages reach them.

        Raises `TopologyMismatch`.

        A temporary one goes with this connection. Where somebody is still deleting what was
        declared a moment ago, its way is not found: then all is declared again.
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
        """Ask how many ready messages and consumers each has; without those that are missing or another connection's own."""
        found: dict[str, spec.Queue.DeclareOk] = {}
        left = deque(dict.fromkeys(queues))
        while left:  # the first that is missing ends a row
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
        """As `counts`, for a queue and those that belong to it.

        Raises `QueueNotFound` for the first.
        """
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
        f"queue {queue!r} exists on RabbitMQ with other settings{setting} than it was declared "
        f"with: {text}. "
        "RabbitMQ fixes them when a queue is made: declare what is there, take it as it is with "
        "declare=False, or redrive or "
        f'consume what it holds and delete it with "mqcore queues delete {queue}"'
    )
