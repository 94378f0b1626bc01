"""Every error of mqcore, in one small tree.

A message that cannot be sent ends in `PublishFailed` (certainly not stored) or `PublishUnknown` (it
may be stored); whoever catches those two has caught every ending of a publish that is not a receipt
(G1). A driver's own exception is always the `__cause__`. `Retry` and `Reject` are not errors: a
handler raises them to say what shall become of its message.
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
    """The root: everything that mqcore raises on purpose."""


class ConfigurationError(MqcoreError):
    """What was asked for cannot work as written: a typo in an option, a bad URL, a handler of the wrong shape."""


class BackendNotFound(ConfigurationError):
    """No installed plugin serves the URL's scheme; the text names what is installed and what to install."""


class UnsupportedFeature(ConfigurationError):
    """The backend cannot keep this promise; raised before anything is sent (G16)."""


class TopologyMismatch(ConfigurationError):
    """A queue or router exists on the broker with other settings than the ones declared."""


class DurabilityUnavailable(ConfigurationError):
    """The application asked for more durability than the live server gives."""


class BrokerError(MqcoreError):
    """The broker, or the way to it, let us down."""


class ConnectionLost(BrokerError):
    """The connection is gone (or was closed), and the call could not wait for the next one."""


class LeaseLost(BrokerError):
    """The message went to another consumer; settling it here has no effect any more (G5)."""


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
    """The queue does not exist (any more).

    Declare it: with `broker.declare`, by its consumer, or by publishing to a `Queue`.
    """


class QueueFull(PublishFailed):
    """The queue holds `max_length` ready messages and its overflow mode is `reject` (G12)."""


class MessageTooLarge(PublishFailed):
    """Payload or headers exceed the limit; refused before any I/O (G12)."""


class Blocked(PublishFailed):
    """The broker accepts no publishes now (an alarm, memory full), or was not connected in time; nothing was written."""


class PublishUnknown(BrokerError):
    """The message was sent and no answer came in time; it may be stored, even later (G1).

    `id` is the message's id: on a backend with DEDUP, publishing again with `id=` stores one copy.
    `outcomes` names, for a routed message of which only some queues answered, what each queue said.
    """

    def __init__(self, text: str, *, id: str, outcomes: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.id = id
        self.outcomes = dict(outcomes or {})


class MessageError(MqcoreError):
    """The message itself is wrong."""


class DecodeError(MessageError):
    """The body cannot be read as its content type says; such a message is dead-lettered as `undecodable`."""


class ValidationError(MessageError):
    """A payload does not fit its queue's type, or a priority, ttl, delay, id or header is out of bounds."""


class HandlerTimeout(MqcoreError, TimeoutError):
    """The handler ran past its time limit; this counts as one attempt (G4)."""


class RemoteError(MqcoreError):
    """The handler of a request failed for good.

    `type` and `text` are data from the other side, never resolved to code.
    """

    def __init__(self, reason: str, type: str, text: str) -> None:  # noqa: A002 - the remote exception's type name
        super().__init__(f"the request's handler failed ({reason}): {type}: {text}")
        self.reason = reason
        self.type = type
        self.text = text


class Retry(Exception):
    """Raised by a handler: handle this message again.

    `delay` (seconds or timedelta) overrides the policy's wait, not its `max_attempts` or `max_age`
    (G10). Counts as an attempt.
    """

    def __init__(self, delay: float | timedelta | None = None) -> None:
        super().__init__("the handler asked for another attempt")
        self.delay = delay


class Reject(Exception):
    """Raised by a handler: never again.

    The message goes straight to the dead-letter queue, reason `rejected` (G11).
    """

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)
        self.reason = reason
