"""Routers as the broker's own exchanges, and the bindings that AMQP cannot list, in the registry (G15)."""

from collections.abc import Sequence
from typing import Any

from pika import spec
from pika.exceptions import ChannelClosedByBroker

from mqcore.spi import Binding, TopologyMismatch
from mqcore_rabbitmq.errors import NOT_FOUND, PRECONDITION_FAILED, closed_by
from mqcore_rabbitmq.registry import Picture, Registry, record_of
from mqcore_rabbitmq.topology import Admin, missing
from mqcore_rabbitmq.wire import escaped

__all__ = ["Routes"]


class Routes:
    """Bindings of one open instance."""

    def __init__(self, registry: Registry, admin: Admin) -> None:
        self._registry = registry
        self._admin = admin

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Add all, or none and raise `TopologyMismatch` when a router would have two kinds."""
        if not bindings:
            return
        picture = await self._registry.refresh()
        _check_kinds(picture, bindings)
        for router, kind in {binding.router: binding.kind for binding in bindings}.items():
            await self._declare(router, kind, used=bool(picture.bindings(router)))
        try:
            async with self._admin.channel() as channel:
                for binding in bindings:
                    channel.tell(_native(binding))
                await channel.ask(spec.Basic.Qos(prefetch_count=0))
        except ChannelClosedByBroker as error:
            if closed_by(error, NOT_FOUND):
                names = [binding.queue for binding in bindings if f"'{binding.queue}'" in str(error)]
                raise missing(names[0] if names else bindings[0].queue) from error
            raise
        known = set(picture.bindings(None))
        await self._registry.append([{"bind": record_of(it)} for it in dict.fromkeys(bindings) if it not in known])

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove those that are there."""
        known = set((await self._registry.refresh()).bindings(None))
        there = [binding for binding in bindings if binding in known]
        async with self._admin.channel() as channel:
            for binding in there:
                method = spec.Queue.Unbind(
                    queue=binding.queue,
                    exchange=binding.router,
                    routing_key=binding.pattern,
                    arguments=_arguments(binding),
                )
                await channel.ask(method)
        await self._registry.append([{"unbind": record_of(it)} for it in there])

    async def bindings(self, router: str | None) -> Sequence[Binding]:
        """Return the bindings of one router, or all."""
        return (await self._registry.refresh()).bindings(router)

    async def _declare(self, router: str, kind: str, *, used: bool) -> None:
        """Declare the exchange; one of another kind that nothing is bound to any more is made anew."""
        method = spec.Exchange.Declare(exchange=router, type=kind, durable=True)
        try:
            async with self._admin.channel() as channel:
                await channel.ask(method)
        except ChannelClosedByBroker as error:
            if not closed_by(error, PRECONDITION_FAILED):
                raise
            if used:
                raise TopologyMismatch(f"router {router!r} is no {kind!r} exchange on RabbitMQ: {error}") from error
            await self._make_anew(router, method, error)

    async def _make_anew(self, router: str, method: Any, found: ChannelClosedByBroker) -> None:
        try:
            async with self._admin.channel() as channel:
                await channel.ask(spec.Exchange.Delete(exchange=router, if_unused=True))
                await channel.ask(method)
        except ChannelClosedByBroker as error:
            raise TopologyMismatch(f"router {router!r} exists on RabbitMQ with other settings: {found}") from error


def _check_kinds(picture: Picture, bindings: Sequence[Binding]) -> None:
    kinds = {name: next(iter(known)).kind for name, known in picture.routers.items() if known}
    for binding in bindings:
        kind = kinds.setdefault(binding.router, binding.kind)
        if kind != binding.kind:
            raise TopologyMismatch(
                f"router {binding.router!r} exists with kind={kind!r} and was declared with kind={binding.kind!r}: "
                "use the same everywhere, another name, or remove its bindings first"
            )


def _native(binding: Binding) -> Any:
    return spec.Queue.Bind(
        queue=binding.queue,
        exchange=binding.router,
        routing_key=binding.pattern,
        nowait=True,
        arguments=_arguments(binding),
    )


def _arguments(binding: Binding) -> dict[str, Any]:
    if binding.kind != "headers":
        return {}
    return {"x-match": binding.match, **{escaped(name): value for name, value in binding.headers}}
