"""What travels: the message, as its publisher made it and as every backend must give it back.

`Message` is plain, frozen data. Core fills it in `Producer`, a driver stores it, a consumer gets an
equal one. Fields that only core understands (`attempt`, `hop`, the death record) go along as flat
strings under the reserved prefix `mq-`: `pack` and `unpack` are the one place that knows their
names, so that every driver writes the same wire format.
"""

from __future__ import annotations

import os
import random
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Any

from mqcore.defaults import PRIORITY
from mqcore.errors import ConfigurationError, MessageTooLarge, ValidationError

__all__ = [
    "Death",
    "Limits",
    "Message",
    "Reason",
    "check_headers",
    "check_id",
    "check_priority",
    "new_id",
    "pack",
    "unpack",
    "unpack_fields",
]

PREFIX = "mq-"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
LOWEST, HIGHEST = 0, 10
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_RESERVED = re.compile(r"(mq|x)-", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Reason(Enum):
    """Why a message was dead-lettered (G11)."""

    REJECTED = "rejected"
    RETRIES_EXHAUSTED = "retries_exhausted"
    EXPIRED = "expired"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    UNDECODABLE = "undecodable"
    INVALID = "invalid"
    OVERFLOW = "overflow"
    UNROUTABLE = "unroutable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """The record that a dead letter carries beside its original body, id and headers (G11).

    `queue` is where it died, `attempts` how often a handler was started, `first_at` and `last_at`
    (seconds since the epoch) the first and the last failure. The error's type, text and traceback
    are bounded text.
    """

    reason: Reason
    queue: str
    attempts: int
    first_at: float
    last_at: float
    error_type: str = ""
    error: str = ""
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message.

    `id` is the same on every delivery. `content_type` is None on a foreign message that states
    none. `encoding` is the content encoding of a foreign message, such as `gzip`: the body is as it
    was sent, and is decoded for the handler. `attempt` starts at 1 (G4); `hop` counts Moves and
    `lineage` says out of which queues they went: with the id they name one stored copy (G1).
    `published_at` is the publisher's wall clock, None on foreign messages. `expires_at` is in the
    broker's own time: opaque, set by the driver from a ttl and only ever copied (G6). `failed_at`
    is the first failure, `redriven` how often the message came back from a dead-letter queue.
    `takeovers` is how often the copies before this one were taken over, where the broker itself
    cannot count that (`Delivery.counted`, G4).
    """

    id: str
    body: bytes
    content_type: str | None = None
    encoding: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    priority: int = PRIORITY
    attempt: int = 1
    hop: int = 0
    lineage: str = ""
    published_at: float | None = None
    expires_at: float | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    failed_at: float | None = None
    redriven: int = 0
    takeovers: int = 0
    death: Death | None = None

    @property
    def copy_name(self) -> tuple[str, int, str]:
        """The name of one stored copy inside one queue, for DEDUP: id, hop and lineage (G1)."""
        return self.id, self.hop, self.lineage

    def moved(self, source: str, **changes: Any) -> Message:
        """Return the successor that a Move out of queue `source` stores, with these fields changed.

        It has one hop more. Its lineage distinguishes it from the successors of other copies: the
        copies of one routed message share id and hop, and may meet again in a shared dead-letter
        queue or after a redrive. The same Move repeated gives the same name, so that it stores one
        copy.
        """
        lineage = f"{zlib.crc32(f'{self.lineage}/{source}'.encode()):08x}"
        return replace(self, hop=self.hop + 1, lineage=lineage, **changes)

    def copy(self) -> Message:
        """Return an equal message that shares no mutable state, as a backend must store it (G17).

        A message whose body and headers cannot be changed, as core makes them, is its own copy.
        """
        if type(self.headers) is MappingProxyType and type(self.body) is bytes:
            return self
        return replace(self, body=bytes(self.body), headers=MappingProxyType(dict(self.headers)))


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that are checked before any I/O (G12).

    `payload`: bytes of the body. `headers`: how many. `header_bytes`: bytes of all headers.
    `header_value`: bytes of one value.
    """

    payload: int = 1024 * 1024
    headers: int = 64
    header_bytes: int = 16 * 1024
    header_value: int = 4 * 1024

    def __post_init__(self) -> None:
        """Reject what is not a number of bytes or headers."""
        for name in ("payload", "headers", "header_bytes", "header_value"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigurationError(
                    f"limits: {name}={value!r:.60} is not usable; give a whole number from 0"
                )

    def check(self, message: Message, queue: str) -> None:
        """Raise `MessageTooLarge`, with queue, id and both numbers, when a limit is exceeded."""
        size = len(message.body)
        if size > self.payload:
            self._refuse(
                message, queue, f"its payload has {size:,} bytes, {self.payload:,} are allowed"
            )

        headers = message.headers
        if not headers:
            return
        if len(headers) > self.headers:
            self._refuse(
                message, queue, f"it has {len(headers):,} headers, {self.headers} are allowed"
            )

        total = 0

        for name, value in headers.items():
            length = len(value.encode())
            if length > self.header_value:
                self._refuse(
                    message,
                    queue,
                    f"header {name!r} has {length:,} bytes, {self.header_value:,} are allowed",
                )
            total += len(name) + length

        if total > self.header_bytes:
            self._refuse(
                message,
                queue,
                f"its headers have {total:,} bytes in all, {self.header_bytes:,} are allowed",
            )

    def _refuse(self, message: Message, queue: str, why: str) -> None:
        raise MessageTooLarge(
            f"message {message.id} for {queue!r} was not sent: {why}", id=message.id
        )


_ids = random.Random()
os.register_at_fork(after_in_child=_ids.seed)


def new_id() -> str:
    """Return 128 random bits in hex, at a fifth of the cost of `uuid4`.

    The generator is our own, seeded by the system and again after a fork: an application that calls
    `random.seed(0)` in each of its processes must not publish the same ids from all of them, or
    deduplication would take its messages away.
    """
    return f"{_ids.getrandbits(128):032x}"


def check_id(value: object) -> str:
    """Return an id given by a user, or raise `ValidationError`.

    An id is 1 to 128 printable ASCII characters without spaces.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValidationError(
            f"message id {value!r:.140} is not usable: an id is 1 to 128 printable ASCII "
            "characters without spaces"
        )
    return value


def check_priority(value: object) -> int:
    """Return the priority; `ValidationError` unless it is a whole number from 0 to 10 (G8)."""
    if isinstance(value, bool) or not isinstance(value, int) or not LOWEST <= value <= HIGHEST:
        raise ValidationError(
            f"priority {value!r} is out of range: {LOWEST} (lowest) to {HIGHEST} (highest), "
            f"{PRIORITY} by default"
        )
    return value


def check_headers(headers: object) -> Mapping[str, str]:
    """Return a read-only copy of a user's headers.

    Raises `ValidationError` with the first header that cannot be sent, and why.

    Names: 1 to 128 characters of `A-Z a-z 0-9 . _ -`, not starting with the reserved `mq-` or `x-`.
    Values: text that UTF-8 can carry, without control characters other than tab. Their size is
    checked by `Limits`.
    """
    if not isinstance(headers, Mapping):
        raise ValidationError(
            f"headers are a mapping of text to text, not {type(headers).__name__}"
        )

    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValidationError(
                f"header name {name!r:.140} is not usable: 1 to 128 characters of A-Z a-z 0-9 . _ -"
            )
        if _RESERVED.match(name):
            raise ValidationError(
                f"header name {name!r} is reserved: names beginning with 'mq-' or 'x-' belong "
                "to mqcore and to brokers"
            )
        if not isinstance(value, str):
            raise ValidationError(
                f"header {name!r} has a value of type {type(value).__name__}: header values are "
                "text"
            )
        if _CONTROL.search(value):
            raise ValidationError(f"header {name!r} has a control character in its value")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise ValidationError(
                f"header {name!r} has a lone surrogate in its value, which UTF-8 cannot carry"
            )

    return MappingProxyType(dict(headers))


_LINEAGE = re.compile(r"[0-9a-f]{8}")
_NUMBERS = {name: PREFIX + name for name in ("attempt", "hop", "redriven", "takeovers")}
_TIMES = {name: PREFIX + name for name in ("published_at", "failed_at")}
_REASONS = frozenset(reason.value for reason in Reason)
_DEATH = ("queue", "error_type", "error", "traceback")


def pack(message: Message) -> dict[str, str]:
    """Return core's own fields as flat `mq-` strings, for brokers that carry headers of text.

    Not among them, because every broker has a place of its own for these: body, id, content_type,
    headers, priority, expires_at, correlation_id, reply_to.
    """
    flat = {
        key: str(number)
        for name, key in _NUMBERS.items()
        if (number := getattr(message, name)) or name == "attempt"
    }
    if message.encoding:
        flat[PREFIX + "encoding"] = message.encoding
    if message.lineage:
        flat[PREFIX + "lineage"] = message.lineage
    flat |= {
        key: repr(value)
        for name, key in _TIMES.items()
        if (value := getattr(message, name)) is not None
    }
    if (death := message.death) is not None:
        flat |= {
            PREFIX + "death-reason": death.reason.value,
            PREFIX + "death-attempts": str(death.attempts),
            PREFIX + "death-first_at": repr(death.first_at),
            PREFIX + "death-last_at": repr(death.last_at),
        }
        flat |= {
            f"{PREFIX}death-{name}": value for name in _DEATH if (value := getattr(death, name))
        }

    return flat


def unpack(message: Message, flat: Mapping[str, str]) -> Message:
    """Return the message with the fields that `pack` wrote.

    A field that is missing or has no valid value keeps its default.

    Its headers are read-only from then on: an edit by a handler must not come with the next attempt
    (G10).
    """
    fields = unpack_fields(flat)
    if type(message.headers) is not MappingProxyType:
        fields["headers"] = MappingProxyType(message.headers)
    return replace(message, **fields)


def unpack_fields(flat: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields that `pack` wrote, as arguments of `Message`; the valid ones alone.

    A driver that makes its messages with them makes each of them once, where `unpack` makes another
    one. It must make their headers read-only itself.
    """
    fields: dict[str, Any] = {}
    for name, key in _NUMBERS.items():
        if key in flat and (number := _number(flat[key])) is not None:
            fields[name] = max(number, 1 if name == "attempt" else 0)

    if encoding := flat.get(PREFIX + "encoding"):
        fields["encoding"] = encoding
    if _LINEAGE.fullmatch(lineage := flat.get(PREFIX + "lineage", "")):
        fields["lineage"] = lineage
    for name, key in _TIMES.items():
        if key in flat and (moment := _moment(flat[key])) is not None:
            fields[name] = moment

    if (reason := flat.get(PREFIX + "death-reason")) in _REASONS:
        fields["death"] = Death(
            reason=Reason(reason),
            attempts=1
            if (attempts := _number(flat.get(PREFIX + "death-attempts", ""))) is None
            else attempts,
            first_at=_moment(flat.get(PREFIX + "death-first_at")) or 0.0,
            last_at=_moment(flat.get(PREFIX + "death-last_at")) or 0.0,
            **{name: flat.get(f"{PREFIX}death-{name}", "") for name in _DEATH},
        )

    return fields


def _number(text: str) -> int | None:
    return (
        int(text) if text.isascii() and text.isdigit() and len(text) < len("1000000000") else None
    )


def _moment(text: str | None) -> float | None:
    try:
        moment = float(text) if text is not None else None
    except ValueError:
        return None
    return moment if moment is not None and 0 <= moment < 1e12 else None  # noqa: PLR2004 - beyond the year 33,000: nonsense
