"""`FallbackPublisher`: publishes to the broker, and to the spool while the broker is away.

    publish ─► the broker is there, and nothing of this target waits ─► the broker
           │                                  └─ no answer, connection lost ─┐
           └─► the broker is away, or something of this target waits ────────┴─► the spool

What the broker refuses is reported to the caller: a full queue, a queue that does not exist, a
message that is too large, missing rights. Only a broker that is not there is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mqcore.errors import (
    Blocked,
    ConfigurationError,
    MqcoreError,
    PublishFailed,
    PublishUnknown,
    QueueFull,
    ValidationError,
)
from mqcore.events import Events
from mqcore.publishing.options import Receipt, check_target
from mqcore.publishing.parcel import Parcel
from mqcore.publishing.publisher import Publisher
from mqcore.queue import name_of
from mqcore.router import Router
from mqcore.rules.redact import describe_error
from mqcore.rules.routing import check_key
from mqcore.spi import ErrorKind, Failed, Outgoing, Route, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.connection.connection import Connection
    from mqcore.connection.topology import Topology
    from mqcore.messages.message import Message
    from mqcore.publishing.composer import Composer
    from mqcore.publishing.options import PublishOptions, Target
    from mqcore.publishing.spool import Lane, Spool
    from mqcore.rules.routing import Binding
    from mqcore.spi import Backend, Outcome, QueueSpec

__all__ = ["FallbackPublisher"]


class _TryEvents(Events):
    """The broker's events, without failures of a try that the spool may make good."""

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._events = events

    def emit(
        self, name: str, queue: str = "", message_id: str = "", attempt: int = 0, **fields: object
    ) -> None:
        if name not in {"publish.failed", "publish.unknown"}:
            self._events.emit(name, queue, message_id, attempt, **fields)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the parcels of one call have in common."""

    to: str | Route
    delay: float
    ttl: float | None
    queues: tuple[QueueSpec, ...]
    bindings: tuple[Binding, ...]


class FallbackPublisher(Publisher):
    """The publishing half of a broker that has a fallback."""

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        composer: Composer,
        timeout: float,
        spool: Spool,
        after: float,
    ) -> None:
        """`after` is how many seconds the broker has to confirm before the spool is used."""
        super().__init__(connection, topology, composer, timeout)
        self._reported, self._events = connection.events, _TryEvents(connection.events)
        self._spool = spool
        self._after = after

    async def publish_message(
        self,
        to: Target[Any],
        payload: Any,
        change: Callable[[Message], Message] | None,
        options: PublishOptions,
    ) -> Receipt:
        """Publish one payload; `change` completes its message."""
        check_target(to, options)
        self._check_now(to)
        message = self.composer.message(to, payload, options)
        messages = [change(message) if change else message]

        (result,) = await self._publish_all(to, messages, options, self._deadline(to, options))
        if isinstance(result, MqcoreError):
            raise result
        return result

    async def _publish_all(
        self,
        to: Target[Any],
        messages: Sequence[Message],
        options: PublishOptions,
        deadline: float,
    ) -> list[Receipt | MqcoreError]:
        if not messages:
            return []
        plan = self._plan(to, messages, options)
        lane = self._spool.lane(name_of(to), is_router=isinstance(to, Router))
        try:
            await lane.pass_gate(self._remaining(deadline))
        except TimeoutError:
            text = f"publishing to {name_of(to)!r}: not sent in time; nothing was sent"
            return [self._report(to, Blocked(text, id=message.id)) for message in messages]

        # From here on to the publish there is no await, so publishes keep their order.
        results: list[Receipt | MqcoreError | None] = [None] * len(messages)
        with lane.place() as place:
            if self._goes_to_broker(lane):
                results[:], is_answered = await self._try(to, messages, options, deadline)
                is_final = is_answered and isinstance(to, Router)
                left = [
                    index
                    for index, result in enumerate(results)
                    if self._is_open(result, is_final=is_final)
                ]
            else:
                left = list(range(len(messages)))
            if left:
                now = self._clock.now()
                parcels = [_parcel(messages[index], plan, now) for index in left]
                outcomes = await lane.store(place, parcels, self._remaining(deadline))
                for index, outcome in zip(left, outcomes, strict=True):
                    id_, tried = messages[index].id, results[index]
                    results[index] = self._ending_of(to, id_, tried, outcome)

        return [
            self._report(to, result) if isinstance(result, MqcoreError) else result
            for result in results
            if result is not None
        ]

    def _used_backends(self) -> Sequence[Backend]:
        if self._connection.connected:
            return super()._used_backends()
        return [self._spool.connection.backend]

    def _goes_to_broker(self, lane: Lane) -> bool:
        """Whether the broker is tried first. It is the only way when the spool cannot be used."""
        if not self._spool.is_usable:
            return True
        return self._connection.connected and not lane.is_spooled

    async def _try(
        self,
        to: Target[Any],
        messages: Sequence[Message],
        options: PublishOptions,
        deadline: float,
    ) -> tuple[list[Receipt | MqcoreError], bool]:
        """Publish to the broker, and leave time for the spool; whether the broker answered."""
        remaining = self._remaining(deadline)
        if self._spool.is_usable:
            deadline -= max(remaining - self._after, remaining / 2)
        generation = self._connection.generation
        try:
            results = await super()._publish_all(to, messages, options, deadline)
        except PublishFailed as error:
            results = [type(error)(str(error), id=message.id) for message in messages]

        is_answered = (
            self._connection.connected
            and self._connection.generation == generation
            and self._remaining(deadline) > 0
        )
        return results, is_answered

    def _is_open(self, result: Receipt | MqcoreError | None, *, is_final: bool) -> bool:
        """Whether a message is to be spooled: the broker is not there, or does not answer.

        With `is_final` an answer that says "unknown" is reported. A router gives it when one of its
        queues refused what others took, and would give it again. With a cause, there was no answer.
        """
        if not self._spool.is_usable or self._connection.is_closed:
            return False
        if isinstance(result, PublishUnknown):
            return not is_final or result.__cause__ is not None
        return isinstance(result, Blocked)

    def _plan(self, to: Target[Any], messages: Sequence[Message], options: PublishOptions) -> _Plan:
        """Check the options as a publish to the broker does, and return what is spooled."""
        ttl, delay = self._checked(to, messages, options)
        if isinstance(to, Router):
            try:
                key = check_key(options.get("key", ""), f"publishing to router {to.name!r}")
            except ConfigurationError as error:
                raise ValidationError(str(error)) from None
            return _Plan(Route(to.name, key), delay, ttl, *self._topology.missing(to))

        name = name_of(to)
        if "key" in options:
            raise ValidationError(f"key={options['key']!r} is for routers, and {name!r} is a queue")
        if isinstance(to, str):
            return _Plan(name, delay, ttl, (), ())
        limits = [limit for limit in (ttl, self._topology.configured(to).ttl) if limit is not None]
        return _Plan(name, delay, min(limits, default=None), *self._topology.missing(to))

    def _ending_of(
        self,
        to: Target[Any],
        id: str,
        tried: Receipt | MqcoreError | None,
        outcome: Outcome,
    ) -> Receipt | MqcoreError:
        """Return how the publish of a message ended that was given to the spool."""
        name, error = name_of(to), self._connection.error
        reason = str(tried) if tried is not None else ""
        if tried is None:
            reason = describe_error(error) if error else "earlier messages to it wait in the spool"
        if isinstance(outcome, Stored):
            self._reported.emit(
                "message.spooled", name, id, duplicate=outcome.duplicate, reason=reason
            )
            return Receipt(id, (name,), outcome.duplicate, spooled=True)

        what = f"message {id} for {name!r}"
        if isinstance(tried, PublishUnknown):
            text = f"{tried}; and the fallback did not store it: {outcome.text}"
            return PublishUnknown(text, id=id, outcomes=tried.outcomes)
        if not isinstance(outcome, Failed):
            return PublishUnknown(
                f"{what} may or may not be in the spool of the fallback ({outcome.text}). Publish "
                f"it again with id={id!r} to be sure",
                id=id,
            )
        is_full = outcome.kind is ErrorKind.FULL
        cure = (
            "Wait for the broker, or give the fallback a larger max_length or more disk"
            if is_full
            else "Publish it again when one of the two is back"
        )
        failure = (QueueFull if is_full else Blocked)(
            f"{what} is not stored: the broker does not take it ({reason}), and neither does the "
            f"spool of the fallback: {outcome.text}. {cure}",
            id=id,
        )
        failure.__cause__ = outcome.cause
        return failure

    def _report(self, to: Target[Any], error: MqcoreError) -> MqcoreError:
        """Emit the event of a publish that has failed. Adds why the spool was not used."""
        is_unknown = isinstance(error, PublishUnknown)
        why = self._spool.why_unusable
        if why and isinstance(error, Blocked | PublishUnknown):
            text = f"{error}; the spool of the fallback cannot be used: {why}"
            error.args = (text,)
        event = "publish.unknown" if is_unknown else "publish.failed"
        self._reported.emit(event, name_of(to), getattr(error, "id", ""), error=str(error))
        return error


def _parcel(message: Message, plan: _Plan, now: float) -> Parcel:
    out = Outgoing(plan.to, message, plan.delay, plan.ttl)
    return Parcel(out, now, plan.queues, plan.bindings)
