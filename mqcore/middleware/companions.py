"""What accompanies one broker of an app: the connection of its tasks to their store."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from mqcore.middleware.base import Middleware

__all__ = ["Companion", "Companions"]


class Companion(Protocol):
    """One of them."""

    @property
    def middleware(self) -> Middleware:
        """What runs around all handlers of the app."""

    @property
    def commands(self) -> Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any] | None]]:
        """Commands to a worker that it executes, by name; see `mqcore.control.commands`."""

    def opened(self, broker: Any, /) -> AbstractAsyncContextManager[None]:
        """Return what is entered while the `mqcore.Broker` is open."""

    def serving(self) -> AbstractAsyncContextManager[None]:
        """Return what a worker enters before it consumes, and leaves when it has drained."""


class Companions:
    """Those of one broker. Without an app that has tasks there are none."""

    def __init__(self) -> None:
        self.all: list[Companion] = []
        self._broker: Any = None
        self._open = AsyncExitStack()

    def add(self, companion: Companion, broker: Any) -> None:
        """Have a companion opened and closed with the broker."""
        self.all.append(companion)
        self._broker = broker

    async def open(self) -> None:
        """Open all of them, or none."""
        try:
            for companion in self.all:
                await self._open.enter_async_context(companion.opened(self._broker))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close them, the last one first."""
        await self._open.aclose()
