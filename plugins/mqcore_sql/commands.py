"""`mqcore sql upgrade URL`: the tables, created or upgraded by an operator."""

from typing import Annotated

import typer

from mqcore.spi import ConfigurationError, split_url
from mqcore_sql.driver import SqlBackend, SqlDriver
from mqcore_sql.options import read_options
from mqcore_sql.sqlite_backend import SqliteBackend

__all__ = ["app"]

app = typer.Typer(name="sql", help="Look after the tables of mqcore in a database.")


@app.callback()
def group() -> None:
    """Look after the tables of mqcore in a database."""


@app.command()
def upgrade(
    url: Annotated[str, typer.Argument(help="The URL of the database, sqlite:///queue.db.")],
) -> None:
    """Create the tables, or upgrade them to this version of mqcore.

    Needed where the option `migrate=false` keeps applications from doing so when they connect.
    Running it again changes nothing.
    """
    before, after = _driver(url).upgrade()
    if before == after:
        typer.echo(f"the tables have version {after} already")
    elif not before:
        typer.echo(f"the tables were created, with version {after}")
    else:
        typer.echo(f"the tables were upgraded from version {before} to {after}")


def _driver(url: str) -> SqlDriver:
    """Return the driver for a URL. Raises `ConfigurationError`, without secrets."""
    backend = _backend(split_url(url).scheme)
    return backend.Driver(url, read_options(backend.Options, url))


def _backend(scheme: str) -> type[SqlBackend]:
    """Return the backend of a scheme."""
    if scheme == "sqlite":
        return SqliteBackend
    if scheme not in ("postgresql", "postgres"):
        raise ConfigurationError(
            f"the URL of a database begins with sqlite or postgresql, not {scheme!r}"
        )
    try:
        from mqcore_sql.postgres_backend import PostgresBackend  # noqa: PLC0415 - it needs psycopg
    except ImportError as error:
        raise ConfigurationError(
            f"postgresql:// needs psycopg: pip install 'mqcore[sql]' ({error})"
        ) from error
    return PostgresBackend
