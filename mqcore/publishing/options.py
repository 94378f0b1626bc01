"""What an application may say of a publish, and what it gets back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from pydantic import BaseModel

from mqcore.errors import ConfigurationError, ValidationError
from mqcore.messages.message import check_headers, check_priority
from mqcore.queue import Queue, name_of
from mqcore.router import Router
from mqcore.rules.checks import check_options, described, seconds_or_nan
from mqcore.rules.routing import check_key

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = [
    "PublishOptions",
    "Receipt",
    "Target",
    "check_no_id",
    "check_payloads",
    "check_target",
    "check_values",
    "drops_unroutable",
    "duration",
]

T = TypeVar("T")

Target = Queue[T] | Router[T] | str
"""Where a message can go.

A typed queue or router is declared when needed; a name stands for a queue that exists.
"""


class PublishOptions(TypedDict, total=False):
    """The options of one publish. All may be left out.

    `key`: the routing key, for a router. `priority`: from 0, the lowest, to 10, the highest; 5 by
    default (G8). `ttl`: seconds until the message expires (G6). `delay`: seconds before the message
    may be handled (G7). `id`: the message's id, made by mqcore by default; on a backend with DEDUP,
    publishing again with the same id after an unknown outcome stores one copy (G1). `headers`: text
    for text. `timeout`: seconds until the publish ends, 10 by default. `session`: a session or
    connection of SQLAlchemy, or a connection of Django, whose transaction the message joins: it is
    published when that commits, and never after a rollback. `unroutable`: what happens to a message
    that no binding of its router takes: `"raise"`, the default, raises `Unroutable`, and `"drop"`
    drops it. The receipt then has no queues (G15).
    """

    key: str
    priority: int
    ttl: float | timedelta | None
    delay: float | timedelta
    id: str
    headers: Mapping[str, str]
    timeout: float | timedelta
    session: object
    unroutable: Literal["raise", "drop"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """The broker has confirmed the message, at the durability in force.

    `id` is the message's id. `queues` are the queues that stored it; where the broker itself
    routes, it is the router's name. None took a message that was dropped (`unroutable="drop"`).
    `duplicate`: the message was stored before with this id, and
    there is still one copy (G1). `spooled`: the broker is away, and the fallback has stored the
    message. It goes to the broker when that is back; `queues` names its target until then.
    `pending`: the message is in a transaction of the application (`session=`); it is stored when
    that commits, and gone when it does not.
    """

    id: str
    queues: tuple[str, ...]
    duplicate: bool = False
    spooled: bool = False
    pending: bool = False


def check_target(to: Target[Any], options: PublishOptions) -> None:
    """Raise `ConfigurationError` for a wrong target and for an option that does not exist."""
    if not isinstance(to, (str, Queue, Router)):
        raise ConfigurationError(
            f"publish to a Queue, a Router or the name of a queue, not to {to!r:.60}"
        )
    if options:
        check_options(options, PublishOptions, f"publishing to {name_of(to)!r}")


def check_no_id(options: PublishOptions) -> None:
    """Raise `ValidationError` for one id for many messages."""
    if "id" in options:
        raise ValidationError("publish_many takes no id: every message needs its own")


def check_payloads(payloads: object, target: str) -> Iterable[Any]:
    """Return the payloads of one batch.

    Raises `ConfigurationError` for one payload in place of several: a text would be sent letter by
    letter, a mapping key by key.
    """
    is_one = isinstance(payloads, (str, bytes, bytearray, memoryview, Mapping, BaseModel))
    if is_one or not isinstance(payloads, Iterable):
        raise ConfigurationError(
            f"publish_many to {target!r} takes a list of payloads, not {described(payloads)}. For "
            "one payload use publish, or put it into a list"
        )
    return payloads


def check_values(options: PublishOptions, target: str) -> None:
    """Raise `ValidationError` for a value that no publish accepts, as `publish` does."""
    if "id" in options:
        raise ValidationError(
            f"a producer for {target!r} takes no id: every message needs its own. Give it to "
            "publish(..., id=)"
        )
    if "session" in options:
        raise ValidationError(
            f"a producer for {target!r} takes no session: each transaction has its own. Give it to "
            "publish(..., session=)"
        )
    if "headers" in options:
        check_headers(options["headers"])
    if "priority" in options:
        check_priority(options["priority"])
    drops_unroutable(options, f"a producer for {target!r}")
    for name in ("ttl", "delay", "timeout"):
        if (value := options.get(name)) is not None:
            duration(name, value, target)
    if "key" in options:
        try:
            check_key(options["key"], f"a producer for {target!r}")
        except ConfigurationError as error:
            raise ValidationError(str(error)) from None


def drops_unroutable(options: PublishOptions, where: str) -> bool:
    """Whether a message without a binding is dropped. A wrong value raises `ValidationError`."""
    value = options.get("unroutable", "raise")
    if value not in ("raise", "drop"):
        raise ValidationError(
            f'{where}: unroutable={value!r:.60} is not valid; give "raise" or "drop"'
        )
    return value == "drop"


def duration(option: str, value: object, target: str) -> float:
    """Return a duration in seconds. Raises `ValidationError` for a value that is not a duration."""
    number = seconds_or_nan(value)
    if math.isnan(number):
        raise ValidationError(
            f"{option}={value!r:.60} for {target!r} is not a duration; give seconds or a timedelta"
        )
    return number
