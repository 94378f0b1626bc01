"""The four hooks of a middleware. Each does nothing until it is overridden."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.consuming.context import Context
    from mqcore.events import Event
    from mqcore.messages.message import Message

__all__ = ["Middleware"]


class Middleware:
    """Derive from it and override the hooks that you need; the others cost nothing per message."""

    async def handle(
        self, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
    ) -> object:
        """Run the rest of the chain with `await call_next(ctx)` and return its result.

        What is raised here decides about the message as if the handler had raised it.
        """
        return await call_next(ctx)

    def outgoing(self, message: Message) -> Message:
        """Return the message to send in place of this one, for instance with one header more.

        Must be quick and pure. A change of the body needs `incoming` as its inverse. Compression
        with gzip or deflate does not: set `Message.encoding`, and mqcore undoes it.
        """
        return message

    def incoming(self, message: Message) -> Message:
        """Return the message as it was before `outgoing` changed it: decrypt, decompress, fetch.

        Called with each message before it is decoded: for handlers, batches, process handlers, the
        pull API and replies. The last middleware in the list comes first. Must be quick and pure.
        Only the body, the content type, the encoding and the headers may be changed; other changes
        are ignored. Messages that `outgoing` has not changed come too, for instance those of other
        publishers: return them as they are. When it raises, the message is dead-lettered with
        reason `undecodable`, and its stored body stays as it is (G11).
        """
        return message

    def on_event(self, event: Event) -> None:
        """Get an event.

        Runs on the event loop; an exception here is logged once and changes nothing.
        """
