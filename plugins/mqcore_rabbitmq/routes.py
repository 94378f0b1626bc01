"""Routers are exchanges of the broker; the registry stores their bindings (G15)."""

from collections.abc import Callable, Sequence
from typing import Any

from pika import spec
from pika.exceptions import ChannelClosedByBroker

from mqcore.spi import Binding, ConfigurationError, TopologyMismatch, check_router_kinds
from mqcore_rabbitmq.errors import NOT_FOUND, PRECONDITION_FAILED, closed_by, missing
from mqcore_rabbitmq.message_format import escaped
from mqcore_rabbitmq.registry import Registry, record_of
from mqcore_rabbitmq.rpc import Rpc

__all__ = ["Routes"]


class Routes:
    """Binds and unbinds for one open instance."""

    def __init__(
        self, registry: Registry, rpc: Rpc, is_own: Callable[[str], bool], *, native: bool
    ) -> None:
        """`is_own`: whether this instance has declared a temporary queue of this name.

        `native`: whether the broker's exchanges route. Where mqcore does, other processes would not
        learn of a binding that is in no registry.
        """
        self._native = native
        self._registry = registry
        self._rpc = rpc
        self._is_own = is_own
        self._own: dict[Binding, None] = {}
        """Bindings to own temporary queues. RabbitMQ ends them with the queue, and no record."""

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings. Raises `TopologyMismatch`, and adds none, if a router has another kind.

        Raises `ConfigurationError` for a temporary queue beside quorum queues.
        """
        self._check_temporary(bindings)
        picture = await self._registry.refresh()
        check_router_kinds([*picture.bound, *self._own], bindings)
        for router, kind in {binding.router: binding.kind for binding in bindings}.items():
            await self._declare(router, kind, used=bool(picture.bindings(router)))

        try:
            await self._rpc.run(*(spec.Queue.Bind(**_native(binding)) for binding in bindings))
        except ChannelClosedByBroker as error:
            if closed_by(error, NOT_FOUND):
                names = [
                    binding.queue for binding in bindings if f"'{binding.queue}'" in str(error)
                ]
                raise missing(names[0] if names else bindings[0].queue) from error
            raise

        own = [binding for binding in bindings if self._is_own(binding.queue)]
        self._own.update(dict.fromkeys(own))
        fresh = [
            binding
            for binding in dict.fromkeys(bindings)
            if binding not in picture.bound and binding not in self._own
        ]
        await self._registry.append([{"bind": record_of(binding)} for binding in fresh])

    def _check_temporary(self, bindings: Sequence[Binding]) -> None:
        for binding in bindings:
            if not self._native and self._is_own(binding.queue):
                raise ConfigurationError(
                    f"the temporary queue {binding.queue!r} is not bound to router "
                    f"{binding.router!r}: with quorum queues mqcore routes, out of bindings that "
                    "outlive their process. Leave out temporary=True and delete the queue at the "
                    "end, or use classic queues (durability=process)"
                )

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings that exist."""
        known = (await self._registry.refresh()).bound
        there = [binding for binding in bindings if binding in known or binding in self._own]
        await self._rpc.run(*(spec.Queue.Unbind(**_native(binding)) for binding in there))
        for binding in there:
            self._own.pop(binding, None)
        lasting = [binding for binding in there if binding in known]
        await self._registry.append([{"unbind": record_of(binding)} for binding in lasting])

    async def bindings(self, router: str | None) -> Sequence[Binding]:
        """Return the bindings of one router, or all."""
        own = [each for each in self._own if router in (None, each.router)]
        return [*(await self._registry.refresh()).bindings(router), *own]

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
