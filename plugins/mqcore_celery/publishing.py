"""A message of kombu is published."""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

from mqcore import (
    Blocked,
    Capability,
    MqcoreError,
    PublishOptions,
    PublishUnknown,
    QueueNotFound,
)
from mqcore_celery.names import encoded
from mqcore_celery.wire import packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mqcore_celery.exchanges import Exchanges
    from mqcore_celery.shared import SharedBroker

__all__ = ["publish", "seconds_until"]

_HIGHEST = 10


def publish(
    shared: SharedBroker,
    exchanges: Exchanges,
    message: dict[str, Any],
    exchange: str,
    routing_key: str,
    *,
    mandatory: bool,
    timeout: float | None,
) -> None:
    """Publish, and return when the broker has confirmed it.

    What may succeed later is raised as it is: kombu publishes again, with the same id. Everything
    else is an `OperationalError`. In AMQP a message that no queue takes disappears, unless it is
    mandatory. Here that is so for exchanges, where Celery relies on it (events without a reader),
    and for replies whose caller has gone. A task for a queue that does not exist is an error.
    """
    options = _options(shared, message["headers"], message["properties"])
    if timeout is not None:
        options["timeout"] = timeout
    body, prefix = packed(message, exchange, routing_key), shared.options.queue_prefix

    async def send() -> None:
        if not exchange:
            await shared.broker.publish(encoded(routing_key, prefix), body, **options)
            return
        router = await exchanges.router(encoded(exchange, prefix))
        if router.kind == "headers":
            headers = message["headers"].items()
            options["headers"] = {name: value for name, value in headers if isinstance(value, str)}
        else:
            options["key"] = routing_key
        options["unroutable"] = "raise" if mandatory else "drop"
        await shared.broker.publish(router, body, **options)

    try:
        shared.run(send())
    except (Blocked, PublishUnknown):
        raise
    except QueueNotFound as error:
        if mandatory or "task" in message["headers"]:
            raise OperationalError(str(error)) from error
    except MqcoreError as error:
        raise OperationalError(str(error)) from error


def _options(
    shared: SharedBroker, headers: Mapping[str, Any], properties: Mapping[str, Any]
) -> PublishOptions:
    capabilities = shared.broker.capabilities
    options: PublishOptions = {"id": properties["mqcore_id"]}
    if capabilities.has(Capability.PRIORITY):
        priority = min(max(int(properties.get("priority") or 0), 0), _HIGHEST)
        if shared.options.priority_order == "lower_first":
            priority = _HIGHEST - priority
        options["priority"] = priority

    # An expired task must reach the worker, which stores that it was revoked: a caller that waits
    # for its result would wait without end.
    expiration = properties.get("expiration")
    if expiration is not None and headers.get("expires") is None:
        options["ttl"] = max(float(expiration) / 1000, 0.001)

    if shared.options.eta == "broker" and (delay := seconds_until(headers.get("eta"))) > 0:
        longest = capabilities[Capability.DELAY].limits.get("max", inf)
        if capabilities.has(Capability.DELAY) and delay <= float(longest):
            options["delay"] = delay
    return options


def seconds_until(eta: Any) -> float:
    """Return the seconds until an ETA, a time in the form of ISO 8601; 0 without one."""
    if not isinstance(eta, str):
        return 0.0
    try:
        due = datetime.fromisoformat(eta)
    except ValueError:
        return 0.0
    due = due if due.tzinfo is not None else due.replace(tzinfo=UTC)
    return (due - datetime.now(UTC)).total_seconds()
