"""Request and reply: a publish whose answer comes back through the asking broker's reply queue.

    request() ─► message with reply_to, correlation_id, ttl = timeout ─► handler
    caller ◄──── mq.reply.… ◄──── reply

A Broker has one temporary reply queue. A request has one reply, when its final result is known. A
reply whose queue does not exist any more is counted as an event and blocks nothing.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from mqcore.consuming.grace import Grace
from mqcore.consuming.replies import ERROR_TYPE, REPLY_QUEUES
from mqcore.defaults import REQUEST_TIMEOUT
from mqcore.errors import (
    ConnectionLost,
    RemoteError,
    RequestTimeout,
    ValidationError,
)
from mqcore.messages.codec import Payload
from mqcore.messages.message import Message, new_id
from mqcore.publishing.options import check_target, duration
from mqcore.queue import name_of
from mqcore.rules.capabilities import Capability
from mqcore.rules.retry import Ending, HandlerResult
from mqcore.spi import QueueSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.connection.connection import Connection
    from mqcore.consuming.receiver import Receiver
    from mqcore.publishing.options import PublishOptions, Target
    from mqcore.publishing.publisher import Publisher
    from mqcore.rules.inbound import Inbound

__all__ = ["Requests"]

T = TypeVar("T")
_DONE = HandlerResult(Ending.SUCCEEDED)


class Requests:
    """The asking side of requests, one for each Broker."""

    def __init__(
        self,
        connection: Connection,
        publisher: Publisher,
        inbound: Inbound,
        make_receiver: Callable[[str], Awaitable[Receiver]],
    ) -> None:
        """`make_receiver` consumes the reply queue, once there is one."""
        self._connection = connection
        self._publisher = publisher
        self._inbound = inbound
        self._make_receiver = make_receiver
        self._queue = f"{REPLY_QUEUES}{new_id()}"
        self._waiting: dict[str, asyncio.Future[Message | None]] = {}
        self._opening = asyncio.Lock()
        self._receiver: Receiver | None = None
        self._reader: asyncio.Task[None] | None = None

    async def request(self, to: Target[T], payload: T, result: Any, options: PublishOptions) -> Any:
        """Publish and wait for the handler's return value; see `Broker.request`."""
        check_target(to, options)
        name = name_of(to)
        self._connection.check_loop(f"requesting of {name!r}")
        limit = duration("timeout", options.get("timeout", REQUEST_TIMEOUT), name)
        if "ttl" in options:
            raise ValidationError(
                f"a request to {name!r} takes no ttl: its timeout is the ttl of its message"
            )

        expected: Payload[Any] = Payload(Any if result is None else result)
        expires = self._connection.capabilities.has(
            Capability.EXPIRY
        )  # else a late request is handled although its caller has ended
        reply: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        correlation = new_id()
        self._waiting[correlation] = reply

        try:
            async with self._connection.clock.timeout(limit):
                await self._listen()
                await self._publisher.publish_message(
                    to,
                    payload,
                    lambda message: replace(
                        message, reply_to=self._queue, correlation_id=correlation
                    ),
                    {**options, "ttl": limit if expires else None, "timeout": limit},
                )
                if (message := await reply) is None:
                    raise ConnectionLost(
                        f"this broker was closed before {name!r} replied; its handler may or "
                        "may not have run"
                    )
                return self._value(message, expected)
        except TimeoutError as error:
            raise RequestTimeout(
                f"no reply from {name!r} within {limit:g} s; its handler may or may not have run"
            ) from error
        finally:
            del self._waiting[correlation]

    def _value(self, message: Message, expected: Payload[Any]) -> Any:
        message = self._inbound.undo(message)
        if message.content_type == ERROR_TYPE:
            raise _remote_error(self._inbound.body(message))
        return self._inbound.value(expected, message)

    async def _listen(self) -> None:
        """Declare the reply queue and read it, at the first request."""
        async with self._opening:
            if self._receiver is None:
                await self._connection.declare([QueueSpec(name=self._queue, role="temporary")])
                self._receiver = await self._make_receiver(self._queue)
                self._reader = asyncio.create_task(self._read(self._receiver))

    async def _read(self, receiver: Receiver) -> None:
        while (held := await receiver.next()) is not None:
            message = held.delivery.message
            waiting = self._waiting.get(message.correlation_id or "")
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
            receiver.finish(held, _DONE)

    async def close(self, grace: Grace | None = None) -> None:
        """Stop listening; requests still waiting end with `ConnectionLost`.

        Waits for nothing unless a grace is given: the reply queue ends with its owner.
        """
        if self._receiver is not None:
            await self._receiver.close(grace or Grace(self._connection.clock, 0))
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(None)


def _remote_error(body: bytes) -> RemoteError:
    """Read an error reply as data; nothing in it is ever resolved to code."""
    try:
        record = json.loads(body)
        words = [str(record.get(name, "")) for name in ("reason", "type", "text")]
    except (ValueError, AttributeError, RecursionError):
        words = ["unreadable", "", "the error reply cannot be read"]
    return RemoteError(*words)
