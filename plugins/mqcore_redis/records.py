r"""A message as it is stored in Redis: a line of JSON with all fields, then the body.

    {"id": "9f...", "content_type": "application/json", "headers": {...}, ...}\\n<body>

When the server itself dead-letters a record (overflow), it puts a line with the reason before it,
once more each time:

    !{"queue": "orders", "at": "1763..."}\\n{"id": ...}\\n<body>

A field that is missing has its default. So a body that a plain client has pushed is a first attempt
of priority 5.
"""

import json
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mqcore.spi import Message, Outgoing, overflowed, pack, unpack_fields

__all__ = ["decode", "encode", "name_of", "read", "store_options"]

_PLAIN = ("content_type", "correlation_id", "reply_to")
_NAMED = ("id", "priority", *_PLAIN)
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_decode = json.JSONDecoder().decode


def encode(message: Message) -> bytes:
    """Return the record of a message.

    Its expiry is not in it: the queue stores that, by the server's clock.
    """
    fields: dict[str, Any] = {"id": message.id}
    for name in _PLAIN:
        if (value := getattr(message, name)) is not None:
            fields[name] = value
    if message.priority != 5:  # noqa: PLR2004 - the default priority
        fields["priority"] = message.priority
    if message.headers:
        fields["headers"] = dict(message.headers)
    fields.update(pack(message))
    return b"%b\n%b" % (_encode(fields).encode(), message.body)


def decode(record: bytes, expires: bytes) -> Message:
    """Return the message of a record.

    `expires` is in microseconds of the server, empty for never. Never raises.
    """
    return read(record, expires)[0]


def read(record: bytes, expires: bytes) -> tuple[Message, str]:
    """Return the message of a record, and what is wrong with the record, or an empty text.

    Never raises. A record that `encode` did not write becomes a message with all of it as its body,
    which core dead-letters.
    """
    try:
        return _read(record, expires), ""
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as e:
        what = f"the record in Redis is malformed: {type(e).__name__}"
        return Message(id=f"unreadable-{zlib.crc32(record):08x}", body=record), what


def _read(record: bytes, expires: bytes) -> Message:
    line, _, body = record.partition(b"\n")
    notes: list[Mapping[str, str]] = []
    while line.startswith(b"!"):
        notes.append(json.loads(line[1:]))
        line, _, body = body.partition(b"\n")

    written = _decode(line.decode())
    fields = unpack_fields(written) | {name: written[name] for name in _NAMED if name in written}
    if (headers := written.get("headers")) is not None:
        fields["headers"] = MappingProxyType(headers)
    if expires:
        fields["expires_at"] = int(expires) / 1e6
    _check(fields)

    message = Message(body=body, **fields)
    for note in reversed(notes):
        message = overflowed(message, note["queue"], int(note["at"]) / 1e6)
    return message


def _check(fields: Mapping[str, Any]) -> None:
    """Raise `TypeError` for a field of a wrong type: JSON may contain anything."""
    texts = [fields["id"]]
    texts += [text for name in _PLAIN if (text := fields.get(name)) is not None]
    if "headers" in fields:
        texts += fields["headers"].values()
    if (death := fields.get("death")) is not None:
        texts += (death.queue, death.error_type, death.error, death.traceback)

    if type(fields.get("priority", 5)) is not int or {*map(type, texts)} != {str}:
        raise TypeError


def name_of(message: Message) -> str:
    """Return the name of a stored copy for the dedup window.

    It is the id, with hop and lineage before it when the message was moved.
    """
    if not message.hop and not message.lineage:
        return message.id
    # an id has no spaces, so names are unique
    return f"{message.hop} {message.lineage} {message.id}"


def store_options(out: Outgoing, since: int | None = None) -> str:
    """Return how a copy is to be stored, as `common.lua` reads it; times in microseconds.

    `since`: it counts as a duplicate only if it was stored after this number, as the successor of a
    Move does.
    """
    message = out.message
    priority = min(max(message.priority, 0), 10)
    delay = str(round(out.delay * 1e6)) if out.delay > 0 else ""
    ttl = expires = ""
    if out.ttl is not None:
        ttl = str(max(round(out.ttl * 1e6), 0))
    elif message.expires_at is not None:
        expires = str(max(round(message.expires_at * 1e6), 0))
    moved, after = "1" if message.hop else "", "" if since is None else since
    return f"{priority},{delay},{ttl},{expires},{moved},{after}"
