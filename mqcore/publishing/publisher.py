"""`Publisher`: sends a message and says how the publish ended.

    payload ─ encode ─► Message ─ middleware ─► limits ─► route ─► Outgoing ─ connection ─► outcome
            ─► Receipt or error

Everything that can be refused is refused before any I/O. A message that was sent has exactly three
endings: stored, certainly not stored, unknown (G1).
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from mqcore.errors import (
    Blocked,
    ConfigurationError,
    ConnectionLost,
    MqcoreError,
    PublishFailed,
    Unroutable,
    ValidationError,
)
from mqcore.publishing.composer import Composer
from mqcore.publishing.enlisting import Enlistment, Place
from mqcore.publishing.options import (
    PublishOptions,
    check_no_id,
    check_payloads,
    check_target,
    drops_unroutable,
    duration,
)
from mqcore.publishing.outbound import Outbound
from mqcore.publishing.outcomes import ending, only, receipt
from mqcore.publishing.own_transaction import check_not_held_up, own_transaction
from mqcore.publishing.transactions import handle_of
from mqcore.queue import Queue, name_of
from mqcore.router import Router
from mqcore.rules.capabilities import Capability, Level
from mqcore.rules.routing import check_key, route
from mqcore.spi import Outgoing, Route, Stored, SupportsBind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from mqcore.connection.connection import Connection
    from mqcore.connection.topology import Topology
    from mqcore.messages.message import Message
    from mqcore.publishing.options import Receipt, Target
    from mqcore.rules.routing import Binding
    from mqcore.spi import Backend

__all__ = ["Publisher"]

T = TypeVar("T")
R = TypeVar("R")
_RETRY_AFTER = 0.05
"""Seconds before a declaration that a lost connection interrupted is tried again."""


class Publisher:
    """The publishing half of a broker."""

    def __init__(
        self, connection: Connection, topology: Topology, composer: Composer, timeout: float
    ) -> None:
        """`timeout` is the default deadline of a publish, in seconds."""
        self._connection = connection
        self._topology = topology
        self._timeout = timeout
        self._clock = connection.clock
        self._events = connection.events
        self.places = [Place(connection)]
        """Where a transaction of the application may be: in the broker, or in its outbox."""
        self.composer = composer
        """Makes and checks the messages; replies are checked by it too."""

    async def publish(
        self, to: Target[T], payload: T, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Publish one payload; see `Broker.publish`."""
        if "session" in options:
            return only(await self.enlistment(to, [payload], options, is_one=True).run())
        return await self.publish_message(to, payload, None, options)

    async def publish_message(
        self,
        to: Target[T],
        payload: T,
        change: Callable[[Message], Message] | None,
        options: PublishOptions,
    ) -> Receipt:
        """Publish one payload; `change` completes its message, for instance with `reply_to`."""
        check_target(to, options)
        if "session" in options:
            raise ValidationError(
                f"a request to {name_of(to)!r} takes no session: its message would be sent after "
                "the commit, and the reply is waited for before it"
            )
        self._check_now(to)
        message = self.composer.message(to, payload, options)

        deadline = self._deadline(to, options)
        declared = self.known(to) or await self.declared(to, deadline, message.id)
        return await self._send(declared, change(message) if change else message, options, deadline)

    async def publish_many(
        self, to: Target[T], payloads: Iterable[T], **options: Unpack[PublishOptions]
    ) -> list[Receipt | MqcoreError]:
        """Publish many payloads as one batch; see `Broker.publish_many`."""
        if "session" in options:
            return await self.enlistment(to, payloads, options).run()
        check_no_id(options)
        check_target(to, options)
        self._check_now(to)
        payloads = check_payloads(payloads, name_of(to))
        messages = [self.composer.message(to, payload, options) for payload in payloads]
        return await self._publish_all(to, messages, options, self._deadline(to, options))

    async def _publish_all(
        self,
        to: Target[Any],
        messages: Sequence[Message],
        options: PublishOptions,
        deadline: float,
    ) -> list[Receipt | MqcoreError]:
        """Publish messages as one batch, and return how each one ended."""
        try:
            declared = self.known(to) or await self.declared(to, deadline)
            if not isinstance(declared, Router):
                return await self._send_to_queue(declared, messages, options, deadline)
            plans = await self.plans(declared, messages, options, deadline)
        except PublishFailed as error:
            return [type(error)(str(error), id=message.id) for message in messages]

        batch = [Outbound(*planned) for planned in zip(messages, plans, strict=True)]
        await self._send_all(batch, deadline)
        return await self._endings(declared, batch, options, deadline)

    def enlistment(
        self,
        to: Target[T],
        payloads: Iterable[T],
        options: PublishOptions,
        *,
        is_one: bool = False,
    ) -> Enlistment:
        """Return a publish inside the transaction of `session`, which has not begun.

        Raises for a wrong payload or option, as `publish` does, and `ConfigurationError` for
        something that is not a session.
        """
        check_target(to, options)
        self._connection.check_loop("publishing to", name_of(to))
        if not is_one:
            check_no_id(options)
        if "unroutable" in options:
            raise ValidationError(
                f"publishing to {name_of(to)!r} with session= takes no unroutable=: the route may "
                "be chosen after the commit. Leave one of them out"
            )
        handle = handle_of(options.get("session"))
        payloads = check_payloads(payloads, name_of(to))
        messages = [self.composer.message(to, payload, options) for payload in payloads]
        return Enlistment(self, to, messages, options, self._deadline(to, options), handle)

    async def send(
        self,
        to: Queue[Any] | Router[Any] | str,
        message: Message,
        options: PublishOptions,
        timeout: float,
    ) -> Receipt:
        """Send a message that core made, within `timeout` seconds. Raises its typed error (G1)."""
        return await self._send(to, message, options, self._clock.monotonic() + timeout)

    async def _send(
        self,
        to: Queue[Any] | Router[Any] | str,
        message: Message,
        options: PublishOptions,
        deadline: float,
    ) -> Receipt:
        if isinstance(to, Router):
            (plan,) = await self.plans(to, [message], options, deadline)
            outbound = Outbound(message, plan)
            await self._send_all([outbound], deadline)
            (result,) = await self._endings(to, [outbound], options, deadline)
        else:
            (result,) = await self._send_to_queue(to, [message], options, deadline)

        return only([result])

    async def _send_to_queue(
        self,
        to: Queue[Any] | str,
        messages: Sequence[Message],
        options: PublishOptions,
        deadline: float,
    ) -> list[Receipt | MqcoreError]:
        """Send messages to one queue as one batch, and return how the publish of each ended.

        Usually all are stored, and nothing has to be looked at again.
        """
        outs = self._to_queue(to, messages, options)
        if not outs:
            return []
        outcomes = await self._connection.publish(outs, self._remaining(deadline))

        stored = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
        if len(stored) == len(outs):
            names = (name_of(to),)
            return [
                receipt(message.id, names, self._events, duplicate=outcome.duplicate)
                for message, outcome in zip(messages, stored, strict=True)
            ]

        batch = [
            Outbound(message, [out], {out.to: outcome})
            for message, out, outcome in zip(messages, outs, outcomes, strict=True)
        ]
        return await self._endings(to, batch, options, deadline)

    async def _endings(
        self,
        to: Queue[Any] | Router[Any] | str,
        batch: Sequence[Outbound],
        options: PublishOptions,
        deadline: float,
    ) -> list[Receipt | MqcoreError]:
        """Return how the publish of each message ended.

        A queue or router that another process has deleted is declared again. Then the messages that
        did not find it are sent once more: they are certainly not stored.
        """
        hint = ""
        queues = self._gone_queues(batch)
        router = to if isinstance(to, Router) and self._gone_router(to, batch, options) else None
        if queues or router is not None:
            try:
                work = partial(self._topology.declare_again, queues, router)
                await self._before_sending(name_of(to), batch[0].message.id, deadline, work)
                unroutable = [outbound for outbound in batch if outbound.unroutable]
                messages = [outbound.message for outbound in unroutable]
                plans = await self.plans(to, messages, options, deadline)
                for outbound, plan in zip(unroutable, plans, strict=True):
                    outbound.plan = plan
            except MqcoreError as error:
                hint = f"; it was deleted, and it could not be declared again: {error}"
            else:
                await self._send_all(batch, deadline)

        if isinstance(to, Router):
            await self._drop_unbound(to, batch, options, deadline)
        drops = drops_unroutable(options, f"publishing to {name_of(to)!r}")
        return [ending(to, outbound, hint, self._events, drops=drops) for outbound in batch]

    async def _drop_unbound(
        self,
        router: Router[Any],
        batch: Sequence[Outbound],
        options: PublishOptions,
        deadline: float,
    ) -> None:
        """Take queues out of the plans that are missing because they have just ended (G15).

        A temporary queue ends with its owner, and its bindings end with it. They were read before.
        """
        late = [outbound for outbound in batch if outbound.missing_queues()]
        if not late:
            return
        with suppress(MqcoreError):  # the queues stay in the plans, and are reported as missing
            bindings = await self._bindings(router, late[0].message.id, deadline)
            bound = {binding.queue for binding in bindings}
            for outbound in late:
                gone = [name for name in outbound.missing_queues() if name not in bound]
                if gone and not outbound.without(gone):
                    outbound.plan = _unroutable(
                        router, outbound.message.id, options.get("key", ""), bindings
                    )

    async def _send_all(self, batch: Sequence[Outbound], deadline: float) -> None:
        """Send as one batch what has no outcome yet, and what did not find its queue or router."""
        unsent = [(outbound, out) for outbound in batch for out in outbound.unsent()]
        if not unsent:
            return

        outcomes = await self._connection.publish(
            [out for _, out in unsent], self._remaining(deadline)
        )
        for (outbound, out), outcome in zip(unsent, outcomes, strict=True):
            outbound.outcomes[out.to] = outcome

    def _gone_queues(self, batch: Sequence[Outbound]) -> list[str]:
        """Return the queues that were missing although this process has declared them."""
        missing = dict.fromkeys(
            to for outbound in batch for to in outbound.missing() if isinstance(to, str)
        )
        return [name for name in missing if self._topology.declares(name)]

    def _gone_router(
        self, router: Router[Any], batch: Sequence[Outbound], options: PublishOptions
    ) -> bool:
        """Whether no queue took a message that a binding of this process should have taken."""
        key = options.get("key", "")
        unrouted = [
            outbound
            for outbound in batch
            if outbound.unroutable or any(isinstance(to, Route) for to in outbound.missing())
        ]
        return any(
            self._topology.routes(router, key, outbound.message.headers) for outbound in unrouted
        )

    @property
    def connection(self) -> Connection:
        """The connection to the broker."""
        return self._connection

    @property
    def topology(self) -> Topology:
        """The queues and routers that are declared."""
        return self._topology

    def _check_now(self, to: Target[Any]) -> None:
        """Raise `ConfigurationError` where a publish certainly cannot end well."""
        name = name_of(to)
        self._connection.check_loop("publishing to", name)
        if own_transaction.get() is not None:
            check_not_held_up(name, self._used_backends())

    def _used_backends(self) -> Sequence[Backend]:
        """Return those that a publish would be sent to now."""
        return [self._connection.backend]

    def _deadline(self, to: Target[Any], options: PublishOptions) -> float:
        timeout = self._timeout
        if "timeout" in options:
            timeout = duration("timeout", options["timeout"], name_of(to))
        return self._clock.monotonic() + timeout

    def _remaining(self, deadline: float) -> float:
        return max(deadline - self._clock.monotonic(), 0.0)

    def known(self, to: Target[Any]) -> Queue[Any] | Router[Any] | str | None:
        """Return a queue or router that is declared as it is configured, and a bare name itself."""
        return to if isinstance(to, str) else self._topology.known(to)

    async def declared(
        self, to: Queue[Any] | Router[Any] | str, deadline: float, id: str = ""
    ) -> Queue[Any] | Router[Any] | str:
        """Declare a queue or router that is not declared yet, and return it as configured."""
        if isinstance(to, str):
            return to
        work = partial(self._topology.ensure_either, to)
        return await self._before_sending(to.name, id, deadline, work)

    async def _before_sending(
        self, name: str, id: str, deadline: float, work: Callable[[], Awaitable[R]]
    ) -> R:
        """Do what must happen before a message is sent, again after a lost connection.

        Raises `PublishFailed` at the deadline: nothing has been sent (G1).
        """
        doing, error = f"publishing to {name!r}", self._connection.error
        if not self._connection.connected:
            _ = self._connection.capabilities  # raises when it was never opened

        try:
            async with self._clock.timeout(self._remaining(deadline)):
                while True:
                    await self._connection.ready(doing)
                    try:
                        return await work()
                    except ConnectionLost as lost:
                        error = lost
                        await self._clock.sleep(_RETRY_AFTER)
        except ConnectionLost as closed:
            raise PublishFailed(f"{closed}; nothing was sent", id=id) from closed
        except TimeoutError:
            why = f" ({error})" if error else ""
            self._events.emit("publish.failed", name, id, error=f"not connected in time{why}")
            raise Blocked(
                f"{doing}: not connected in time, nothing was sent{why}", id=id
            ) from error

    async def plans(
        self,
        to: Queue[Any] | Router[Any] | str,
        messages: Sequence[Message],
        options: PublishOptions,
        deadline: float,
    ) -> list[list[Outgoing] | Unroutable]:
        """Choose the queues of each message.

        The bindings of a router are read once for all messages. Raises `ValidationError` and
        `UnsupportedFeature` for options that cannot be kept.
        """
        if not isinstance(to, Router):
            return [[out] for out in self._to_queue(to, messages, options)]

        outs = self.unresolved(to, messages, options)
        if self._connection.capabilities[Capability.ROUTING].level is Level.NATIVE:
            return [[out] for out in outs]

        if not messages:
            return []
        bindings, key = await self._bindings(to, messages[0].id, deadline), options.get("key", "")
        return [
            [Outgoing(queue, out.message, out.delay, out.ttl) for queue in queues]
            if (queues := route(bindings, key, out.message.headers))
            else _unroutable(to, out.message.id, key, bindings)
            for out in outs
        ]

    def unresolved(
        self,
        to: Queue[Any] | Router[Any] | str,
        messages: Sequence[Message],
        options: PublishOptions,
    ) -> list[Outgoing]:
        """Return what is to be sent, with a `Route` for a router. Raises as `plans` does."""
        if not isinstance(to, Router):
            return self._to_queue(to, messages, options)
        ttl, delay = self._checked(to, messages, options)
        drops_unroutable(options, f"publishing to router {to.name!r}")
        try:
            key = check_key(options.get("key", ""), f"publishing to router {to.name!r}")
        except ConfigurationError as error:
            raise ValidationError(str(error)) from None
        return [Outgoing(Route(to.name, key), message, delay, ttl) for message in messages]

    def _to_queue(
        self, to: Queue[Any] | str, messages: Sequence[Message], options: PublishOptions
    ) -> list[Outgoing]:
        """Return what is to be sent to a queue. Raises as `plans` does."""
        ttl, delay = self._checked(to, messages, options)
        name = name_of(to)
        if "key" in options:
            raise ValidationError(f"key={options['key']!r} is for routers, and {name!r} is a queue")
        if "unroutable" in options:
            raise ValidationError(f"unroutable= is for routers, and {name!r} is a queue")
        return [Outgoing(name, message, delay, ttl) for message in messages]

    def _checked(
        self,
        to: Queue[Any] | Router[Any] | str,
        messages: Sequence[Message],
        options: PublishOptions,
    ) -> tuple[float | None, float]:
        """Return ttl and delay. Raises for these and priorities that cannot be kept."""
        times = self.composer.times(to, options)
        for message in messages:
            self.composer.check_priority(message)
        return times

    async def _bindings(self, router: Router[Any], id: str, deadline: float) -> Sequence[Binding]:
        backend = self._connection.supporting(SupportsBind, f"router {router.name!r}")
        reading = partial(
            self._connection.call,
            f"reading the bindings of router {router.name!r}",
            partial(backend.bindings, router.name),
        )
        return await self._before_sending(router.name, id, deadline, reading)


def _unroutable(router: Router[Any], id: str, key: str, bindings: Sequence[Binding]) -> Unroutable:
    patterns = {repr(binding.pattern or dict(binding.headers)) for binding in bindings}
    bound = ", ".join(sorted(patterns)) or "nothing"
    return Unroutable(
        f"message {id}: no binding of router {router.name!r} takes key {key!r}; bound is: {bound}",
        id=id,
    )
