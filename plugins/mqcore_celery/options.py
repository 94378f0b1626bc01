"""The options of the transport: `broker_transport_options` of Celery."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from mqcore import ConfigurationError

__all__ = ["TransportOptions", "read"]

KOMBU = frozenset(
    {
        "callback",
        "confirm_timeout",
        "errback",
        "interval_max",
        "interval_start",
        "interval_step",
        "max_retries",
        "on_revive",
        "retry_errors",
        "timeout",
    }
)
"""What kombu itself keeps among them: how it connects and publishes again."""
WITHOUT_EFFECT = frozenset(
    {
        "confirm_publish",
        "fanout_patterns",
        "fanout_prefix",
        "health_check_interval",
        "polling_interval",
        "sep",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_timeout",
        "unacked_restore_limit",
        "visibility_timeout",
    }
)
"""Options of kombu's own transports for Redis and AMQP that answer nothing here."""
_PREFIX = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]{0,99})?")
_log = logging.getLogger("mqcore.celery")
_warned: set[str] = set()


@dataclass(frozen=True)
class TransportOptions:
    """The transport's own options.

    `eta`: who waits for the time of an ETA task, the `"worker"`, as Celery does, or the `"broker"`.
    `priority_order`: whether 9 is the most urgent (`"higher_first"`, as with RabbitMQ) or 0
    (`"lower_first"`, as with kombu's Redis). `max_requeues`: how often a message may be requeued,
    or held by a worker that dies, before it is dead-lettered. `lease`: seconds that a claim holds
    between renewals. `queue_prefix`: what the names of queues and exchanges begin with.
    `max_payload`: bytes of the largest message. `ignore_arguments`: whether queue arguments without
    a meaning here are ignored, not refused.
    """

    eta: Literal["worker", "broker"] = "worker"
    priority_order: Literal["higher_first", "lower_first"] = "higher_first"
    max_requeues: int = 20
    lease: float = 30.0
    queue_prefix: str = ""
    max_payload: int = 1024 * 1024
    ignore_arguments: bool = False


_WORDS = {"eta": ("worker", "broker"), "priority_order": ("higher_first", "lower_first")}


def read(given: Mapping[str, Any]) -> TransportOptions:
    """Return the options. Raises `ConfigurationError` for one that is unknown or not usable."""
    known = {field.name for field in fields(TransportOptions)}
    if unknown := sorted(set(given) - known - KOMBU - WITHOUT_EFFECT):
        raise ConfigurationError(
            f"broker_transport_options: {', '.join(map(repr, unknown))} is unknown to mqcore. "
            f"Known are {', '.join(sorted(known))}. Options of the broker itself are part of the "
            "URL"
        )
    if idle := sorted((set(given) & WITHOUT_EFFECT) - _warned):
        _warned.update(idle)
        _log.warning(
            "broker_transport_options: %s has no effect with mqcore", ", ".join(map(repr, idle))
        )

    own = {name: value for name, value in given.items() if name in known}
    for name, value in own.items():
        if problem := _problem(name, value):
            raise ConfigurationError(
                f"broker_transport_options: {name}={value!r:.60} is not valid; {problem}"
            )
    return TransportOptions(**own)


def _problem(name: str, value: Any) -> str:
    """Return what a value must be, or nothing when it is."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match name:
        case "eta" | "priority_order":
            first, second = _WORDS[name]
            return "" if value in _WORDS[name] else f'give "{first}" or "{second}"'
        case "max_requeues" | "max_payload":
            return "" if isinstance(value, int) and is_number and value > 0 else "give 1 or more"
        case "lease":
            return "" if is_number and value > 0 else "give seconds"
        case "queue_prefix":
            is_usable = isinstance(value, str) and _PREFIX.fullmatch(value)
            return "" if is_usable else "give letters and digits, also '.' and '-' after the first"
        case _:
            return "" if isinstance(value, bool) else "give True or False"
