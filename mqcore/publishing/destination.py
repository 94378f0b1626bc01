"""`Destination`: where a relay delivers its parcels to.

`Forwarding` is the destination that is a connection: it declares what a parcel brings, resolves
routes by the bindings of that moment, and publishes all parcels of a batch in one request.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from mqcore.errors import BrokerError, MqcoreError, TopologyMismatch, UnsupportedFeature
from mqcore.rules.capabilities import Capability, Level
from mqcore.rules.redact import describe_error
from mqcore.rules.routing import route
from mqcore.spi import ErrorKind, Failed, Route, Stored, SupportsBind, Unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.connection.connection import Connection
    from mqcore.publishing.parcel import Parcel
    from mqcore.rules.routing import Binding
    from mqcore.spi import Outcome, Outgoing

__all__ = ["Destination", "Forwarding"]


class Destination(Protocol):
    """Takes parcels. Tests and other stores may have one of their own."""

    async def ready(self) -> None:
        """Return as soon as parcels can be published. Raises when that cannot be any more."""

    async def publish(self, parcels: Sequence[Parcel], timeout: float) -> Sequence[Outcome]:
        """Publish parcels within `timeout` seconds, and return an outcome for each, in order.

        Does not raise for a failure of the broker.
        """


class Forwarding:
    """Publishes parcels to the broker of a connection."""

    def __init__(self, connection: Connection) -> None:
        """The connection is opened and closed by its owner."""
        self._connection = connection
        self._clock = connection.clock
        self._declared: set[object] = set()

    async def ready(self) -> None:
        """Return when connected. Raises `ConnectionLost` when the connection is closed for good."""
        await self._connection.ready("relaying messages")

    async def publish(self, parcels: Sequence[Parcel], timeout: float) -> Sequence[Outcome]:
        """Publish parcels as one batch, and return an outcome for each.

        A parcel for a router that is resolved to several queues is `Stored` when all took it. When
        some refused it, it is delivered to all again: its id is known where it was stored (G1).
        """
        connection, deadline = self._connection, self._clock.monotonic() + timeout
        now, generation = self._clock.now(), connection.generation
        plans = [await self._plan(parcel, now, deadline) for parcel in parcels]

        outs = [out for plan in plans if isinstance(plan, list) for out in plan]
        remaining = max(deadline - self._clock.monotonic(), 0.0)
        outcomes = iter(await connection.publish(outs, remaining) if outs else ())
        results = [
            _merged([next(outcomes) for _ in plan]) if isinstance(plan, list) else plan
            for plan in plans
        ]

        is_same = connection.connected and connection.generation == generation
        is_answered = is_same and self._clock.monotonic() < deadline
        return [
            _final(result) if is_answered and isinstance(parcel.out.to, Route) else result
            for parcel, result in zip(parcels, results, strict=True)
        ]

    async def _plan(self, parcel: Parcel, now: float, deadline: float) -> list[Outgoing] | Failed:
        """Return what to publish for a parcel, or why it cannot be published."""
        out = parcel.outgoing(now)
        if isinstance(out.to, str) and not parcel.queues:
            return [out]

        try:
            async with self._clock.timeout(max(deadline - self._clock.monotonic(), 0.0)):
                await self._declare(parcel)
                if not isinstance(out.to, Route) or self._routes_itself():
                    return [out]
                bindings = await self._bindings(out.to.router)
        except TimeoutError:
            return Failed(ErrorKind.TRANSIENT, "its queue or router was not declared in time")
        except MqcoreError as error:
            return Failed(_kind_of(error), describe_error(error), error)

        queues = route(bindings, out.to.key, out.message.headers)
        if not queues:
            text = f"no binding of router {out.to.router!r} takes key {out.to.key!r}"
            return Failed(ErrorKind.NOT_FOUND, text)
        return [type(out)(queue, out.message, out.delay, out.ttl) for queue in queues]

    async def _declare(self, parcel: Parcel) -> None:
        """Declare once what a parcel brings. A queue that exists otherwise is used as it is."""
        for spec in parcel.queues:
            if spec not in self._declared:
                try:
                    await self._connection.declare([spec])
                except TopologyMismatch as error:
                    self._connection.events.emit(
                        "queue.altered", spec.name, error=describe_error(error)
                    )
                self._declared.add(spec)

        bindings = [each for each in parcel.bindings if each not in self._declared]
        if bindings:
            await self._connection.bind(bindings)
            self._declared.update(bindings)

    def _routes_itself(self) -> bool:
        return self._connection.capabilities[Capability.ROUTING].level is Level.NATIVE

    async def _bindings(self, router: str) -> Sequence[Binding]:
        backend = self._connection.supporting(SupportsBind, f"router {router!r}")
        return await self._connection.call(
            f"reading the bindings of router {router!r}", partial(backend.bindings, router)
        )


def _kind_of(error: MqcoreError) -> ErrorKind:
    """Return whether what must come before a publish may succeed later."""
    if isinstance(error, UnsupportedFeature | TopologyMismatch):
        return ErrorKind.PERMANENT
    return ErrorKind.TRANSIENT if isinstance(error, BrokerError) else ErrorKind.PERMANENT


def _final(outcome: Outcome) -> Outcome:
    """Return the outcome of a routed publish that the broker has answered.

    "Unknown" is its answer when one of the router's queues refused what others took (G15). Another
    try would be stored by those others once more where the broker does not know the id. With a
    cause it is none: the driver has lost the answer.
    """
    if not isinstance(outcome, Unknown) or outcome.cause is not None:
        return outcome
    text = f"a queue of its router refused it, and others may have it: {outcome.text}"
    return Failed(ErrorKind.PERMANENT, text, outcome.cause)


def _merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of a parcel that went to several queues: the worst."""
    for outcome in outcomes:
        if isinstance(outcome, Unknown):
            return outcome
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    if failed:
        return failed[0]
    return Stored(duplicate=all(getattr(outcome, "duplicate", False) for outcome in outcomes))
