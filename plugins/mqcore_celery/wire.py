"""A message of kombu as the bytes that mqcore carries, and back. Pure.

    b"kombu1" | length of the head, 4 bytes | head: JSON | body, as it is

The head has the headers, AMQP's own properties, and where the message was published. The body is
not encoded again.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

from kombu.utils.json import dumps, loads

__all__ = ["ForeignMessage", "Parts", "packed", "unpacked"]

_MAGIC = b"kombu1"
_LENGTH = struct.Struct(">I")
_START = len(_MAGIC) + _LENGTH.size
_PROPERTIES = frozenset(
    {
        "app_id",
        "cluster_id",
        "correlation_id",
        "delivery_mode",
        "expiration",
        "message_id",
        "priority",
        "reply_to",
        "timestamp",
        "type",
        "user_id",
    }
)
"""AMQP's own. Users also publish with arguments of theirs, which JSON may not carry."""


class ForeignMessage(ValueError):
    """The body was not written by this transport."""


@dataclass(frozen=True)
class Parts:
    """A message of kombu, taken apart."""

    body: bytes
    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)
    exchange: str = ""
    routing_key: str = ""


def packed(message: dict[str, Any], exchange: str, routing_key: str) -> bytes:
    """Return the bytes of what `Channel.prepare_message` has made."""
    properties, body = message["properties"], message["body"]
    head = {
        "content-type": message["content-type"],
        "content-encoding": message["content-encoding"],
        "headers": message["headers"],
        "properties": {
            name: value
            for name, value in properties.items()
            if name in _PROPERTIES and value is not None
        },
        "exchange": exchange,
        "routing-key": routing_key,
    }
    text = dumps(head).encode()
    raw = body.encode() if isinstance(body, str) else bytes(body)
    return b"".join((_MAGIC, _LENGTH.pack(len(text)), text, raw))


def unpacked(data: bytes) -> Parts:
    """Return the parts of a message. Raises `ForeignMessage` for bytes of another origin."""
    try:
        if not data.startswith(_MAGIC):
            raise ValueError("it begins differently")  # noqa: TRY301 - every failure goes one way
        (length,) = _LENGTH.unpack_from(data, len(_MAGIC))
        head = loads(data[_START : _START + length])
        return Parts(
            body=data[_START + length :],
            content_type=head["content-type"],
            content_encoding=head["content-encoding"],
            headers=head["headers"],
            properties=head["properties"],
            exchange=head["exchange"],
            routing_key=head["routing-key"],
        )
    except Exception as error:
        raise ForeignMessage(
            f"the message was not published by mqcore's transport for Celery ({error}). Workers "
            "and publishers of one queue must use the same transport"
        ) from error
