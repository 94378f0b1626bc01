"""The backend of PostgreSQL: its schemes, its options, and its driver.

It is a plugin of its own, so that SQLite needs no psycopg.
"""

from typing import cast

from mqcore.spi import Backend, ErrorKind, hookimpl
from mqcore_sql.database import Database
from mqcore_sql.driver import SqlBackend, SqlDriver, kind_of
from mqcore_sql.enlisting import Enlister
from mqcore_sql.options import PostgresOptions
from mqcore_sql.postgres import PostgresDatabase
from mqcore_sql.postgres_enlisting import PostgresEnlister

__all__ = ["PostgresBackend", "mqcore_register_backends"]


class PostgresDriver(SqlDriver):
    """The calls of one connection to a server."""

    def make_database(self) -> Database:
        """Return the server's database."""
        return PostgresDatabase(self.url, cast("PostgresOptions", self.options))

    def make_enlister(self) -> Enlister:
        """Return what writes in transactions on the server."""
        schema = cast("PostgresOptions", self.options).schema_name
        return PostgresEnlister(self._db, self.options, self._clock, schema)

    @staticmethod
    def classify(error: Exception) -> ErrorKind:
        """Return the kind of an error."""
        return kind_of(PostgresDatabase, error)


class PostgresBackend(SqlBackend):
    """`postgresql://host/database`: queues in the database of an application."""

    scheme = ("postgresql", "postgres")
    spi_version = 1
    Options = PostgresOptions
    Driver = PostgresDriver


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    """Register the schemes."""
    return [PostgresBackend]
