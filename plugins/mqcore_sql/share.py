"""`share`: an application's own connections to mqcore's file take turns with mqcore's processes.

SQLite lets one connection write at a time, and its own wait is unfair: beside busy workers a
program waits for seconds, and one that has read before it writes fails at once with "database is
locked". A shared connection queues at the lock file that mqcore's processes queue at.
"""

import re
import sqlite3
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mqcore.spi import ConfigurationError
from mqcore_sql.sqlite_file import DatabaseFile

__all__ = ["SharedConnection", "share"]

E = TypeVar("E")
_READS = re.compile(
    r"(?: \s+ | --[^\n]*\n | /\*.*?\*/ )* (?: SELECT | VALUES | EXPLAIN ) \b",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
"""What certainly begins no transaction that writes. All else takes a turn, if only for a moment."""


class SharedConnection(sqlite3.Connection):
    """A connection for `sqlite3.connect(path, factory=SharedConnection)` that takes turns.

    It waits for its turn at the first statement that is not a query, for `timeout` seconds at most,
    and ends it with the transaction. A query outside of a transaction needs no turn.
    """

    def __init__(self, database: Any, timeout: float = 5.0, *args: Any, **options: Any) -> None:
        super().__init__(database, timeout, *args, **options)
        names = {name: path for _, name, path in super().execute("PRAGMA database_list")}
        path = names["main"]
        self._patience, self._has_turn = timeout, False
        self._file = DatabaseFile(Path(path), 0)
        weakref.finalize(self, self._file.close)
        if not path:
            self.close()
            raise ConfigurationError("a database in memory has no other users: share a file")
        if getattr(self, "autocommit", None) is False:
            self.close()
            raise ConfigurationError(
                "a connection with autocommit=False is always in a transaction, so it cannot take "
                "turns. Leave autocommit as it is, or set it to True"
            )
        self._file.open_lock()

    def cursor(self, factory: Any = sqlite3.Cursor) -> Any:
        """Return a cursor whose statements take turns."""
        return super().cursor(_sharing(factory))

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        """Run a statement in turn."""
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any]) -> Any:
        """Run a statement for each set of parameters, in turn."""
        return self.cursor().executemany(sql, parameters)

    def executescript(self, sql_script: str) -> Any:
        """Run statements in turn."""
        return self.cursor().executescript(sql_script)

    def commit(self) -> None:
        """Commit, and end the turn."""
        with self.in_turn(reads=True):
            super().commit()

    def rollback(self) -> None:
        """Roll back, and end the turn."""
        with self.in_turn(reads=True):
            super().rollback()

    def __exit__(self, *error: object) -> Any:
        with self.in_turn(reads=True):
            return super().__exit__(*error)  # type: ignore[arg-type]  # they are passed on as they are

    @property
    def has_turn(self) -> bool:
        """Whether the turn is this connection's now."""
        return self._has_turn

    def close(self) -> None:
        """Close the connection and end the turn."""
        super().close()
        self._has_turn = False
        self._file.close()

    @contextmanager
    def in_turn(self, *, reads: bool) -> Iterator[None]:
        """Return a context for one statement, which takes the turn unless it only reads.

        The turn ends when no transaction is open any more.
        """
        if not (reads or self._has_turn or self.in_transaction):
            self._file.take(self._patience)
            self._has_turn = True
        try:
            yield
        finally:
            if self._has_turn and not self.in_transaction:
                self._end_turn()

    def _end_turn(self) -> None:
        self._has_turn = False
        self._file.give()


class _SharedCursor(sqlite3.Cursor):
    """A cursor of a `SharedConnection`."""

    connection: SharedConnection

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        """Run a statement in turn."""
        with self.connection.in_turn(reads=_READS.match(sql) is not None):
            return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any]) -> Any:
        """Run a statement for each set of parameters, in turn."""
        with self.connection.in_turn(reads=False):
            return super().executemany(sql, parameters)

    def executescript(self, sql_script: str) -> Any:
        """Run statements in turn."""
        with self.connection.in_turn(reads=False):
            return super().executescript(sql_script)


@cache
def _sharing(factory: Any) -> Any:
    """Return a class of cursors that is `factory` and takes turns."""
    if factory is sqlite3.Cursor:
        return _SharedCursor
    if not isinstance(factory, type) or not issubclass(factory, sqlite3.Cursor):
        raise ConfigurationError(
            f"the cursor factory {factory!r} is not a subclass of sqlite3.Cursor, so its "
            "statements cannot take turns"
        )
    return type(factory.__name__, (factory, _SharedCursor), {})


def share(engine: E) -> E:
    """Let the connections of an SQLAlchemy engine take turns with mqcore; return the engine.

    `engine` is an `Engine` or `AsyncEngine` on the file of a `sqlite:///` URL of mqcore. Call it
    once, where the engine is created: `engine = share(create_engine("sqlite:///shop.db"))`. For
    `sqlite3` and Django use `SharedConnection` as the connection's `factory`.

    Raises `ConfigurationError` for another database, and for one in memory.
    """
    from sqlalchemy import event  # noqa: PLC0415 - SQLAlchemy is an extra

    sync_engine: Any = getattr(engine, "sync_engine", engine)
    url = sync_engine.url
    if sync_engine.dialect.name != "sqlite" or url.database in (None, "", ":memory:"):
        raise ConfigurationError(
            f"only an engine on an SQLite file can take turns, and this one is on "
            f"{url.render_as_string(hide_password=True)}"
        )
    if not event.contains(sync_engine, "do_connect", _connect):
        event.listen(sync_engine, "do_connect", _connect)
        sync_engine.dispose()  # connections that it has already would not take turns
    return engine


def _connect(_dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> None:
    """Choose the class of a new connection of an engine."""
    factory = options.setdefault("factory", SharedConnection)
    if not issubclass(factory, SharedConnection):
        raise ConfigurationError(
            f"the engine's connections are made by {factory!r}, which is not a SharedConnection"
        )
