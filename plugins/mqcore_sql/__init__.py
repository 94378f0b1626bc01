"""`sqlite:///file.db`: queues in tables of a database.

`backends` registers the schemes. `driver` is the seam of mqcore: the calls that run on a thread.
They use `store` (messages) and `queues` (queues and bindings), which know no database: `statements`
has what they run, `records` what is in a row. `database` says what a database has to offer, and
`sqlite` does. `schema` creates and upgrades the tables, `rotation` forgets old names, and
`commands` has `mqcore sql upgrade`.
"""

from mqcore.spi import Backend, hookimpl
from mqcore_sql.backends import SqliteBackend
from mqcore_sql.options import SqliteOptions

__all__ = ["SqliteBackend", "SqliteOptions", "mqcore_register_backends", "mqcore_register_cli"]


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    """Register the schemes."""
    return [SqliteBackend]


@hookimpl
def mqcore_register_cli() -> list[object]:
    """Register `mqcore sql`. It is asked for by the command only, which has Typer."""
    from mqcore_sql.commands import app  # noqa: PLC0415 - Typer is an extra

    return [app]
