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
    from collections.abc import AsyncIterator, Sequence

    from mqcore.connection.connection import Connection
    from mqcore.spi import Backend, Clock

__all__ = ["BackendInbox"]


class BackendInbox(Inbox):
    """Asks the backend before a handler runs, and records the id when it has succeeded."""

    has_sessions = False
    has_batches = True

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
        record = _Record(self._connection, [entry])
        await record.look()
        yield record

    @asynccontextmanager
    async def batch(self, entries: Sequence[InboxEntry]) -> AsyncIterator[_Record]:
        """Return a record of several messages."""
        record = _Record(self._connection, entries)
        await record.look()
        yield record


class _Record:
    """Messages of one consumer in the inbox of a backend."""

    session = None
    acknowledges = False

    def __init__(self, connection: Connection, entries: Sequence[InboxEntry]) -> None:
        self.handled: Sequence[bool] = ()
        self._connection = connection
        self._entries = entries
        self._names = [_name(entry) for entry in entries]
        many = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
        self._what = f"message {entries[0].id}{many} of queue {entries[0].queue!r}"

    @property
    def was_handled(self) -> bool:
        return self.handled[0]

    @property
    def _backend(self) -> SupportsInbox:
        return self._connection.supporting(SupportsInbox, "an inbox")

    async def look(self) -> None:
        """Ask which messages were handled."""
        self.handled = await self._connection.call(
            f"asking the inbox about {self._what}", lambda: self._backend.was_handled(self._names)
        )

    async def commit(self) -> Recorded:
        """Record the only message."""
        [recorded] = await self.commit_items([0])
        return recorded

    async def commit_items(self, done: Sequence[int]) -> Sequence[Recorded]:
        """Record these messages."""
        names = [self._names[index] for index in done]
        if names:
            await self._connection.call(
                f"recording {self._what} in the inbox",
                lambda: self._backend.note_handled(names, self._entries[0].window),
            )
        return [Recorded.RECORDED] * len(done)


def _name(entry: InboxEntry) -> str:
    text = f"{entry.consumer}\n{entry.queue}\n{entry.id}"
    return blake2b(text.encode(), digest_size=16).hexdigest()
