"""The answering side of requests: what a handler returned, sent to the asker's reply queue."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqcore.errors import QueueNotFound
from mqcore.messages.codec import Codecs, encode_any
from mqcore.messages.message import Message, new_id
from mqcore.rules.redact import describe_error
from mqcore.rules.retry import Ending, Failure, HandlerResult

if TYPE_CHECKING:
    from mqcore.connection.connection import Connection
    from mqcore.publishing.publisher import Publisher
    from mqcore.rules.retry import Decision

__all__ = ["ERROR_TYPE", "REPLY_QUEUES", "EncodedResult", "Replies"]

ERROR_TYPE = "application/vnd.mqcore.error+json"
"""The content type of a reply that says why there is no result."""
REPLY_QUEUES = "mq.reply."
"""How the names of our reply queues begin."""
_REPLY_TIMEOUT = 5.0


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
        await self._send(request, json.dumps(record).encode(), ERROR_TYPE)

    def _is_reply_queue(self, name: object) -> bool:
        return isinstance(name, str) and name.startswith(
            (REPLY_QUEUES, *self._connection.backend.reply_queues)
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
                    f"{REPLY_QUEUES}… only"
                )
                self._events.emit("reply.failed", REPLY_QUEUES, request.id, error=error)
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
