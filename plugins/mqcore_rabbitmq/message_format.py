"""A message as AMQP carries it: body as it is, native properties where there are some, the rest as headers of text.

    Message ─ properties ─► broker ─► message_of ─► an equal Message

Any client can read it: `message_id`, `content_type`, `correlation_id`, `reply_to` and `priority`
are the native ones, the user's headers are headers. Ours begin with `mq-`. What begins with `x-`
belongs to brokers and is never copied: a copy that kept its `x-death` is confirmed and then
silently dropped by 3.10, which takes it for a loop.

A plain client's message keeps what `Message` has no field for: `properties` of its successor takes
`type`, `app_id`, `timestamp` and the headers that are not text over from the properties received.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from pika import BasicProperties

from mqcore.spi import Death, Message, Reason, new_id, pack, unpack
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
"""Of a delayed message: the queue that it is for, should that be gone when it falls due."""
HOP, LINEAGE = "mq-hop", "mq-lineage"
"""What `pack` writes and the driver reads: with the id they name one stored copy."""
_RELEASED, _TAKEN = "1", "takeovers="
_HEADER_PREFIX, _BROKER_PREFIX, _ESCAPE_PREFIX, _ATTEMPT = "mq-", "x-", "mq-as-", "mq-attempt"
_SELECT = ("CC", "BCC")
"""Headers by which a publisher sends copies elsewhere: as text they are an error that closes the channel, so ours are escaped.
"""
_DEFAULT, _HIGHEST, _LONG = 5, 10, 10
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_USER = "mq-user-id"
"""The `user_id` of the first publisher: RabbitMQ refuses a native one that is not the connection's own user.
"""
_KEPT = ("type", "app_id", "cluster_id", "timestamp")
"""Native properties that `Message` has no field for."""
_KEPT_RAW = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id")
"""Native properties that a copy keeps as they are when they are not UTF-8."""
_ENCODING = "mq-encoding"
_TRACEBACK = "mq-death-traceback"


def escaped(name: str) -> str:
    """Return the name by which a user's header travels."""
    return _ESCAPE_PREFIX + name if name in _SELECT else name


def properties(
    message: Message,
    expires: float | None,
    *,
    native: bool = True,
    ageless: bool = False,
    to: str | None = None,
) -> Properties:
    """Return a message's properties.

    `native`: with AMQP's own priority. `ageless`: the ttl of its queue was not known, and counts
    when it is received. `to`: it is delayed, for this queue.
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
    """Let a successor keep the native properties and the typed headers of the message that it replaces.

    `user` is the connection's. The expiration is not kept: the broker would act upon it (G6).
    """
    for name in _KEPT:
        if getattr(successor, name) is None:
            setattr(successor, name, getattr(received, name))

    for name in _KEPT_RAW:
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
    """Return the headers that are not text and that a copy keeps."""
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
    """Shorten the headers of a message until its properties fit in `room` bytes, a frame of the connection.

    RabbitMQ closes the connection for a larger frame, and would do so again with each try. Only a
    plain client has headers of that size. The traceback of a dead letter goes first, then the
    longest headers that are not ours.
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
    """Return the properties of a message that is given back as it came, with a mark that says how often it was taken over.

    `priority` is AMQP's own, as the queue needs it; ours stays what it was.
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

    again = copy(received)
    again.headers, again.delivery_mode, again.priority = headers, 2, priority
    if level_of(again) != level_of(received):
        headers[PRIORITY] = str(level_of(received))
    again.message_id = received.message_id or new_id()
    again.expiration = again.user_id = None  # what a broker would act upon
    return again


def released_as(received: BasicProperties) -> tuple[bool, int]:
    """Whether the message was released, and how often it had been taken over then."""
    mark = (received.headers or {}).get(RELEASED)
    number = mark.removeprefix(_TAKEN) if isinstance(mark, str) and mark.startswith(_TAKEN) else ""
    return mark is not None, int(number) if number.isascii() and number.isdigit() and len(
        number
    ) < _LONG else 0


def parked(received: BasicProperties, message: Message) -> Message:
    """Return what fell due after its queue had gone, as the dead letter that it is (G1, G11)."""
    queue, since = str((received.headers or {}).get(TO, "?")), message.published_at or 0.0
    death = Death(
        reason=Reason.UNROUTABLE,
        queue=queue,
        attempts=message.attempt - 1,
        first_at=since,
        last_at=since,
        error=f"queue {queue!r} was gone when the message fell due",
    )
    return replace(message, death=death, expires_at=None)


def level_of(received: BasicProperties) -> int:
    """Return the priority: ours, else AMQP's own, else the default."""
    text = (received.headers or {}).get(PRIORITY)
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= len("10"):
        return min(int(text), _HIGHEST)
    return _DEFAULT if received.priority is None else min(int(received.priority), _HIGHEST)


def _expires(headers: Mapping[str, Any]) -> float | None:
    text = headers.get(EXPIRES)
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None


def message_of(received: BasicProperties, body: bytes, ttl: float | None, now: float) -> Message:
    """Return the message that was received; one from a plain client is a first attempt with a new id if it has none.

    Never raises, whatever the properties hold. A property that is not UTF-8 is left out, but for
    the id and the content type, which are shown escaped.

    `ttl` is that of its queue: it counts here if it did not at publish, for its publisher did not
    know it, or knows nothing of mqcore (G6).
    """
    given = received.headers or {}
    headers: dict[str, str] = {}
    flat: dict[str, str] = {}
    for name, value in given.items():
        if name.startswith(_ESCAPE_PREFIX):
            headers[name.removeprefix(_ESCAPE_PREFIX)] = _text(value)
        elif name.startswith(_HEADER_PREFIX):
            if isinstance(value, str):
                flat[name] = value
        elif not name.startswith(_BROKER_PREFIX) and isinstance(
            value, (str, bytes, bool, int, float, Decimal, datetime)
        ):
            headers[name] = _text(value)
    message = Message(
        id=id_of(received) or new_id(),
        body=body,
        content_type=_shown(received.content_type) or None,
        encoding=_shown(received.content_encoding) or None,
        headers=MappingProxyType(headers) if headers else _NO_HEADERS,
        priority=level_of(received),
        expires_at=_expires(given),
        correlation_id=_utf8(received.correlation_id),
        reply_to=_utf8(received.reply_to),
    )
    message = unpack(message, flat) if flat else message
    if ttl is None or message.hop or not (AGELESS in given or _ATTEMPT not in given):
        return message
    end = (now if message.published_at is None else message.published_at) + ttl
    return replace(
        message, expires_at=end if message.expires_at is None else min(end, message.expires_at)
    )


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
