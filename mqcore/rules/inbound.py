"""How a received message is read: undo its transforms, decode its body, judge failures. Pure.

    stored message ─ undo transforms ─► message as published ─ decode ─► value
                           │                                     │
                           └────────── HandlerResult ◄───────────┘

Handlers, process slots, batches, the pull API and replies all read their messages here. The stored
message is not changed: retries, dead letters and redrives have the same body, byte for byte (G11).
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from mqcore.errors import DecodeError, ValidationError
from mqcore.messages.encoding import undone
from mqcore.rules.retry import Ending, Failure, HandlerResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.messages.codec import Codecs, Payload
    from mqcore.messages.delivery import Delivery
    from mqcore.messages.message import Message

__all__ = ["Inbound"]

T = TypeVar("T")


class Inbound:
    """How one broker reads what it receives: its transforms and its codecs."""

    def __init__(
        self, codecs: Codecs, transforms: Sequence[Callable[[Message], Message]] = ()
    ) -> None:
        """`transforms` are the `incoming` hooks of the middlewares, in the order of the calls."""
        self.codecs = codecs
        self._transforms = transforms

    def undo(self, message: Message) -> Message:
        """Return the message as it was published, before its transforms.

        A transform may change the body, the content type, the encoding and the headers. Everything
        else is taken from the stored message, which is what will be settled. Raises `DecodeError`
        when a transform fails.
        """
        for transform in self._transforms:
            try:
                plain = transform(message)
                message = replace(
                    message,
                    body=plain.body,
                    content_type=plain.content_type,
                    encoding=plain.encoding,
                    headers=MappingProxyType(dict(plain.headers)),
                )
            except Exception as error:
                name = getattr(transform, "__qualname__", repr(transform))
                raise DecodeError(f"{name} failed: {type(error).__name__}: {error}") from error

        return message

    def value(self, payload: Payload[T], message: Message) -> T:
        """Return the value of a message whose transforms are undone.

        Raises `DecodeError` when the body cannot be read, `ValidationError` when it does not match
        the payload type.
        """
        return payload.decode(message.body, message.content_type, self.codecs, message.encoding)

    def body(self, message: Message) -> bytes:
        """Return the body without its content encoding; `DecodeError` when that fails."""
        return undone(message.body, message.encoding, None, self.codecs.most)

    def opened(self, delivery: Delivery) -> Delivery | HandlerResult:
        """Return the delivery as its handler sees it, or the result that dead-letters it (G11)."""
        if not self._transforms:
            return delivery

        try:
            return replace(delivery, message=self.undo(delivery.message))
        except DecodeError as error:
            return _judged(error)

    def decoded(self, payload: Payload[Any], message: Message) -> Any:
        """Return the value, or the `HandlerResult` that dead-letters the message (G11)."""
        try:
            return self.value(payload, message)
        except (DecodeError, ValidationError) as error:
            return _judged(error)


def _judged(error: DecodeError | ValidationError) -> HandlerResult:
    """Return what an error of reading means: `undecodable` or `invalid`."""
    is_unreadable = isinstance(error, DecodeError)
    ending = Ending.UNDECODABLE if is_unreadable else Ending.INVALID
    return HandlerResult(ending, Failure.of(error))
