"""A message as it is stored in a row: its fields as JSON text, and its body as it came.

Priority, expiry and the marks of earlier deliveries have columns of their own, because the database
sorts and searches by them.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from struct import Struct
from types import MappingProxyType
from typing import Any, NamedTuple

from mqcore.spi import Delivery, Message, pack, unpack_fields

__all__ = [
    "Claimed",
    "Row",
    "delivery_of",
    "encode",
    "lease_of",
    "name_of",
    "rank_of",
    "read",
    "receipt_of",
]

HIGHEST = 10
_PLAIN = ("content_type", "correlation_id", "reply_to")
_TEXTS = ("id", *_PLAIN)
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_decode = json.JSONDecoder().decode
_RECEIPT = Struct(">qq")


class Row(NamedTuple):
    """A message that is to be stored; times in microseconds.

    `ttl` and `delay` count from the moment in which it is stored, by the database's clock.
    `expires` is a moment. `name` is None for a successor, which is not remembered.
    """

    queue: int
    rank: int
    delay: int
    ttl: int | None
    expires: int | None
    name: bytes | None
    meta: str
    body: bytes


class Claimed(NamedTuple):
    """A message that was leased, as the database returns it. `now` is the database's time."""

    id: int
    rank: int
    place: int
    expires: int | None
    redelivered: int
    takeovers: int
    started: int
    meta: str
    body: bytes
    now: int


def encode(message: Message) -> str:
    """Return all fields of a message that have no column of their own, as JSON."""
    fields: dict[str, Any] = {"id": message.id}
    fields.update((name, value) for name in _PLAIN if (value := getattr(message, name)) is not None)
    if message.headers:
        fields["headers"] = dict(message.headers)
    fields.update(pack(message))
    return _encode(fields)


def read(meta: str, body: bytes, rank: int, expires: int | None) -> tuple[Message, str]:
    """Return the message of a row, and what is wrong with the row, or an empty text.

    Never raises. A row that `encode` did not write becomes a message that core dead-letters.
    """
    try:
        return _read(meta, body, rank, expires), ""
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as e:
        what = f"the row in the database is malformed: {type(e).__name__}"
        name = blake2b(f"{meta}".encode(errors="replace"), digest_size=8).hexdigest()
        return Message(id=f"unreadable-{name}", body=bytes(body or b"")), what


def _read(meta: str, body: bytes, rank: int, expires: int | None) -> Message:
    written = _decode(meta)
    fields = unpack_fields(written) | {name: written[name] for name in _TEXTS if name in written}
    if (headers := written.get("headers")) is not None:
        fields["headers"] = MappingProxyType(headers)
    _check(fields)

    return Message(
        body=body,
        priority=HIGHEST - rank,
        expires_at=None if expires is None else expires / 1e6,
        **fields,
    )


def _check(fields: Mapping[str, Any]) -> None:
    """Raise for a field that is missing, or of a wrong type: JSON may contain anything."""
    texts = [fields["id"], *(fields[name] for name in _PLAIN if fields.get(name) is not None)]
    if "headers" in fields:
        texts += fields["headers"].values()
    if (death := fields.get("death")) is not None:
        texts += (death.queue, death.error_type, death.error, death.traceback)
    if {*map(type, texts)} != {str}:
        raise TypeError


def delivery_of(claimed: Claimed, token: int, age: float) -> Delivery:
    """Return a claimed message as core gets it, `age` seconds after its claim was sent (G6)."""
    message, unreadable = read(claimed.meta, claimed.body, claimed.rank, claimed.expires)
    return Delivery(
        message,
        receipt_of(claimed.id, token),
        None if claimed.expires is None else (claimed.expires - claimed.now) / 1e6 - age,
        bool(claimed.redelivered),
        claimed.takeovers,
        started=bool(claimed.started),
        unreadable=unreadable,
    )


def rank_of(priority: int) -> int:
    """Return where a priority is in the order of delivery: 0 goes first."""
    return min(max(HIGHEST - priority, 0), HIGHEST)


def name_of(message: Message) -> bytes:
    """Return the name of a stored copy for deduplication, in 16 bytes (G1)."""
    # an id has no spaces, so two copies never share a text
    text = f"{message.hop} {message.lineage} {message.id}"
    return blake2b(text.encode(), digest_size=16).digest()


def receipt_of(number: int, token: int) -> bytes:
    """Return a receipt: the number of the message, and the fencing token of its claim."""
    return _RECEIPT.pack(number, token)


def lease_of(receipt: bytes) -> tuple[int, int]:
    """Return number and token of a receipt; (0, 0), which names no claim, for other bytes."""
    if len(receipt) != _RECEIPT.size:
        return (0, 0)
    number, token = _RECEIPT.unpack(receipt)
    return (number, token)
