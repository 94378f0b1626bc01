"""The format of a message: native AMQP properties where they exist, text headers for the rest.

    Message ─ properties ─► broker ─► message_of ─► an equal Message

Any client can read it. `message_id`, `content_type`, `content_encoding`, `correlation_id`,
`reply_to` and `priority` are native properties, and the user's headers are headers. Headers of
mqcore begin with `mq-`. Headers that begin with `x-` belong to brokers and are never copied: 3.10
confirms a copy with its `x-death` and then drops it, as a loop.

`Message` has no field for some properties of a plain client's message: `type`, `app_id`,
`timestamp`, and headers that are not text. A successor copies them from the received properties.
"""

import re
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pika import BasicProperties

from mqcore.spi import Death, Message, Reason, new_id, pack, unpack_fields
from mqcore_rabbitmq.frames import Field, Properties

__all__ = [
    "HOP",
    "LINEAGE",
    "escaped",
    "fit",
    "id_of",
    "inherit",
    "level_of",
    "message_of",
    "parked",
    "properties",
    "released",
    "released_as",
]

PRIORITY, EXPIRES, RELEASED, AGELESS = "mq-priority", "mq-expires", "mq-released", "mq-ageless"
TO = "mq-to"
"""The destination of a delayed message, for the dead letter if that queue is deleted."""
HOP, LINEAGE = "mq-hop", "mq-lineage"
"""`pack` writes them. With the id they name one stored copy."""
_RELEASED, _TAKEN = "1", "takeovers="
_TAKEOVERS = re.compile(_TAKEN + "([0-9]{1,9})")
_HEADER_PREFIX, _BROKER_PREFIX, _ESCAPE_PREFIX, _ATTEMPT = "mq-", "x-", "mq-as-", "mq-attempt"
_SELECT = ("CC", "BCC")
"""Headers that make RabbitMQ send copies elsewhere. As text they close the channel, so the user's
are escaped."""
_DEFAULT, _HIGHEST = 5, 10
_LEVELS = {
    text: min(level, _HIGHEST) for level in range(100) for text in (f"{level}", f"{level:02}")
}
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_USER = "mq-user-id"
"""The `user_id` of the first publisher. RabbitMQ refuses a native one of another user."""
_COPIED = ("type", "app_id", "cluster_id", "timestamp")
"""Native properties that `Message` has no field for."""
_COPIED_RAW = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id")
"""Native properties that a successor copies as bytes when they are not UTF-8."""
_ENCODING = "mq-encoding"
_TRACEBACK = "mq-death-traceback"


def escaped(name: str) -> str:
    """Return the name of a user's header in AMQP."""
    return _ESCAPE_PREFIX + name if name in _SELECT else name


def properties(
    message: Message,
    expires: float | None,
    *,
    native: bool = True,
    ageless: bool = False,
    to: str | None = None,
) -> Properties:
    """Return the properties of a message.

    `native`: with AMQP's own priority. `ageless`: the ttl of its queue is unknown, and is applied
    on receipt. `to`: the message is delayed, for this queue.
    """
    headers = {escaped(name): value for name, value in message.headers.items()}
    headers |= pack(message)
    headers.pop(_ENCODING, None)  # AMQP has a property for it
    headers[PRIORITY] = str(message.priority)
    if expires is not None:
        headers[EXPIRES] = repr(expires)
    if ageless:
        headers[AGELESS] = "1"
    if to is not None:
        headers[TO] = to

    return Properties(  # delivery_mode 2: persistent
        content_type=message.content_type,
        content_encoding=message.encoding,
        headers=headers,
        delivery_mode=2,
        priority=message.priority if native else None,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        message_id=message.id,
        timestamp=int(message.published_at)
        if message.published_at and message.published_at > 0
        else None,
    )


def inherit(successor: Properties, received: Properties, user: str) -> None:
    """Copy the native properties and typed headers of the received message to its successor.

    `user` is the connection's. The expiration is not copied: the broker would act on it (G6).
    """
    for name in _COPIED:
        if getattr(successor, name) is None:
            setattr(successor, name, getattr(received, name))

    for name in _COPIED_RAW:
        if isinstance(raw := getattr(received, name), bytes):
            setattr(successor, name, raw)

    headers: dict[Any, Any] = {**(successor.headers or {}), **_others(received)}

    first_user = received.user_id or (received.headers or {}).get(_USER)
    if received.user_id == user:
        successor.user_id = received.user_id
    elif isinstance(first_user, str):
        headers[_USER] = first_user
    successor.headers = headers


def _others(received: Properties) -> dict[str | bytes, Field]:
    """Return the headers that are not text and that a copy has too."""
    kept: dict[str | bytes, Field] = {}

    for raw, field in received.others.items():
        try:
            name: str | bytes = raw.decode()
        except UnicodeDecodeError:
            name = raw
        if not raw.startswith((b"x-", b"mq-")) and name not in _SELECT:
            kept[name] = field

    return kept


def fit(given: Properties, room: int) -> None:
    """Remove headers until the properties fit in `room` bytes, a frame of the connection.

    RabbitMQ closes the connection for a larger frame, at each attempt. Only a plain client's
    message has headers of that size. The traceback of a dead letter goes first, then the longest
    headers of the user.
    """
    size = sum(map(len, given.encode()))
    headers: dict[str | bytes, Any] = given.headers or {}  # type: ignore[assignment]  # as `_write_table` takes them
    by_size = sorted(headers, key=lambda name: -_size(headers[name]))

    for name in sorted(by_size, key=lambda name: name != _TRACEBACK):
        if size <= room:
            return
        if name == _TRACEBACK or not _is_ours(name):
            size -= _size(headers.pop(name))


def _size(value: str | bytes) -> int:
    return len(value.encode()) if isinstance(value, str) else len(value)


def _is_ours(name: str | bytes) -> bool:
    return (
        isinstance(name, str)
        and name.startswith(_HEADER_PREFIX)
        and not name.startswith(_ESCAPE_PREFIX)
    )


def released(
    received: Properties, expires: float | None, takeovers: int, priority: int | None
) -> Properties:
    """Return the properties of a released message, with a mark that counts its takeovers.

    `priority` is AMQP's own, as the queue needs it. The message's priority does not change.
    """
    headers: dict[Any, Any] = {
        escaped(name): _text(value)
        for name, value in (received.headers or {}).items()
        if (isinstance(value, str) or name in _SELECT) and not name.startswith(_BROKER_PREFIX)
    }
    headers |= _others(received)
    headers[RELEASED] = f"{_TAKEN}{takeovers}" if takeovers else _RELEASED
    if expires is not None:
        headers[EXPIRES] = repr(expires)
    if received.user_id is not None:
        headers.setdefault(_USER, received.user_id)

    released = copy(received)
    released.headers, released.delivery_mode, released.priority = headers, 2, priority
    if level_of(released) != level_of(received):
        headers[PRIORITY] = str(level_of(received))
    released.message_id = received.message_id or new_id()
    released.expiration = released.user_id = None  # the broker would act on them
    return released


def released_as(received: BasicProperties) -> tuple[bool, int]:
    """Whether the message was released, and how many takeovers it had then."""
    mark = (received.headers or {}).get(RELEASED)
    takeovers = _TAKEOVERS.fullmatch(mark) if isinstance(mark, str) else None
    return mark is not None, int(takeovers[1]) if takeovers else 0


def parked(received: BasicProperties, message: Message) -> Message:
    """Return a delayed message whose queue was deleted, as a dead letter (G1, G11)."""
    queue, since = str((received.headers or {}).get(TO, "?")), message.published_at or 0.0
    death = Death(
        reason=Reason.UNROUTABLE,
        queue=queue,
        attempts=message.attempt - 1,
        first_at=since,
        last_at=since,
        error=f"queue {queue!r} did not exist when the delay ended",
    )
    return replace(message, death=death, expires_at=None)


def level_of(received: BasicProperties) -> int:
    """Return the priority: mqcore's header, else AMQP's own, else the default."""
    text = (received.headers or {}).get(PRIORITY)
    if isinstance(text, str) and text in _LEVELS:
        return _LEVELS[text]
    return _DEFAULT if received.priority is None else min(int(received.priority), _HIGHEST)


def _expires(headers: Mapping[str, Any]) -> float | None:
    text = headers.get(EXPIRES)
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None


def message_of(received: BasicProperties, body: bytes, ttl: float | None, now: float) -> Message:
    """Return the received message. One of a plain client is a first attempt.

    Never raises. A property that is not UTF-8 is left out, except the id and the content type,
    which are escaped. A message without an id gets a new one.

    `ttl` is that of the queue. It is applied here if the publisher did not apply it: it did not
    know the queue, or is a plain client (G6).
    """
    all_headers = received.headers or {}
    headers: dict[str, str] = {}
    packed: dict[str, str] = {}

    for name, value in all_headers.items():
        if name.startswith(_HEADER_PREFIX):
            if name.startswith(_ESCAPE_PREFIX):
                headers[name.removeprefix(_ESCAPE_PREFIX)] = _text(value)
            elif isinstance(value, str):
                packed[name] = value
        elif not name.startswith(_BROKER_PREFIX):
            headers[name] = _text(value)

    fields: dict[str, Any] = {"encoding": _shown(received.content_encoding) or None}
    message = Message(
        id=id_of(received) or new_id(),
        body=body,
        content_type=_shown(received.content_type) or None,
        headers=MappingProxyType(headers) if headers else _NO_HEADERS,
        priority=level_of(received),
        expires_at=_expires(all_headers),
        correlation_id=_utf8(received.correlation_id),
        reply_to=_utf8(received.reply_to),
        **(fields | unpack_fields(packed)),
    )
    is_ttl_applied = AGELESS not in all_headers and _ATTEMPT in all_headers
    if ttl is None or message.hop or is_ttl_applied:
        return message
    end = (now if message.published_at is None else message.published_at) + ttl
    expires = end if message.expires_at is None else min(end, message.expires_at)
    return replace(message, expires_at=expires)


def id_of(received: BasicProperties) -> str:
    """Return the message id, escaped where it is not UTF-8; empty when there is none."""
    return _shown(received.message_id)


def _utf8(value: str | bytes | None) -> str | None:
    return value or None if isinstance(value, str) else None


def _shown(value: str | bytes | None) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value or ""


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
