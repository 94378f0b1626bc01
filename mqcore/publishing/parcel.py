"""`Parcel`: a publish that waits in a queue for its broker. Pure.

The spool of a fallback and the outbox store publishes that go to a broker later. `enclose` returns
the message that such a queue stores, and `unpack_parcel` reads its body:

    Parcel ─ pack_parcel ─► bytes ─ enclose ─► a message in the queue ─ a relay ─► the broker

A stored `Message.expires_at` is in the time of one broker, and a delay counts from its publish. So
a parcel carries the seconds of both and the wall-clock time from which they count: what is left of
them is the same on every machine.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import asdict, dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mqcore.errors import DecodeError, MqcoreError
from mqcore.messages.message import NO_HEADERS, Message, pack, unpack_fields
from mqcore.rules.capabilities import Durability
from mqcore.rules.routing import Binding
from mqcore.spi import Outgoing, QueueSpec, Route

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONTENT_TYPE", "LEAST_TTL", "Parcel", "enclose", "pack_parcel", "unpack_parcel"]

CONTENT_TYPE = "application/x-mqcore-parcel"
"""The content type of a message whose body is a parcel."""
LEAST_TTL = 0.001
"""Seconds. A message that expired while it waited is published with this ttl.

Its queue then dead-letters it as `expired`, as if it had waited there (G6).
"""
_VERSION = 1
_MAGIC = b"mqcore-parcel/"
_TEXTS = ("content_type", "correlation_id", "reply_to")
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Parcel:
    """A publish, as it can be stored.

    `out` is what is to be published, with delay and ttl in seconds from `at`, which is a wall-clock
    time in seconds since the epoch. Where its target is a `Route`, it is resolved when the parcel
    is delivered. `queues` and `bindings` are what must be declared before: they are empty unless
    the target was not declared when it was published to.

    `out.message.expires_at` is not part of a parcel: it is in the time of one broker.
    """

    out: Outgoing
    at: float
    queues: tuple[QueueSpec, ...] = ()
    bindings: tuple[Binding, ...] = ()

    @property
    def target(self) -> str:
        """The name of the queue or router."""
        return self.out.to if isinstance(self.out.to, str) else self.out.to.router

    def outgoing(self, now: float) -> Outgoing:
        """Return what is to be published at wall-clock time `now`: with the seconds that are left.

        A clock that was set back does not make a delay or a ttl longer than it was.
        """
        out, passed = self.out, max(now - self.at, 0.0)
        ttl = None if out.ttl is None else max(out.ttl - passed, LEAST_TTL)
        return Outgoing(out.to, out.message, max(out.delay - passed, 0.0), ttl)


def pack_parcel(parcel: Parcel) -> bytes:
    """Return a parcel as bytes: a line with version and checksum, a line of JSON, and the body."""
    out, message = parcel.out, parcel.out.message
    fields: dict[str, Any] = {"id": message.id, "priority": message.priority, "at": parcel.at}
    if isinstance(out.to, Route):
        fields |= {"router": out.to.router, "key": out.to.key}
    else:
        fields["queue"] = out.to
    if out.delay > 0:
        fields["delay"] = out.delay
    if out.ttl is not None:
        fields["ttl"] = out.ttl

    fields.update((name, value) for name in _TEXTS if (value := getattr(message, name)) is not None)
    if message.headers:
        fields["headers"] = dict(message.headers)
    fields["record"] = pack(message)
    if parcel.queues:
        fields["queues"] = [_spec_fields(spec) for spec in parcel.queues]
    if parcel.bindings:
        fields["bindings"] = [asdict(binding) for binding in parcel.bindings]

    content = _encode(fields).encode() + b"\n" + message.body
    return b"%s%d %08x\n%s" % (_MAGIC, _VERSION, zlib.crc32(content), content)


def unpack_parcel(data: bytes) -> Parcel:
    """Return the parcel that `pack_parcel` wrote.

    Raises `DecodeError`, and nothing else, for bytes that are damaged, not a parcel, or a parcel of
    a version that this one does not know.
    """
    first, _, content = data.partition(b"\n")
    version, _, checksum = first.removeprefix(_MAGIC).partition(b" ")
    if not first.startswith(_MAGIC) or not version.isdigit():
        raise DecodeError(
            f"{len(data):,} bytes that begin with {data[:20]!r} are not a parcel of mqcore"
        )
    if version != b"%d" % _VERSION:
        raise DecodeError(
            f"the parcel has format version {version.decode()[:20]}, and this mqcore reads "
            f"version {_VERSION}. Relay it with the newer mqcore that stored it"
        )
    if checksum != b"%08x" % zlib.crc32(content):
        raise DecodeError(
            f"the parcel is damaged: its checksum does not match its {len(content):,} bytes"
        )

    text, _, body = content.partition(b"\n")
    try:
        return _parcel(json.loads(text), body)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, MqcoreError) as error:
        raise DecodeError(
            f"the parcel is malformed: {type(error).__name__}: {error}"[:300]
        ) from None
    except RecursionError:
        raise DecodeError("the parcel is malformed: its JSON is nested too deeply") from None


def enclose(parcel: Parcel, queue: str) -> Outgoing:
    """Return the publish that stores a parcel in a queue of a relay.

    The stored message has the parcel's priority, and the id of the message inside as correlation
    id. Its own id stands for target and copy. So a queue with DEDUP stores one parcel for a message
    that is published again with the same id, and one for each target of one id (G1).
    """
    message = parcel.out.message
    target = "\n".join(
        [parcel.out.to] if isinstance(parcel.out.to, str) else ["", *_route_of(parcel.out.to)]
    )
    name = f"{message.id} {message.hop} {message.lineage}\n{target}"
    return Outgoing(
        queue,
        Message(
            id=blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest(),
            body=pack_parcel(parcel),
            content_type=CONTENT_TYPE,
            priority=message.priority,
            published_at=parcel.at,
            correlation_id=message.id,
        ),
    )


def _route_of(route: Route) -> tuple[str, str]:
    return route.router, route.key


def _parcel(fields: Mapping[str, Any], body: bytes) -> Parcel:
    headers = fields.get("headers")
    plain: dict[str, Any] = {name: _text(fields[name]) for name in _TEXTS if name in fields}
    message = Message(
        id=_text(fields["id"]),
        body=body,
        headers=NO_HEADERS if headers is None else MappingProxyType(_texts(headers)),
        priority=int(fields["priority"]),
        **plain,
        **unpack_fields(_texts(fields["record"])),
    )
    to: str | Route = (
        Route(_text(fields["router"]), _text(fields["key"]))
        if "router" in fields
        else _text(fields["queue"])
    )
    ttl = fields.get("ttl")
    return Parcel(
        Outgoing(to, message, _seconds(fields.get("delay", 0.0)), ttl and _seconds(ttl)),
        _seconds(fields["at"]),
        tuple(_spec(spec) for spec in fields.get("queues", ())),
        tuple(_binding(binding) for binding in fields.get("bindings", ())),
    )


def _spec_fields(spec: QueueSpec) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(spec).items() if value is not None}
    if spec.durability is not None:
        fields["durability"] = spec.durability.word
    return fields


def _spec(fields: Mapping[str, Any]) -> QueueSpec:
    word = fields.get("durability")
    durability = None if word is None else Durability.parse(word)
    return QueueSpec(**{**fields, "durability": durability})


def _binding(fields: Mapping[str, Any]) -> Binding:
    headers = tuple((_text(name), _text(value)) for name, value in fields["headers"])
    return Binding(**{**fields, "headers": headers})


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is not text")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r:.60} is not a number of seconds")
    return float(value)
