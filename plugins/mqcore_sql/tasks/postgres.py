"""The task store in PostgreSQL: `postgresql://host/database`. It needs psycopg."""

from typing import ClassVar

import psycopg

from mqcore.tasks.spi import SLICE, Clock, TaskStore, hookimpl
from mqcore_sql.database import Database
from mqcore_sql.options import PostgresOptions, read_options
from mqcore_sql.postgres import PostgresDatabase
from mqcore_sql.tasks.store import SqlTaskStore

__all__ = ["PostgresTaskStore", "mqcore_register_stores"]

_IN_THE_WAY = {"23505", "40001", "40P01"}
"""Codes of errors after which a transaction is made again, and finds what the other one wrote.

Another one has inserted the same row, or claimed the same key, or the two waited for each other.
"""


class PostgresTaskStore(SqlTaskStore):
    """Tasks in a database, which may be that of a queue. Its options are those of the backend."""

    scheme: ClassVar[str | tuple[str, ...]] = ("postgresql", "postgres")
    product = "PostgreSQL"

    def __init__(self, url: str, clock: Clock | None = None, *, slice_size: int = SLICE) -> None:
        """Read the URL. Raises `ConfigurationError` for one that is not valid."""
        self._options = read_options(PostgresOptions, url)
        super().__init__(url, clock, slice_size=slice_size, migrate=self._options.migrate)

    def make_database(self) -> Database:
        """Return a connection to the server."""
        return PostgresDatabase(self.url, self._options)

    @staticmethod
    def has_met_another(error: Exception) -> bool:
        """Return whether the server has rolled a transaction back for another one."""
        return isinstance(error, psycopg.Error) and error.sqlstate in _IN_THE_WAY


@hookimpl
def mqcore_register_stores() -> list[type[TaskStore]]:
    """Register both names of the scheme."""
    return [PostgresTaskStore]
