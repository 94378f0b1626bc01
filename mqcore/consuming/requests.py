"""Request and reply: a publish whose answer comes back through the asking broker's reply queue.

    request() ─► message with reply_to, correlation_id, ttl = timeout ─► handler
    caller ◄──── mq.reply.… ◄──── reply

A Broker has one temporary reply queue. A request has one reply, when its final result is known. A
reply whose queue does not exist any more is counted as an event and blocks nothing.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from mqcore.consuming.grace import Grace
from mqcore.defaults import REQUEST_TIMEOUT
from mqcore.errors import (
    ConnectionLost,
    QueueNotFound,
    RemoteError,
    RequestTimeout,
    ValidationError,
)
from mqcore.messages.codec import Codecs, Payload, encode_any
from mqcore.messages.message import Message, new_id
from mqcore.publishing.options import duration
from mqcore.queue import name_of
from mqcore.rules.capabilities import Capability
from mqcore.rules.redact import describe_error
from mqcore.rules.retry import Ending, Failure, HandlerResult
from mqcore.spi import QueueSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.connection.connection import Connection
    from mqcore.consuming.receiver import Receiver
    from mqcore.publishing.options import PublishOptions, Target
    from mqcore.publishing.publisher import Publisher
    from mqcore.rules.inbound import Inbound
    from mqcore.rules.retry import Decision

__all__ = ["EncodedResult", "Replies", "Requests"]

T = TypeVar("T")
_ERROR_TYPE = "application/vnd.mqcore.error+json"
_REPLY_TIMEOUT = 5.0
_REPLY_QUEUES = "mq.reply."
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
        self._queue = f"{_REPLY_QUEUES}{new_id()}"
        self._waiting: dict[str, asyncio.Future[Message | None]] = {}
        self._opening = asyncio.Lock()
        self._receiver: Receiver | None = None
        self._reader: asyncio.Task[None] | None = None

    async def request(self, to: Target[T], payload: T, result: Any, options: PublishOptions) -> Any:
        """Publish and wait for the handler's return value; see `Broker.request`."""
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
        if message.content_type == _ERROR_TYPE:
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


@dataclass(frozen=True, slots=True)
class EncodedResult:
    """A handler's return value as it is sent."""

    body: bytes
    content_type: str


class Replies:
    """The answering side, one for each Broker: sends the replies of its handlers."""

    def __init__(self, connection: Connection, publisher: Publisher, codecs: Codecs) -> None:
        """`publisher` sends the replies, as plain messages to the reply queue of the request."""
        self._connection = connection
        self._events = connection.events
        self._publisher = publisher
        self._codecs = codecs

    def prepared(
        self, request: Message, result: HandlerResult, value: object
    ) -> tuple[HandlerResult, EncodedResult | None]:
        """Return the result and the reply to a request whose handler has returned `value`.

        The reply is None unless the handler succeeded. A value that cannot be written, or is too
        large to send (G12), is the handler's failure.
        """
        if result.ending is not Ending.SUCCEEDED:
            return result, None

        try:
            reply = (
                value
                if isinstance(value, EncodedResult)
                else EncodedResult(*encode_any(value, self._codecs))
            )
            message = Message(id=request.id, body=reply.body)
            self._publisher.composer.check_size(message, "the reply queue")
        except Exception as error:  # noqa: BLE001 - a user's value, written by a user's code
            return HandlerResult(Ending.FAILED, Failure.of(error)), None
        return result, reply

    async def succeed(self, request: Message, reply: EncodedResult) -> None:
        """Send what the handler returned."""
        await self._send(request, reply.body, reply.content_type)

    async def fail(
        self, request: Message, decision: Decision, result: HandlerResult | None
    ) -> None:
        """Send why there is no result: the reason, and the exception's type and text as data."""
        failure = result.failure if result else None
        record = {
            "reason": decision.reason.value if decision.reason else decision.verdict,
            "type": failure.type if failure else "",
            "text": failure.text if failure else "",
        }
        await self._send(request, json.dumps(record).encode(), _ERROR_TYPE)

    def _is_reply_queue(self, name: object) -> bool:
        return isinstance(name, str) and name.startswith(
            (_REPLY_QUEUES, *self._connection.backend.reply_queues)
        )

    async def _send(self, request: Message, body: bytes, content_type: str) -> None:
        if request.reply_to is None:
            return
        reply = Message(
            id=new_id(),
            body=body,
            content_type=content_type,
            correlation_id=request.correlation_id,
            priority=request.priority,
        )

        try:
            if not self._is_reply_queue(request.reply_to):
                # A publisher of requests must not make us write to queues that it may not write to.
                error = (
                    f"reply_to={request.reply_to!r:.100} is not a reply queue: a reply goes to "
                    f"{_REPLY_QUEUES}… only"
                )
                self._events.emit("reply.failed", _REPLY_QUEUES, request.id, error=error)
                return
            reply = self._publisher.composer.checked(reply, request.reply_to)
            await self._publisher.send(request.reply_to, reply, {}, _REPLY_TIMEOUT)
        except QueueNotFound:  # a redrive repeats requests whose caller has ended
            error = (
                "the reply queue does not exist: the caller of this request has ended, and its "
                "reply is dropped"
            )
            self._events.emit("reply.failed", request.reply_to, request.id, error=error)
        except Exception as failure:  # noqa: BLE001 - whatever it is: the request itself is settled all the same (G3)
            self._events.emit(
                "reply.failed", request.reply_to, request.id, error=describe_error(failure)
            )
