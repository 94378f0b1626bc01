"""The task store in PostgreSQL: `postgresql://host/database`. It needs psycopg."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import psycopg
from psycopg import sql as names

from mqcore.tasks.spi import SLICE, Announcement, Clock, StoreError, TaskStore, hookimpl
from mqcore_sql.database import Database
from mqcore_sql.options import PostgresOptions, read_options
from mqcore_sql.postgres import PostgresDatabase
from mqcore_sql.tasks.announcer import Announcer, announcement_of
from mqcore_sql.tasks.store import SqlTaskStore

__all__ = ["PostgresTaskStore", "mqcore_register_stores"]

_IN_THE_WAY = {"23505", "40001", "40P01"}
"""Codes of errors after which a transaction is made again, and finds what the other one wrote.

Another one has inserted the same row, or claimed the same key, or the two waited for each other.
"""


_NOTIFY = "SELECT pg_notify(:channel, text) FROM unnest(CAST(:texts AS text[])) AS text"


class PostgresTaskStore(SqlTaskStore):
    """Tasks in a database, which may be that of a queue. Its options are those of the backend."""

    scheme: ClassVar[str | tuple[str, ...]] = ("postgresql", "postgres")
    product = "PostgreSQL"

    def __init__(self, url: str, clock: Clock | None = None, *, slice_size: int = SLICE) -> None:
        """Read the URL. Raises `ConfigurationError` for one that is not valid."""
        self._options = read_options(PostgresOptions, url)
        super().__init__(url, clock, slice_size=slice_size, migrate=self._options.migrate)
        self._channel = f"{self._options.prefix}_tasks"
        self._announcer = Announcer(self._notify)

    def make_database(self) -> Database:
        """Return a connection to the server."""
        return PostgresDatabase(self.url, self._options)

    async def close(self) -> None:
        """Disconnect."""
        await self._announcer.close()
        await super().close()

    def announce(self, announcement: Announcement) -> None:
        """Notify the processes that wait for rows."""
        self._announcer.add(announcement)

    async def _notify(self, texts: Sequence[str]) -> None:
        values = {"channel": self._channel, "texts": list(texts)}
        await self._run("announce", lambda database: database.query(_NOTIFY, **values))

    async def listen(self, heard: Callable[[Announcement | None], None]) -> None:
        """Listen on a connection of its own to what other processes notify."""
        where = self._options.conninfo(self.url)
        try:
            async with await psycopg.AsyncConnection.connect(
                where, autocommit=True, application_name="mqcore"
            ) as connection:
                await connection.execute(
                    names.SQL("LISTEN {}").format(names.Identifier(self._channel))
                )
                heard(None)
                async for notification in connection.notifies():
                    heard(announcement_of(notification.payload))
        except psycopg.Error as error:
            raise StoreError(
                f"the connection that listens for results in PostgreSQL has failed: {error}. It is "
                "made again, and results are polled for until then"
            ) from error

    @staticmethod
    def has_met_another(error: Exception) -> bool:
        """Return whether the server has rolled a transaction back for another one."""
        return isinstance(error, psycopg.Error) and error.sqlstate in _IN_THE_WAY


@hookimpl
def mqcore_register_stores() -> list[type[TaskStore]]:
    """Register both names of the scheme."""
    return [PostgresTaskStore]
