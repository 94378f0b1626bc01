"""The three hooks, each doing nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.consuming.context import Context
    from mqcore.events import Event
    from mqcore.messages.message import Message

__all__ = ["Middleware"]


class Middleware:
    """Derive from it and override what you need; what is not overridden costs nothing per message."""

    async def handle(
        self, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
    ) -> object:
        """Run the rest of the chain with `await call_next(ctx)` and return its result.

        What is raised here decides about the message as if the handler had raised it.
        """
        return await call_next(ctx)

    def outgoing(self, message: Message) -> Message:
        """Return the message to send in place of this one, for instance with a header more.

        Must be quick and pure.
        """
        return message

    def on_event(self, event: Event) -> None:
        """Hear of an event.

        Runs on the event loop; an exception here is logged once and changes nothing.
        """
