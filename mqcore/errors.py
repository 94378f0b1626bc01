"""Every error of mqcore, in one small tree.

A publish that returns no receipt raises `PublishFailed` (the message is certainly not stored) or
`PublishUnknown` (it may be stored), so code that catches these two has handled every case (G1). A
driver's own exception is always the `__cause__`. `Retry`, `Postpone` and `Reject` are not errors: a
handler raises them to decide what happens to its message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

__all__ = [
    "BackendNotFound",
    "Blocked",
    "BrokerError",
    "ConfigurationError",
    "ConnectionLost",
    "DecodeError",
    "DurabilityUnavailable",
    "HandlerTimeout",
    "LeaseLost",
    "MessageError",
    "MessageTooLarge",
    "MqcoreError",
    "Postpone",
    "PublishFailed",
    "PublishUnknown",
    "QueueFull",
    "QueueNotFound",
    "Reject",
    "RemoteError",
    "RequestTimeout",
    "Retry",
    "TopologyMismatch",
    "Unroutable",
    "UnsupportedFeature",
    "ValidationError",
]


class MqcoreError(Exception):
    """The base class of all errors of mqcore."""


class ConfigurationError(MqcoreError):
    """Something cannot work as it is written: an unknown option, a bad URL, a wrong handler."""


class BackendNotFound(ConfigurationError):
    """No installed plugin serves the URL's scheme.

    The text names the installed plugins and what to install.
    """


class UnsupportedFeature(ConfigurationError):
    """The backend cannot do this. Raised before anything is sent (G16)."""


class TopologyMismatch(ConfigurationError):
    """A queue or router exists on the broker with other settings than the declared ones."""


class DurabilityUnavailable(ConfigurationError):
    """The application asked for more durability than the server gives."""


class BrokerError(MqcoreError):
    """The broker, or the connection to it, failed."""


class ConnectionLost(BrokerError):
    """The connection was lost or closed before the call could be done."""


class LeaseLost(BrokerError):
    """The message now belongs to another consumer; settling it here has no effect (G5)."""


class RequestTimeout(BrokerError, TimeoutError):
    """No reply came before the request's deadline. The handler may or may not have run."""


class PublishFailed(BrokerError):
    """The message is certainly not stored (G1).

    `id` is the message's id: publishing again with it is safe.
    """

    def __init__(self, text: str, *, id: str = "") -> None:
        super().__init__(text)
        self.id = id


class Unroutable(PublishFailed):
    """No queue takes the message: the router has no binding that matches."""


class QueueNotFound(PublishFailed):
    """The queue does not exist, or no longer exists.

    To declare it, call `broker.declare`, start its consumer, or publish to a `Queue`.
    """


class QueueFull(PublishFailed):
    """The queue holds `max_length` ready messages and its overflow mode is `reject` (G12)."""


class MessageTooLarge(PublishFailed):
    """The payload or the headers exceed a limit. Raised before any I/O (G12)."""


class Blocked(PublishFailed):
    """The broker accepts no messages now, or was not connected in time.

    It may have raised an alarm, or its memory may be full. Nothing was stored.
    """


class PublishUnknown(BrokerError):
    """The message was sent and no answer came in time: it may be stored, even later (G1).

    `id` is the message's id: on a backend with DEDUP, publishing again with `id=` stores one copy.
    When only some of a routed message's queues answered, `outcomes` has the answer of each queue.
    """

    def __init__(self, text: str, *, id: str, outcomes: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.id = id
        self.outcomes = dict(outcomes or {})


class MessageError(MqcoreError):
    """The message itself is not valid."""


class DecodeError(MessageError):
    """The body cannot be decoded as its content type.

    Such a message is dead-lettered with the reason `undecodable`.
    """


class ValidationError(MessageError):
    """A payload or an option of a publish is not valid.

    The payload does not match its queue's type, or a priority, ttl, delay, id or header is out of
    bounds.
    """


class HandlerTimeout(MqcoreError, TimeoutError):
    """The handler ran longer than its time limit. This counts as one attempt (G4)."""


class RemoteError(MqcoreError):
    """The handler of a request failed for good.

    `type` and `text` describe the exception there. They are data, never resolved to code.
    """

    def __init__(self, reason: str, type: str, text: str) -> None:  # noqa: A002 - the remote exception's type name
        super().__init__(f"the request's handler failed ({reason}): {type}: {text}")
        self.reason = reason
        self.type = type
        self.text = text


class Retry(Exception):
    """A handler raises this to have its message handled again.

    `delay` (seconds or timedelta) replaces the wait of the retry policy, but not its `max_attempts`
    or `max_age` (G10). The run counts as an attempt.
    """

    def __init__(self, delay: float | timedelta | None = None) -> None:
        super().__init__("the handler asked for another attempt")
        self.delay = delay


class Postpone(Exception):
    """A handler raises this to have its message handled later, as if this run had not been.

    The run is not an attempt. The message waits `delay` (seconds or timedelta) in the broker, at
    most until its expiry, and goes to the end of its priority level (G10). The `max_age` of the
    retry policy still applies. With `ack_first=True` it has no effect: the message is settled.
    """

    def __init__(self, delay: float | timedelta) -> None:
        super().__init__("the handler postponed its message")
        self.delay = delay


class Reject(Exception):
    """A handler raises this to have its message dead-lettered without another attempt.

    The message goes to the dead-letter queue with the reason `rejected` (G11).
    """

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)
        self.reason = reason
