"""A message on its way out: encode, check, choose the queues, send, and say how it ended.

    payload ─ encode ─► Message ─ middleware ─► limits ─► route ─► Outgoing ─ connection ─► outcome ─► Receipt or error

Everything that can be refused is refused before any I/O; what was sent has exactly three endings
(G1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, Unpack

from mqcore.defaults import PRIORITY
from mqcore.errors import (
    Blocked,
    ConfigurationError,
    ConnectionLost,
    MessageTooLarge,
    MqcoreError,
    PublishFailed,
    PublishUnknown,
    QueueFull,
    QueueNotFound,
    Unroutable,
    ValidationError,
)
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
from mqcore.publishing.outbound import Outbound
from mqcore.queue import Queue, name_of
from mqcore.router import Router
from mqcore.rules.capabilities import Capability, Level
from mqcore.rules.checks import check_options, seconds_or_nan
from mqcore.rules.routing import check_key, route
from mqcore.spi import ErrorKind, Failed, Outcome, Outgoing, Route, Stored, SupportsBind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from datetime import timedelta

    from mqcore.connection.connection import Connection
    from mqcore.connection.topology import Topology

__all__ = ["Producer", "PublishOptions", "Publisher", "Receipt", "Target"]

T = TypeVar("T")
R = TypeVar("R")
_AGAIN = 0.05
Target = Queue[T] | Router[T] | str
"""Where a message can go: a typed queue or router, which is declared when needed, or an existing queue by name.
"""

_KINDS: dict[ErrorKind, type[PublishFailed]] = {
    ErrorKind.NOT_FOUND: QueueNotFound,
    ErrorKind.FULL: QueueFull,
    ErrorKind.TOO_LARGE: MessageTooLarge,
    ErrorKind.TRANSIENT: Blocked,
}


class PublishOptions(TypedDict, total=False):
    """What may be said of one publish.

    `key`: the routing key, for routers. `priority`: 0 lowest to 10 highest, 5 when not given (G8).
    `ttl`: seconds until the message expires (G6). `delay`: seconds before it may be handled (G7).
    `id`: an own id; publishing an unknown again with the same one is safe where the backend has
    DEDUP (G1). `headers`: text for text. `timeout`: seconds until the publish ends, 10 when not
    given.
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

    `queues` are those that took it (with native routing, the router's name). `duplicate`: it had
    been stored before with this id, and still one copy is stored (G1).
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

    async def publish(
        self, to: Target[T], payload: T, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Publish one payload; see `Broker.publish`."""
        return await self.publish_message(to, payload, None, options)

    async def publish_message(
        self,
        to: Target[T],
        payload: T,
        change: Callable[[Message], Message] | None,
        options: PublishOptions,
    ) -> Receipt:
        """Publish one payload whose message `change` completes, for instance with where a reply shall go."""
        _check(to, options)
        self._connection.check_loop(f"publishing to {name_of(to)!r}")
        message = self._message(to, payload, options)
        until = self._deadline(to, options)
        queue = await self._declared(to, until, message.id)
        return await self._send(queue, change(message) if change else message, options, until)

    async def publish_many(
        self, to: Target[T], payloads: Iterable[T], **options: Unpack[PublishOptions]
    ) -> list[Receipt | MqcoreError]:
        """Publish many payloads as one batch; see `Broker.publish_many`."""
        if "id" in options:
            msg = "publish_many takes no id: every message needs its own"
            raise ValidationError(msg)
        _check(to, options)
        self._connection.check_loop(f"publishing to {name_of(to)!r}")
        messages = [self._message(to, payload, options) for payload in payloads]
        until = self._deadline(to, options)
        try:
            queue = await self._declared(to, until)
            attempts = [
                Outbound(message, await self._plan(queue, message, options, until))
                for message in messages
            ]
        except PublishFailed as error:
            return [type(error)(str(error), id=message.id) for message in messages]
        return await self._endings(queue, attempts, options, until)

    async def send(
        self,
        to: Queue[Any] | Router[Any] | str,
        message: Message,
        options: PublishOptions,
        timeout: float,
    ) -> Receipt:
        """Send a message made by core; its receipt, or its typed error (G1)."""
        return await self._send(to, message, options, self._clock.monotonic() + timeout)

    async def _send(
        self,
        to: Queue[Any] | Router[Any] | str,
        message: Message,
        options: PublishOptions,
        until: float,
    ) -> Receipt:
        attempt = Outbound(message, await self._plan(to, message, options, until))
        (ending,) = await self._endings(to, [attempt], options, until)
        if isinstance(ending, MqcoreError):
            raise ending
        return ending

    async def _endings(
        self,
        to: Queue[Any] | Router[Any] | str,
        attempts: Sequence[Outbound],
        options: PublishOptions,
        until: float,
    ) -> list[Receipt | MqcoreError]:
        """Send messages to one target, and say how each ended.

        What another process has deleted is declared again, and what found it gone is sent once
        more: it is certainly not stored.
        """
        await self._send_all(attempts, until)
        hint = ""

        queues = self._gone_queues(attempts)
        router = to if isinstance(to, Router) and self._gone_router(to, attempts, options) else None
        if queues or router is not None:
            try:
                work = partial(self._topology.declare_again, queues, router)
                await self._before_sending(name_of(to), attempts[0].message.id, until, work)
                for attempt in attempts:
                    if attempt.unroutable:
                        attempt.plan = await self._plan(to, attempt.message, options, until)
            except MqcoreError as error:
                hint = f"; it was deleted, and it could not be declared again: {error}"
            else:
                await self._send_all(attempts, until)

        return [self._ending(to, attempt, hint) for attempt in attempts]

    async def _send_all(self, attempts: Sequence[Outbound], until: float) -> None:
        """Send in one batch what has no outcome yet, or found its queue or router missing."""
        left = [(attempt, out) for attempt in attempts for out in attempt.left()]
        if left:
            outcomes = await self._connection.publish([out for _, out in left], self._left(until))
            for (attempt, out), outcome in zip(left, outcomes, strict=True):
                attempt.outcomes[out.to] = outcome

    def _gone_queues(self, attempts: Sequence[Outbound]) -> list[str]:
        """Return the queues that were missing although this process has declared them."""
        missing = dict.fromkeys(
            to for attempt in attempts for to in attempt.missing() if isinstance(to, str)
        )
        return [name for name in missing if self._topology.declares(name)]

    def _gone_router(
        self, router: Router[Any], attempts: Sequence[Outbound], options: PublishOptions
    ) -> bool:
        """Whether nothing took a message that a binding of this process should have taken."""
        key = options.get("key", "")
        unrouted = [
            it
            for it in attempts
            if it.unroutable or any(isinstance(to, Route) for to in it.missing())
        ]
        return any(
            self._topology.routes(router, key, attempt.message.headers) for attempt in unrouted
        )

    def check_size(self, message: Message, name: str) -> None:
        """Raise `MessageTooLarge` for what exceeds this broker's limits, or what the live server can carry (G12)."""
        self._limits.check(message, name)
        capabilities, size = self._connection.capabilities, len(message.body)
        if capabilities.max_payload is not None and size > capabilities.max_payload:
            why = (
                f"its payload has {size:,} bytes, and the backend {capabilities.backend!r} "
                f"takes {capabilities.max_payload:,}"
            )
            raise MessageTooLarge(
                f"message {message.id} for {name!r} was not sent: {why}", id=message.id
            )

    def _deadline(self, to: Target[Any], options: PublishOptions) -> float:
        timeout = duration("timeout", options.get("timeout", self._timeout), name_of(to))
        return self._clock.monotonic() + timeout

    def _left(self, until: float) -> float:
        return max(until - self._clock.monotonic(), 0.0)

    async def _declared(
        self, to: Target[Any], until: float, id: str = ""
    ) -> Queue[Any] | Router[Any] | str:
        """Declare what is not declared yet; a name is taken as it is."""
        if isinstance(to, str):
            return to
        if (known := self._topology.known(to)) is not None:
            return known
        return await self._before_sending(
            to.name, id, until, partial(self._topology.ensure_either, to)
        )

    async def _before_sending(
        self, name: str, id: str, until: float, work: Callable[[], Awaitable[R]]
    ) -> R:
        """Do what must come first, again after a lost connection; `PublishFailed` at the deadline: nothing has been sent (G1)."""
        doing, error = f"publishing to {name!r}", self._connection.error
        if not self._connection.connected:
            _ = self._connection.capabilities  # raises when it was never opened
        try:
            async with self._clock.timeout(self._left(until)):
                while True:
                    await self._connection.ready(doing)
                    try:
                        return await work()
                    except ConnectionLost as lost:
                        error = lost
                        await self._clock.sleep(_AGAIN)
        except ConnectionLost as closed:
            raise PublishFailed(f"{closed}; nothing was sent", id=id) from closed
        except TimeoutError:
            why = f" ({error})" if error else ""
            self._events.emit("publish.failed", name, id, error=f"not connected in time{why}")
            raise PublishFailed(
                f"{doing}: not connected in time, nothing was sent{why}", id=id
            ) from error

    def _message(
        self, to: Queue[Any] | Router[Any] | str, payload: object, options: PublishOptions
    ) -> Message:
        """Encode and check; raises `ValidationError` and `MessageTooLarge`."""
        name = name_of(to)
        try:
            body, content_type = (
                encode_any(payload, self._codecs)
                if isinstance(to, str)
                else to.payload.encode(payload, self._codecs)
            )
        except ValidationError as error:
            msg = f"nothing was sent to {name!r}: {error}"
            raise ValidationError(msg) from error
        message = Message(
            id=check_id(options["id"]) if "id" in options else new_id(),
            body=body,
            content_type=content_type,
            headers=check_headers(options["headers"]) if "headers" in options else NO_HEADERS,
            priority=check_priority(options["priority"]) if "priority" in options else PRIORITY,
            published_at=self._clock.now(),
        )
        return self.checked(message, name)

    def checked(self, message: Message, name: str) -> Message:
        """Run the middlewares' hooks over a message for `name`; raises `MessageTooLarge` when it exceeds a limit then (G12)."""
        for hook in self._outgoing:
            message = hook(message)
        self.check_size(message, name)
        return message

    async def _plan(
        self,
        to: Queue[Any] | Router[Any] | str,
        message: Message,
        options: PublishOptions,
        until: float,
    ) -> list[Outgoing] | Unroutable:
        """Choose the queues.

        Raises `ValidationError` and `UnsupportedFeature` for options that cannot be kept.
        """
        ttl, delay = self._times(to, options)
        if message.priority != PRIORITY:
            self._connection.capabilities.require(
                Capability.PRIORITY, f"priority={message.priority}"
            )
        if not isinstance(to, Router):
            if "key" in options:
                msg = f"key={options['key']!r} is for routers, and {name_of(to)!r} is a queue"
                raise ValidationError(msg)
            return [Outgoing(name_of(to), message, delay, ttl)]
        try:
            key = check_key(options.get("key", ""), f"publishing to router {to.name!r}")
        except ConfigurationError as error:
            raise ValidationError(str(error)) from None
        if self._connection.capabilities[Capability.ROUTING].level is Level.NATIVE:
            return [Outgoing(Route(to.name, key), message, delay, ttl)]
        backend = self._connection.supporting(SupportsBind, f"router {to.name!r}")
        reading = partial(
            self._connection.call,
            f"reading the bindings of router {to.name!r}",
            partial(backend.bindings, to.name),
        )
        bindings = await self._before_sending(to.name, message.id, until, reading)
        queues = route(bindings, key, message.headers)
        if not queues:
            bound = (
                ", ".join(
                    sorted({repr(binding.pattern or dict(binding.headers)) for binding in bindings})
                )
                or "nothing"
            )
            text = (
                f"message {message.id}: no binding of router {to.name!r} takes key {key!r}; "
                f"bound is: {bound}"
            )
            return Unroutable(text, id=message.id)
        return [Outgoing(queue, message, delay, ttl) for queue in queues]

    def _times(
        self, to: Queue[Any] | Router[Any] | str, options: PublishOptions
    ) -> tuple[float | None, float]:
        """Return ttl and delay in seconds, checked (G6, G7)."""
        name = name_of(to)
        given = options.get("ttl")
        ttl = None if given is None else duration("ttl", given, name)
        delay = duration("delay", options.get("delay", 0.0), name)
        if ttl is not None and not (0 < ttl < math.inf):
            msg = (
                f"ttl={ttl:g} for {name!r}: a message must live for more than 0 seconds; leave "
                "ttl out for no expiry"
            )
            raise ValidationError(msg)
        if ttl is not None:
            self._connection.capabilities.require(Capability.EXPIRY, f"ttl={ttl:g}")
        if not (0 <= delay < math.inf):
            msg = f"delay={delay:g} for {name!r}: a delay is 0 seconds or more"
            raise ValidationError(msg)
        if delay:
            longest = self._connection.capabilities.require(
                Capability.DELAY, f"delay={delay:g}"
            ).limits.get("max")
            if longest is not None and delay > float(longest):
                msg = (
                    f"delay={delay:g} for {name!r}: this backend delays by at most "
                    f"{float(longest):g} seconds"
                )
                raise ValidationError(msg)
        queue_ttl = to.ttl if isinstance(to, Queue) else None
        lives = min((limit for limit in (ttl, queue_ttl) if limit is not None), default=None)
        if lives is not None and delay >= lives:
            msg = (
                f"delay={delay:g} for {name!r} ends after the message has expired (ttl "
                f"{lives:g}): nobody would ever handle it"
            )
            raise ValidationError(msg)
        return ttl, delay

    def _ending(
        self, to: Queue[Any] | Router[Any] | str, attempt: Outbound, hint: str
    ) -> Receipt | MqcoreError:
        """Say how a publish ended: stored in all its queues, in none for certain, or unknown."""
        message, plan, outcomes = attempt.message, attempt.plan, list(attempt.outcomes.values())
        if isinstance(plan, Unroutable):
            self._events.emit("publish.failed", name_of(to), message.id, error=f"{plan}{hint}")
            return Unroutable(f"{plan}{hint}", id=message.id) if hint else plan

        names = tuple(out.to if isinstance(out.to, str) else out.to.router for out in plan)
        stored = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
        if len(stored) == len(outcomes):
            duplicate = all(outcome.duplicate for outcome in stored)
            self._events.emit("message.published", names[0], message.id, duplicate=duplicate)
            return Receipt(message.id, names, duplicate)
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        if len(failed) == len(outcomes):
            return self._failure(to, message, failed[0], hint)
        said = {name: _say(outcome) for name, outcome in zip(names, outcomes, strict=True)}
        text = ", ".join(f"{name!r}: {word}" for name, word in said.items())
        self._events.emit("publish.unknown", names[0], message.id, error=text)
        msg = (
            f"message {message.id} may or may not be stored ({text}). Publish it again with "
            f"id={message.id!r} to be sure"
        )
        error = PublishUnknown(msg, id=message.id, outcomes=said)
        error.__cause__ = next(
            (outcome.cause for outcome in outcomes if not isinstance(outcome, Stored)), None
        )
        return error

    def _failure(
        self, to: Queue[Any] | Router[Any] | str, message: Message, failed: Failed, hint: str
    ) -> PublishFailed:
        name, missing = name_of(to), failed.kind is ErrorKind.NOT_FOUND
        cls = (
            Unroutable
            if missing and isinstance(to, Router)
            else _KINDS.get(failed.kind, PublishFailed)
        )
        text = failed.text
        if cls is QueueNotFound and isinstance(to, Queue) and not to.declare:
            text = (
                "the queue does not exist, and declare=False says not to make it: it is for its "
                "maker to declare"
            )
        elif cls is QueueNotFound and not hint:
            text = (
                "the queue does not exist. Publish to a Queue(...) to declare it, or start its "
                "consumer once"
            )
        self._events.emit("publish.failed", name, message.id, error=f"{text}{hint}")
        error = cls(f"message {message.id} for {name!r} is not stored: {text}{hint}", id=message.id)
        error.__cause__ = failed.cause
        return error


def _check(to: Queue[Any] | Router[Any] | str, options: PublishOptions) -> None:
    if not isinstance(to, (str, Queue, Router)):
        raise ConfigurationError(
            f"publish to a Queue, a Router or the name of a queue, not to {to!r:.60}"
        )
    if options:
        check_options(options, PublishOptions, f"publishing to {name_of(to)!r}")


def _say(outcome: Outcome) -> str:
    if isinstance(outcome, Stored):
        return "stored"
    return (
        f"not stored ({outcome.text})"
        if isinstance(outcome, Failed)
        else f"unknown ({outcome.text})"
    )


def duration(what: str, value: object, name: str) -> float:
    """Return a duration in seconds. Raises `ValidationError` for a value that is not a duration."""
    number = seconds_or_nan(value)
    if math.isnan(number):
        raise ValidationError(
            f"{what}={value!r:.60} for {name!r} is not a duration; give seconds or a timedelta"
        )
    return number


class Producer(Generic[T]):
    """Publishing to one queue or router with defaults of its own."""

    def __init__(self, publisher: Publisher, to: Target[T], defaults: PublishOptions) -> None:
        """Made by `Broker.producer`."""
        _check(to, defaults)
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
