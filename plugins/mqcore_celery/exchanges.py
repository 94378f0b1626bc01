"""Exchanges as routers: their bindings are stored at the broker, so every process sees the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mqcore import Binding, ConfigurationError, Queue, QueueNotFound, Router

if TYPE_CHECKING:
    from mqcore_celery.shared import SharedBroker

__all__ = ["KINDS", "Exchanges"]

KINDS = ("direct", "topic", "fanout", "headers")


class Exchanges:
    """Queues and bindings of one broker. Its coroutines run on the loop."""

    def __init__(self, shared: SharedBroker) -> None:
        self._shared = shared
        self._broker = shared.broker

    async def declare(self, name: str, kind: Any) -> None:
        """Remember the kind of an exchange; its router is declared with its first binding.

        Raises `ConfigurationError` for an unknown kind.
        """
        if kind not in KINDS:
            raise ConfigurationError(
                f"exchange {name!r}: the type {kind!r} is unknown to mqcore. It is one of "
                f"{', '.join(KINDS)}"
            )
        known = self._shared.routers.get(name)
        if known is None or known.kind != kind:
            self._shared.routers[name] = Router(name, kind=kind)

    async def declare_queue(self, queue: Queue[bytes]) -> None:
        """Declare a queue. Raises `TopologyMismatch` when it exists with other settings."""
        async with self._shared.topology:
            await self._broker.declare(queue)
            self._shared.queues[queue.name] = queue

    async def bind(self, exchange: str, queue: str, key: str, arguments: Mapping[str, Any]) -> None:
        """Bind a queue."""
        async with self._shared.topology:
            known = await self.router(exchange)
            router = Router(exchange, kind=known.kind)  # with this binding alone
            bound = self._shared.queues.get(queue) or Queue(queue, declare=False)
            pattern, headers, match = _binding(router.kind, key, arguments)
            router.bind(bound, pattern, headers=headers, match=match)
            await self._broker.declare(router)

    async def unbind(
        self, exchange: str, queue: str, key: str, arguments: Mapping[str, Any]
    ) -> None:
        """Remove a binding."""
        async with self._shared.topology:
            router = await self.router(exchange)
            pattern, headers, match = _binding(router.kind, key, arguments)
            await self._broker.unbind(router.binding(queue, pattern, headers=headers, match=match))

    async def delete(self, exchange: str) -> None:
        """Remove all bindings of an exchange."""
        async with self._shared.topology:
            await self._broker.unbind(*await self._broker.bindings(exchange))
            self._shared.routers.pop(exchange, None)

    async def delete_queue(self, name: str, *, if_empty: bool) -> None:
        """Delete a queue, if it exists."""
        async with self._shared.topology:
            with suppress(QueueNotFound):
                await self._broker.delete(name, if_empty=if_empty)
            self._shared.queues.pop(name, None)

    async def all(self) -> Sequence[Binding]:
        """Return all bindings."""
        return await self._broker.bindings()

    async def router(self, exchange: str) -> Router[bytes]:
        """Return an exchange; one of another process has the kind of its bindings."""
        routers = self._shared.routers
        if exchange not in routers:
            bindings = await self._broker.bindings(exchange)
            kind = bindings[0].kind if bindings else "direct"
            routers.setdefault(exchange, Router(exchange, kind=kind))
        return routers[exchange]


def _binding(
    kind: str, key: str, arguments: Mapping[str, Any]
) -> tuple[str, dict[str, str] | None, Any]:
    """Return pattern, headers and match of a binding."""
    if kind == "headers":
        headers = {name: str(value) for name, value in arguments.items() if name != "x-match"}
        return "", headers, arguments.get("x-match", "all")
    return "" if kind == "fanout" else key, None, "all"
