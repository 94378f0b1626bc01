"""Makes the message of a publish: encodes the payload and checks every option before any I/O."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mqcore.defaults import PRIORITY
from mqcore.errors import ConfigurationError, MessageTooLarge, ValidationError
from mqcore.messages.codec import Codecs, encode_any
from mqcore.messages.message import (
    NO_HEADERS,
    Limits,
    Message,
    check_headers,
    check_id,
    check_priority,
    new_id,
)
from mqcore.publishing.options import PublishOptions, duration
from mqcore.queue import Queue, name_of
from mqcore.rules.capabilities import Capability

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.connection.connection import Connection
    from mqcore.router import Router

__all__ = ["Composer"]


class Composer:
    """Turns payloads and options into messages that the broker can store."""

    def __init__(
        self,
        connection: Connection,
        codecs: Codecs,
        limits: Limits,
        outgoing: Sequence[Callable[[Message], Message]],
    ) -> None:
        """`outgoing` are the hooks of the middlewares, called in order with each message."""
        self._connection = connection
        self._clock = connection.clock
        self._codecs = codecs
        self._limits = limits
        self._outgoing = outgoing

    def message(
        self, to: Queue[Any] | Router[Any] | str, payload: object, options: PublishOptions
    ) -> Message:
        """Return the message of a payload.

        Raises `ValidationError` for a wrong payload or option, and `MessageTooLarge`.
        """
        try:
            if isinstance(to, str):
                body, content_type = encode_any(payload, self._codecs)
            else:
                body, content_type = to.payload.encode(payload, self._codecs)
        except ValidationError as error:
            raise ValidationError(f"nothing was sent to {name_of(to)!r}: {error}") from error
        except ConfigurationError as error:  # a codec that is not allowed
            raise ConfigurationError(f"nothing was sent to {name_of(to)!r}: {error}") from None

        message = Message(
            id=check_id(options["id"]) if "id" in options else new_id(),
            body=body,
            content_type=content_type,
            headers=check_headers(options["headers"]) if "headers" in options else NO_HEADERS,
            priority=check_priority(options["priority"]) if "priority" in options else PRIORITY,
            published_at=self._clock.now(),
        )
        return self.checked(message, name_of(to))

    def checked(self, message: Message, name: str) -> Message:
        """Return the message as the middlewares' hooks leave it.

        Raises `MessageTooLarge` when it exceeds a limit then (G12). `name` is where it goes.
        """
        for hook in self._outgoing:
            message = hook(message)
        self.check_size(message, name)
        return message

    def check_size(self, message: Message, name: str) -> None:
        """Raise `MessageTooLarge` for a message above this broker's or the server's limit (G12)."""
        self._limits.check(message, name)

        capabilities, size = self._connection.capabilities, len(message.body)
        if capabilities.max_payload is not None and size > capabilities.max_payload:
            raise MessageTooLarge(
                f"message {message.id} for {name!r} was not sent: its payload has {size:,} bytes, "
                f"and the backend {capabilities.backend!r} takes {capabilities.max_payload:,}",
                id=message.id,
            )

    def check_priority(self, message: Message) -> None:
        """Raise `UnsupportedFeature` when the backend cannot keep this message's priority (G8)."""
        if message.priority != PRIORITY:
            self._connection.capabilities.require(
                Capability.PRIORITY, f"priority={message.priority}"
            )

    def times(
        self, to: Queue[Any] | Router[Any] | str, options: PublishOptions
    ) -> tuple[float | None, float]:
        """Return ttl and delay in seconds (G6, G7).

        Raises `ValidationError` for values that cannot be meant, and `UnsupportedFeature`.
        """
        if "ttl" not in options and "delay" not in options:
            return None, 0.0

        ttl = self._ttl(name_of(to), options)
        delay = self._delay(name_of(to), options)

        if delay:
            queue_ttl = to.ttl if isinstance(to, Queue) else None
            life = min((limit for limit in (ttl, queue_ttl) if limit is not None), default=None)
            if life is not None and delay >= life:
                raise ValidationError(
                    f"delay={delay:g} for {name_of(to)!r} is not shorter than ttl {life:g}: the "
                    "message would be expired before it could be handled"
                )
        return ttl, delay

    def _ttl(self, name: str, options: PublishOptions) -> float | None:
        value = options.get("ttl")
        if value is None:
            return None

        ttl = duration("ttl", value, name)
        if not (0 < ttl < math.inf):
            raise ValidationError(
                f"ttl={ttl:g} for {name!r}: a message must live for more than 0 seconds; leave ttl "
                "out for no expiry"
            )
        self._connection.capabilities.require(Capability.EXPIRY, f"ttl={ttl:g}")
        return ttl

    def _delay(self, name: str, options: PublishOptions) -> float:
        delay = duration("delay", options.get("delay", 0.0), name)
        if not (0 <= delay < math.inf):
            raise ValidationError(f"delay={delay:g} for {name!r}: a delay is 0 seconds or more")

        if delay:
            support = self._connection.capabilities.require(Capability.DELAY, f"delay={delay:g}")
            longest = support.limits.get("max")
            if longest is not None and delay > float(longest):
                raise ValidationError(
                    f"delay={delay:g} for {name!r}: this backend delays by at most "
                    f"{float(longest):g} seconds"
                )
        return delay
