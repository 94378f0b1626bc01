"""A message as AMQP carries it: body as it is, native properties where there are some, the rest as headers of text.

    Message ─ properties ─► broker ─► message_of ─► an equal Message

Any client can read it: `message_id`, `content_type`, `correlation_id`, `reply_to` and `priority` are the native ones, the user's
headers are headers. Ours begin with `mq-`. What begins with `x-` belongs to brokers and is never copied: a copy that kept its
`x-death` is confirmed and then silently dropped by 3.10, which takes it for a loop.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from pika import BasicProperties

from mqcore.spi import Message, new_id, pack, unpack

__all__ = [
    "DELAYED",
    "RELEASED",
    "ageless",
    "escaped",
    "expires_of",
    "level_of",
    "message_of",
    "properties",
    "released",
]

PRIORITY, EXPIRES, RELEASED, DELAYED, AGELESS = "mq-priority", "mq-expires", "mq-released", "mq-delayed", "mq-ageless"
HOP, LINEAGE = "mq-hop", "mq-lineage"
"""What `pack` writes and the driver reads: with the id they name one stored copy."""
_OURS, _BROKERS, _ESCAPED, _ATTEMPT = "mq-", "x-", "mq-as-", "mq-attempt"
_SELECT = ("CC", "BCC")
"""Headers by which a publisher sends copies elsewhere: as text they are an error that closes the channel, so ours are escaped."""
_DEFAULT, _HIGHEST = 5, 10
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def escaped(name: str) -> str:
    """Return the name by which a user's header travels."""
    return _ESCAPED + name if name in _SELECT else name


def properties(
    message: Message,
    expires: float | None,
    *,
    native: bool = True,
    delayed: float | None = None,
    ageless: bool = False,
) -> BasicProperties:
    """Return a message's properties.

    `native`: with AMQP's own priority. `delayed`: when it was sent on its way, if it waits first. `ageless`: the ttl of its queue
    was not known, and counts when it is received.
    """
    headers: dict[str, Any] = {}
    for name, value in message.headers.items():
        headers[escaped(name)] = value
    headers |= pack(message)
    headers[PRIORITY] = str(message.priority)
    if expires is not None:
        headers[EXPIRES] = repr(expires)
    if delayed is not None:
        headers[DELAYED] = repr(delayed)
    if ageless:
        headers[AGELESS] = "1"
    return BasicProperties(  # delivery_mode 2: persistent
        content_type=message.content_type,
        headers=headers,
        delivery_mode=2,
        priority=message.priority if native else None,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        message_id=message.id,
        timestamp=int(message.published_at) if message.published_at and message.published_at > 0 else None,
    )


def released(received: BasicProperties, message: Message, expires: float | None) -> BasicProperties:
    """Return the properties of a message that is given back: those it came with, and the mark that nothing has started."""
    headers = {name: value for name, value in (received.headers or {}).items() if not name.startswith(_BROKERS)}
    for name in _SELECT:
        headers.pop(name, None)
    headers[RELEASED] = "1"
    if expires is not None:
        headers[EXPIRES] = repr(expires)
    return BasicProperties(
        content_type=received.content_type,
        content_encoding=received.content_encoding,
        headers=headers,
        delivery_mode=2,
        priority=message.priority,
        correlation_id=received.correlation_id,
        reply_to=received.reply_to,
        message_id=message.id,
        timestamp=received.timestamp,
        type=received.type,
        app_id=received.app_id,
    )


def level_of(received: BasicProperties) -> int:
    """Return the priority: ours, else AMQP's own, else the default."""
    text = (received.headers or {}).get(PRIORITY)
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= len("10"):
        return min(int(text), _HIGHEST)
    return _DEFAULT if received.priority is None else min(int(received.priority), _HIGHEST)


def expires_of(received: BasicProperties) -> float | None:
    """Return when the message expires by the wall clock, None when it does not say."""
    text = (received.headers or {}).get(EXPIRES)
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None


def ageless(received: BasicProperties) -> bool:
    """Whether the ttl of its queue has still to be applied: its publisher did not know it, or knows nothing of mqcore."""
    headers = received.headers or {}
    return AGELESS in headers or _ATTEMPT not in headers


def message_of(received: BasicProperties, body: bytes, expires: float | None) -> Message:
    """Return the message that was received; one from a plain client is a first attempt with a new id if it has none."""
    headers: dict[str, str] = {}
    flat: dict[str, str] = {}
    for name, value in (received.headers or {}).items():
        if name.startswith(_ESCAPED):
            headers[name.removeprefix(_ESCAPED)] = _text(value)
        elif name.startswith(_OURS):
            if isinstance(value, str):
                flat[name] = value
        elif not name.startswith(_BROKERS) and isinstance(value, (str, bytes, bool, int, float, Decimal, datetime)):
            headers[name] = _text(value)
    message = Message(
        id=received.message_id or new_id(),
        body=body,
        content_type=received.content_type or None,
        headers=MappingProxyType(headers) if headers else _NO_HEADERS,
        priority=level_of(received),
        expires_at=expires,
        correlation_id=received.correlation_id or None,
        reply_to=received.reply_to or None,
    )
    return unpack(message, flat) if flat else message


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
