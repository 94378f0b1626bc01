"""Routers are exchanges of the broker; the registry stores their bindings (G15)."""

import random
from collections.abc import Collection, Sequence
from typing import Any

from pika import spec
from pika.exceptions import ChannelClosedByBroker

from mqcore.spi import Binding, TopologyMismatch, check_router_kinds
from mqcore_rabbitmq.errors import NOT_FOUND, PRECONDITION_FAILED, closed_by, missing
from mqcore_rabbitmq.message_format import escaped
from mqcore_rabbitmq.registry import Picture, record_of
from mqcore_rabbitmq.topology import Topology

__all__ = ["Routes"]

_LOOKS = 2


class Routes:
    """Binds and unbinds for one open instance."""

    def __init__(self, topology: Topology, *, native: bool) -> None:
        """`native`: whether the broker routes. Then bindings are read to be shown, and rarely."""
        self._native = native
        self._topology = topology
        self._registry = topology.registry
        self._rpc = topology.rpc

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings. Raises `TopologyMismatch`, and adds none, if a router has another kind."""
        picture = await self._registry.refresh()
        check_router_kinds([*picture.bound, *self._own(picture)], bindings)
        for router, kind in {binding.router: binding.kind for binding in bindings}.items():
            used = any(binding.router == router for binding in picture.bound)
            await self._declare(router, kind, used=used)

        try:
            await self._rpc.run(*(spec.Queue.Bind(**_native(binding)) for binding in bindings))
        except ChannelClosedByBroker as error:
            if closed_by(error, NOT_FOUND):
                names = [
                    binding.queue for binding in bindings if f"'{binding.queue}'" in str(error)
                ]
                raise missing(names[0] if names else bindings[0].queue) from error
            raise

        own = [it for it in dict.fromkeys(bindings) if self._topology.is_own(it.queue)]
        lasting = [it for it in dict.fromkeys(bindings) if not self._topology.is_own(it.queue)]
        if own:
            await self._remove_ended(picture, self._some_others(picture, own))
        await self._registry.append(
            [
                *({"bind": record_of(it)} for it in lasting if it not in picture.bound),
                *self._passing("bind", own),
            ]
        )

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings that exist."""
        picture = await self._registry.refresh()
        mine = self._own(picture)
        lasting = [binding for binding in bindings if binding in picture.bound]
        own = [binding for binding in bindings if binding in mine]
        await self._rpc.run(*(spec.Queue.Unbind(**_native(it)) for it in (*lasting, *own)))
        await self._registry.append(
            [*({"unbind": record_of(it)} for it in lasting), *self._passing("unbind", own)]
        )

    async def bindings(self, router: str | None) -> Sequence[Binding]:
        """Return the bindings of one router, or all; those of temporary queues too."""
        picture = await self._registry.refresh()
        doubtful = {
            it.queue
            for it, owner in picture.passing.items()
            if router in (None, it.router)
            and (self._topology.was_missing(it.queue) or self._native)
            and owner != self._registry.owner
        }
        await self._remove_ended(picture, doubtful)
        return self._registry.picture.bindings(router)

    def _own(self, picture: Picture) -> list[Binding]:
        """Return the bindings to temporary queues of this instance."""
        return [it for it, owner in picture.passing.items() if owner == self._registry.owner]

    def _passing(self, verb: str, own: Sequence[Binding]) -> list[dict[str, Any]]:
        """Return the records of bindings to own temporary queues."""
        return [{verb: record_of(it), "owner": self._registry.owner} for it in own]

    def _some_others(self, picture: Picture, own: Sequence[Binding]) -> Collection[str]:
        """Choose a few temporary queues of others at the same routers, to see if they still exist.

        Each new one looks at two, so those that have ended do not come to outnumber the others.
        """
        routers = {it.router for it in own}
        others = [
            it.queue
            for it, owner in picture.passing.items()
            if it.router in routers and owner != self._registry.owner
        ]
        return set(random.sample(others, min(len(others), _LOOKS)))

    async def _remove_ended(self, picture: Picture, queues: Collection[str]) -> None:
        """Remove the bindings of those temporary queues that have ended, for others too.

        A process that was killed removes none, and the broker does not report that a queue ended.
        """
        there = {
            queue: await self._rpc.has(spec.Queue.Declare(queue=queue, passive=True))
            for queue in queues
        }
        await self._registry.append(
            [
                {"unbind": record_of(binding), "owner": owner}
                for binding, owner in picture.passing.items()
                if not there.get(binding.queue, True)
            ]
        )
        self._topology.forget_missing(queues)

    async def _declare(self, router: str, kind: str, *, used: bool) -> None:
        """Declare the exchange; one of another kind without bindings is replaced."""
        declare = spec.Exchange.Declare(exchange=router, type=kind, durable=True)
        try:
            await self._rpc.run(declare)
        except ChannelClosedByBroker as error:
            if not closed_by(error, PRECONDITION_FAILED):
                raise

            if used:
                raise TopologyMismatch(
                    f"router {router!r} is not a {kind!r} exchange on RabbitMQ: {error}"
                ) from error
            try:
                await self._rpc.run(spec.Exchange.Delete(exchange=router, if_unused=True), declare)
            except ChannelClosedByBroker:
                raise TopologyMismatch(
                    f"router {router!r} exists on RabbitMQ with other settings: {error}"
                ) from error


def _native(binding: Binding) -> dict[str, Any]:
    """Return the arguments of a request to bind or unbind."""
    found: dict[str, Any] = {
        "queue": binding.queue,
        "exchange": binding.router,
        "routing_key": binding.pattern,
    }
    if binding.kind == "headers":
        headers = {escaped(name): value for name, value in binding.headers}
        found["arguments"] = {"x-match": binding.match, **headers}
    return found
