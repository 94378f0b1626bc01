"""A message on its way out: encode, check, choose the queues, send, and say how it ended.

    payload ─ encode ─► Message ─ middleware ─► limits ─► route ─► Outgoing ─ connection ─► outcome ─► Receipt or error

Everything that can be refused is refused before any I/O; what was sent has exactly three endings (G1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, Unpack

from mqcore.capabilities import Capability, Level
from mqcore.clock import seconds
from mqcore.codec import Codecs, encode_any
from mqcore.errors import (
    Blocked,
    MessageTooLarge,
    MqcoreError,
    PublishFailed,
    PublishUnknown,
    QueueFull,
    QueueNotFound,
    Unroutable,
    ValidationError,
)
from mqcore.message import (
    DEFAULT_PRIORITY,
    NO_HEADERS,
    Limits,
    Message,
    check_headers,
    check_id,
    check_priority,
    new_id,
)
from mqcore.queue import Queue
from mqcore.router import Router
from mqcore.routing import check_key, route
from mqcore.spi import ErrorKind, Failed, Outcome, Outgoing, Route, Stored, SupportsBind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import timedelta

    from mqcore.connection import Connection
    from mqcore.topology import Topology

__all__ = ["Producer", "PublishOptions", "Publisher", "Receipt", "Target"]

T = TypeVar("T")
Target = Queue[T] | Router[T] | str
"""Where a message can go: a typed queue or router, which is declared when needed, or an existing queue by name."""

_KINDS: dict[ErrorKind, type[PublishFailed]] = {
    ErrorKind.NOT_FOUND: QueueNotFound,
    ErrorKind.FULL: QueueFull,
    ErrorKind.TOO_LARGE: MessageTooLarge,
    ErrorKind.TRANSIENT: Blocked,
}


class PublishOptions(TypedDict, total=False):
    """What may be said of one publish.

    `key`: the routing key, for routers. `priority`: 0 lowest to 10 highest, 5 when not given (G8). `ttl`: seconds until the
    message expires (G6). `delay`: seconds before it may be handled (G7). `id`: an own id; publishing an unknown again with the
    same one is safe where the backend has DEDUP (G1). `headers`: text for text. `timeout`: seconds until the publish ends, 10 when
    not given.
    """

    key: str
    priority: int
    ttl: float | timedelta | None
    delay: float | timedelta
    id: str
    headers: Mapping[str, str]
    timeout: float | timedelta


@dataclass(frozen=True, slots=True)
class Receipt:
    """The broker has confirmed the message at the durability in force.

    `queues` are those that took it (with native routing, the router's name). `duplicate`: it had been stored before with this id,
    and still one copy is stored (G1).
    """

    id: str
    queues: tuple[str, ...]
    duplicate: bool = False


class Publisher:
    """The publishing half of a Broker."""

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        *,
        codecs: Codecs,
        limits: Limits,
        timeout: float,
        outgoing: Sequence[Callable[[Message], Message]] = (),
    ) -> None:
        """`outgoing` are the middlewares' hooks, called in order with each message; `timeout` is the default deadline."""
        self._connection = connection
        self._topology = topology
        self._codecs = codecs
        self._limits = limits
        self._timeout = timeout
        self._outgoing = outgoing
        self._clock = connection.clock
        self._events = connection.events

    async def publish(self, to: Target[T], payload: T, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish one payload; see `Broker.publish`."""
        return await self.publish_message(to, payload, None, options)

    async def publish_message(
        self, to: Target[T], payload: T, change: Callable[[Message], Message] | None, options: PublishOptions
    ) -> Receipt:
        """Publish one payload whose message `change` completes, for instance with where a reply shall go."""
        queue = await self._declared(to)
        message = self._message(queue, payload, options)
        timeout = seconds(options.get("timeout", self._timeout))
        return await self.send(queue, change(message) if change else message, options, timeout)

    async def publish_many(
        self, to: Target[T], payloads: Iterable[T], **options: Unpack[PublishOptions]
    ) -> list[Receipt | MqcoreError]:
        """Publish many payloads as one batch; see `Broker.publish_many`."""
        if "id" in options:
            msg = "publish_many takes no id: every message needs its own"
            raise ValidationError(msg)
        queue = await self._declared(to)
        messages = [self._message(queue, payload, options) for payload in payloads]
        plans = [await self._plan(queue, message, options) for message in messages]
        batch = [outgoing for plan in plans if isinstance(plan, list) for outgoing in plan]
        timeout = seconds(options.get("timeout", self._timeout))
        outcomes = iter(await self._connection.publish(batch, timeout) if batch else [])
        return [
            plan if isinstance(plan, MqcoreError) else self._ending(message, plan, [next(outcomes) for _ in plan])
            for message, plan in zip(messages, plans, strict=True)
        ]

    async def send(
        self, to: Queue[Any] | Router[Any] | str, message: Message, options: PublishOptions, timeout: float
    ) -> Receipt:
        """Send a finished message; its receipt, or its typed error (G1)."""
        plan = await self._plan(to, message, options)
        if isinstance(plan, MqcoreError):
            raise plan
        ending = self._ending(message, plan, await self._connection.publish(plan, timeout))
        if isinstance(ending, MqcoreError):
            raise ending
        return ending

    async def _declared(self, to: Target[Any]) -> Queue[Any] | Router[Any] | str:
        if isinstance(to, Queue):
            return await self._topology.ensure(to)
        if isinstance(to, Router):
            await self._topology.ensure_router(to)
        return to

    def _message(self, to: Queue[Any] | Router[Any] | str, payload: object, options: PublishOptions) -> Message:
        """Encode and check; raises `ValidationError` and `MessageTooLarge`."""
        name = to if isinstance(to, str) else to.name
        try:
            body, content_type = (
                encode_any(payload, self._codecs) if isinstance(to, str) else to.payload.encode(payload, self._codecs)
            )
        except ValidationError as error:
            msg = f"nothing was sent to {name!r}: {error}"
            raise ValidationError(msg) from error
        message = Message(
            id=check_id(options["id"]) if "id" in options else new_id(),
            body=body,
            content_type=content_type,
            headers=check_headers(options["headers"]) if "headers" in options else NO_HEADERS,
            priority=check_priority(options["priority"]) if "priority" in options else DEFAULT_PRIORITY,
            published_at=self._clock.now(),
        )
        for hook in self._outgoing:
            message = hook(message)
        self._limits.check(message, name)
        return message

    async def _plan(
        self, to: Queue[Any] | Router[Any] | str, message: Message, options: PublishOptions
    ) -> list[Outgoing] | Unroutable:
        """Choose the queues. Raises `ValidationError` and `UnsupportedFeature` for options that cannot be kept."""
        ttl, delay = self._times(to, options)
        if message.priority != DEFAULT_PRIORITY:
            self._connection.capabilities.require(Capability.PRIORITY, f"priority={message.priority}")
        if not isinstance(to, Router):
            if "key" in options:
                msg = (
                    f"key={options['key']!r} is for routers, and {to if isinstance(to, str) else to.name!r} is a queue"
                )
                raise ValidationError(msg)
            return [Outgoing(to if isinstance(to, str) else to.name, message, delay, ttl)]
        key = check_key(options.get("key", ""), f"publishing to router {to.name!r}")
        if self._connection.capabilities[Capability.ROUTING].level is Level.NATIVE:
            return [Outgoing(Route(to.name, key), message, delay, ttl)]
        backend = self._connection.supporting(SupportsBind, f"router {to.name!r}")  # type: ignore[type-abstract]  # a protocol, on purpose
        bindings = await self._connection.call(
            f"reading the bindings of router {to.name!r}", lambda: backend.bindings(to.name)
        )
        queues = route(bindings, key, message.headers)
        if not queues:
            bound = (
                ", ".join(sorted({repr(binding.pattern or dict(binding.headers)) for binding in bindings})) or "nothing"
            )
            text = f"message {message.id}: no binding of router {to.name!r} takes key {key!r}; bound is: {bound}"
            self._events.emit("publish.failed", to.name, message.id, error=text)
            return Unroutable(text, id=message.id)
        return [Outgoing(queue, message, delay, ttl) for queue in queues]

    def _times(self, to: Queue[Any] | Router[Any] | str, options: PublishOptions) -> tuple[float | None, float]:
        """Return ttl and delay in seconds, checked (G6, G7)."""
        name = to if isinstance(to, str) else to.name
        given = options.get("ttl")
        ttl = None if given is None else seconds(given)
        delay = seconds(options.get("delay", 0.0))
        if ttl is not None and not (0 < ttl < math.inf):
            msg = f"ttl={ttl:g} for {name!r}: a message must live for more than 0 seconds; leave ttl out for no expiry"
            raise ValidationError(msg)
        if not (0 <= delay < math.inf):
            msg = f"delay={delay:g} for {name!r}: a delay is 0 seconds or more"
            raise ValidationError(msg)
        if delay:
            longest = self._connection.capabilities.require(Capability.DELAY, f"delay={delay:g}").limits.get("max")
            if longest is not None and delay > float(longest):
                msg = f"delay={delay:g} for {name!r}: this backend delays by at most {float(longest):g} seconds"
                raise ValidationError(msg)
        queue_ttl = to.ttl if isinstance(to, Queue) else None
        lives = min((limit for limit in (ttl, queue_ttl) if limit is not None), default=None)
        if lives is not None and delay >= lives:
            msg = f"delay={delay:g} for {name!r} ends after the message has expired (ttl {lives:g}): nobody would ever handle it"
            raise ValidationError(msg)
        return ttl, delay

    def _ending(self, message: Message, plan: Sequence[Outgoing], outcomes: Sequence[Outcome]) -> Receipt | MqcoreError:
        """Say how a publish ended: stored in all its queues, in none for certain, or unknown."""
        names = tuple(out.to if isinstance(out.to, str) else out.to.router for out in plan)
        stored = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
        if len(stored) == len(outcomes):
            duplicate = all(outcome.duplicate for outcome in stored)
            self._events.emit("message.published", names[0], message.id, duplicate=duplicate)
            return Receipt(message.id, names, duplicate)
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        if len(failed) == len(outcomes):
            return self._failure(message, plan[0], failed[0])
        said = {name: _say(outcome) for name, outcome in zip(names, outcomes, strict=True)}
        text = ", ".join(f"{name!r}: {word}" for name, word in said.items())
        self._events.emit("publish.unknown", names[0], message.id, error=text)
        msg = f"message {message.id} may or may not be stored ({text}). Publish it again with id={message.id!r} to be sure"
        error = PublishUnknown(msg, id=message.id, outcomes=said)
        error.__cause__ = next((outcome.cause for outcome in outcomes if not isinstance(outcome, Stored)), None)
        return error

    def _failure(self, message: Message, outgoing: Outgoing, failed: Failed) -> PublishFailed:
        routed = isinstance(outgoing.to, Route)
        name = outgoing.to.router if isinstance(outgoing.to, Route) else outgoing.to
        cls = Unroutable if routed and failed.kind is ErrorKind.NOT_FOUND else _KINDS.get(failed.kind, PublishFailed)
        hint = {
            QueueNotFound: "the queue does not exist. Publish to a Queue(...) to declare it, or start its consumer once",
            QueueFull: "the queue is full (max_length, overflow='reject')",
        }.get(cls, failed.text)
        self._events.emit("publish.failed", name, message.id, error=hint)
        error = cls(f"message {message.id} for {name!r} is not stored: {hint}", id=message.id)
        error.__cause__ = failed.cause
        return error


def _say(outcome: Outcome) -> str:
    if isinstance(outcome, Stored):
        return "stored"
    return f"not stored ({outcome.text})" if isinstance(outcome, Failed) else f"unknown ({outcome.text})"


class Producer(Generic[T]):
    """Publishing to one queue or router with defaults of its own."""

    def __init__(self, publisher: Publisher, to: Target[T], defaults: PublishOptions) -> None:
        """Made by `Broker.producer`."""
        self._publisher = publisher
        self._to = to
        self._defaults = defaults

    async def publish(self, payload: T, **options: Unpack[PublishOptions]) -> Receipt:
        """As `Broker.publish`; what is not given here comes from the producer's defaults."""
        merged: PublishOptions = {**self._defaults, **options}
        return await self._publisher.publish(self._to, payload, **merged)

    async def publish_many(
        self, payloads: Iterable[T], **options: Unpack[PublishOptions]
    ) -> list[Receipt | MqcoreError]:
        """As `Broker.publish_many`, with the producer's defaults."""
        merged: PublishOptions = {**self._defaults, **options}
        return await self._publisher.publish_many(self._to, payloads, **merged)
