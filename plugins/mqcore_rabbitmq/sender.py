"""Publishing: a batch, each message to its own destination, and an outcome for each.

    Outgoing ─ plan ─► PlannedMessage ─ needs ─► confirms ─► an outcome for each, in order

Everything that must be asked first (an unknown queue, a ladder, a router) is asked before anything
is sent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic

from mqcore.spi import (
    STORED,
    ConfigurationError,
    ErrorKind,
    Failed,
    Outcome,
    Outgoing,
    Route,
    Stored,
    Unknown,
)
from mqcore_rabbitmq.confirms import EXCHANGES, QUEUES, ConfirmChannels, PlannedMessage
from mqcore_rabbitmq.errors import classify
from mqcore_rabbitmq.plan import ROUTER
from mqcore_rabbitmq.plan import plan as plan_message
from mqcore_rabbitmq.topology import Topology

__all__ = ["Sender"]

_Answers = tuple[list[int], list[Outcome]]
_Part = tuple[list[int], Awaitable[list[Outcome]]]
"""Messages that are sent together: their places in the batch, and their outcomes."""


class Sender:
    """The publishing side of one open instance."""

    def __init__(
        self, confirm_channels: ConfirmChannels, topology: Topology, *, native_routes: bool
    ) -> None:
        self._confirm_channels = confirm_channels
        self._topology = topology
        self._native_routes = native_routes

    async def publish(
        self,
        batch: Sequence[Outgoing | PlannedMessage],
        timeout: float,
        now: float,
        *,
        moved: bool = False,
        stored: Callable[[int], None] | None = None,
    ) -> list[Outcome]:
        """Publish a batch; a planned message is sent as it is.

        `moved`: these are successors, which may exceed a bound. `stored` is called with the place
        of each message as soon as it is confirmed.
        """
        until = monotonic() + timeout
        try:
            plans = await self._plans(batch, until, now, moved=moved)
        except TimeoutError as error:
            text = (
                f"RabbitMQ did not answer the requests before the publish within {timeout:g} s; "
                "nothing was sent"
            )
            return [Failed(ErrorKind.TRANSIENT, text, error)] * len(batch)

        outcomes: list[Outcome] = [
            plan if isinstance(plan, Failed) else Unknown() for plan in plans
        ]
        by_kind: dict[str, dict[int, PlannedMessage]] = {}
        parts: list[_Part] = []

        for at, plan in enumerate(plans):
            if isinstance(plan, PlannedMessage):
                by_kind.setdefault(EXCHANGES if plan.exchange else QUEUES, {})[at] = plan
                if stored is not None:
                    plan.stored = partial(stored, at)
            elif isinstance(plan, Outgoing):
                parts.append(([at], self._delayed_route(plan, until, now)))
        for kind, planned in by_kind.items():
            sent = self._confirm_channels.send(kind, [*planned.values()], until - monotonic())
            parts.append(([*planned], sent))

        for places, answers in await _all(parts):
            for at, outcome in zip(places, answers, strict=True):
                outcomes[at] = outcome
                self._learn(plans[at], outcome)
        return outcomes

    def _learn(self, sent: object, outcome: Outcome) -> None:
        if _is_missing(outcome) and isinstance(sent, PlannedMessage):
            self._topology.mark_doubtful(sent)

    async def _plans(
        self, batch: Sequence[Outgoing | PlannedMessage], until: float, now: float, *, moved: bool
    ) -> list[PlannedMessage | Failed | Outgoing]:
        """Plan all, and ensure what they need. Raises `TimeoutError`."""
        queues = {out.to for out in batch if isinstance(out, Outgoing) and isinstance(out.to, str)}
        if not self._topology.knows(queues):
            async with asyncio.timeout(until - monotonic()):
                await self._topology.look_up(*queues)
        plans = [self._plan(out, now, moved=moved) for out in batch]
        if any(isinstance(it, PlannedMessage) and it.needs for it in plans):
            async with asyncio.timeout(until - monotonic()):
                return [await self._with_needs(plan) for plan in plans]
        return plans

    def _plan(
        self, out: Outgoing | PlannedMessage, now: float, *, moved: bool
    ) -> PlannedMessage | Failed | Outgoing:
        """Plan one, unless it is planned; `_delayed_route` handles a delayed routed message."""
        if isinstance(out, PlannedMessage):
            return out
        if isinstance(out.to, Route):
            if not self._native_routes:
                text = f"with quorum queues mqcore itself resolves routers, and {out.to} is not"
                return Failed(ErrorKind.PERMANENT, text)
            if out.delay > 0:
                return out
        layout = self._topology.layout(out.to) if isinstance(out.to, str) else None
        try:
            return plan_message(out, layout, self._topology.rpc.server, now, moved=moved)
        except ValueError as error:
            return Failed(ErrorKind.PERMANENT, str(error))

    async def _with_needs(
        self, planned: PlannedMessage | Failed | Outgoing
    ) -> PlannedMessage | Failed | Outgoing:
        """Ensure what a message needs; an error there concerns this message alone."""
        if not isinstance(planned, PlannedMessage):
            return planned
        for kind, name in planned.needs:
            try:
                there = await self._topology.ensure(kind, name)
            except TimeoutError:
                raise
            except Exception as error:  # noqa: BLE001 - as in `_answered`
                return _not_sent(error)
            if not there:
                text = f"RabbitMQ has no queue {planned.queue!r}: declare it first"
                if kind == ROUTER:  # it is made with its first binding
                    text = f"router {planned.queue!r} has no bindings: add Router(...).bind(queue)"
                return Failed(ErrorKind.NOT_FOUND, text)
        return planned

    async def _delayed_route(self, out: Outgoing, until: float, now: float) -> list[Outcome]:
        """Publish a delayed routed message by the current bindings, a copy to each queue (G15)."""
        route = out.to
        if not isinstance(route, Route):
            raise TypeError(f"{route!r} is not a route")
        try:
            async with asyncio.timeout(until - monotonic()):
                picture = await self._topology.registry.refresh()
        except Exception as error:  # noqa: BLE001 - as in `_answered`
            return [_not_sent(error)]

        bindings = picture.bindings(route.router)
        queues = dict.fromkeys(
            it.queue for it in bindings if it.takes(route.key, out.message.headers)
        )
        if not queues:
            return [
                Failed(
                    ErrorKind.NOT_FOUND,
                    f"no binding of router {route.router!r} takes key {route.key!r}",
                )
            ]

        copies = [Outgoing(queue, out.message, out.delay, out.ttl) for queue in queues]
        outcomes = await self.publish(copies, until - monotonic(), now)
        passing = {it.queue for it in picture.passing}
        lasting = [
            outcome
            for queue, outcome in zip(queues, outcomes, strict=True)
            if not (queue in passing and _is_missing(outcome))  # it has ended meanwhile
        ]
        outcomes = lasting or outcomes
        failed = [outcome for outcome in outcomes if not isinstance(outcome, Stored)]
        if not failed:
            return [STORED]
        if isinstance(failed[0], Failed) and all(
            isinstance(outcome, Failed) for outcome in outcomes
        ):
            return [failed[0]]
        return [Unknown(f"not every queue of router {route.router!r} stored it: {failed[0]}")]


def _is_missing(outcome: Outcome) -> bool:
    """Whether a message did not find its queue."""
    return isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND


async def _all(parts: Sequence[_Part]) -> list[_Answers]:
    """Send all parts concurrently. An error of one part is its outcome: others may be stored."""
    if len(parts) == 1:
        return [(parts[0][0], await parts[0][1])]
    return await asyncio.gather(*(_answered(places, part) for places, part in parts))


async def _answered(places: list[int], part: Awaitable[list[Outcome]]) -> _Answers:
    try:
        return places, await part
    except Exception as error:  # noqa: BLE001 - it becomes an outcome
        if classify(error) is ErrorKind.PERMANENT and not isinstance(error, ConfigurationError):
            return places, [Unknown(f"publishing failed: {error!r}", error)] * len(places)
        return places, [_not_sent(error)] * len(places)


def _not_sent(error: Exception) -> Failed:
    return Failed(classify(error), f"nothing was sent: {error!r}", error)
