"""`sqlite:///file.db` and `postgresql://host/database`: queues in tables of a database.

`sqlite_backend` and `postgres_backend` have the schemes. `driver` is the seam of mqcore: the calls
that run on a thread. They use `store` (messages) and `queues` (queues and bindings), which know no
database: `statements` has what they run, `records` what is in a row. `database` says what a
database has to offer; `sqlite` and `postgres` do. `schema` creates and upgrades the tables,
`rotation` forgets old names, `enlisting` publishes in transactions of the application, and
`commands` has `mqcore sql upgrade`. `inbox` is for handlers with such transactions.

PostgreSQL's backend is a plugin of its own, `mqcore_sql.postgres_backend`: it needs psycopg.
"""

from mqcore.spi import Backend, hookimpl
from mqcore_sql.inbox import SqlInbox
from mqcore_sql.options import SqliteOptions
from mqcore_sql.share import SharedConnection, share
from mqcore_sql.sqlite_backend import SqliteBackend

__all__ = [
    "SharedConnection",
    "SqlInbox",
    "SqliteBackend",
    "SqliteOptions",
    "mqcore_register_backends",
    "mqcore_register_cli",
    "share",
]


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    """Register the scheme `sqlite`."""
    return [SqliteBackend]


@hookimpl
def mqcore_register_cli() -> list[object]:
    """Register `mqcore sql`. Only the command asks for it, and the command has Typer."""
    from mqcore_sql.commands import app  # noqa: PLC0415 - Typer is an extra

    return [app]
