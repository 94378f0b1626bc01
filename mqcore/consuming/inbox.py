"""The inbox that a backend gives: it records ids outside of any transaction.

It is the broker's own, or that of another URL with a connection of its own. A process that dies
after a handler's effect and before the record handles the message again.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING

from mqcore.config.url import parse_url
from mqcore.errors import ConfigurationError
from mqcore.spi import Inbox, InboxEntry, Recorded, SupportsInbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqcore.connection.connection import Connection
    from mqcore.spi import Backend, Clock

__all__ = ["BackendInbox"]


class BackendInbox(Inbox):
    """Asks the backend before a handler runs, and records the id when it has succeeded."""

    has_sessions = False

    def __init__(self, connection: Connection, *, is_own: bool) -> None:
        """`is_own`: the connection is opened and closed with the inbox."""
        self._connection = connection
        self._is_own = is_own

    def check(self, where: str, *, blocking: bool) -> None:  # noqa: ARG002 - every kind of handler is served
        """Raise `ConfigurationError` when the backend records nothing."""
        if not isinstance(self._connection.backend, SupportsInbox):
            scheme, _ = parse_url(self._connection.backend.url)
            raise ConfigurationError(
                f"{where}: once= needs an inbox, and {scheme}:// has none. Give the app one: "
                "App(..., inbox=SqlInbox(sessions)) for the database that the handler writes to, "
                'or App(..., inbox="redis://…")'
            )

    async def open(self, clock: Clock, backend: Backend) -> Inbox:  # noqa: ARG002 - it has its own
        """Connect, unless it is the broker's connection."""
        if self._is_own:
            await self._connection.open()
        return self

    async def close(self) -> None:
        """Disconnect, unless it is the broker's connection."""
        if self._is_own:
            await self._connection.close()

    @asynccontextmanager
    async def transaction(self, entry: InboxEntry) -> AsyncIterator[_Record]:
        """Return a record that the end of the handler completes."""
        record = _Record(self._connection, entry)
        await record.look()
        yield record


class _Record:
    """One message in the inbox of a backend."""

    session = None
    acknowledges = False

    def __init__(self, connection: Connection, entry: InboxEntry) -> None:
        self.was_handled = False
        self._connection = connection
        self._entry = entry
        text = f"{entry.consumer}\n{entry.queue}\n{entry.id}"
        self._name = blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def _backend(self) -> SupportsInbox:
        return self._connection.supporting(SupportsInbox, "an inbox")

    async def look(self) -> None:
        """Ask whether the message was handled."""
        doing = f"asking the inbox about message {self._entry.id} of queue {self._entry.queue!r}"
        [self.was_handled] = await self._connection.call(
            doing, lambda: self._backend.was_handled([self._name])
        )

    async def commit(self) -> Recorded:
        """Record it."""
        doing = f"recording message {self._entry.id} of queue {self._entry.queue!r} in the inbox"
        await self._connection.call(
            doing, lambda: self._backend.note_handled([self._name], self._entry.window)
        )
        return Recorded.RECORDED
