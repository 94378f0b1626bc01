"""The task store in an SQLite file: `sqlite:///tasks.db`."""

import asyncio
from collections.abc import Callable
from typing import ClassVar
from urllib.parse import quote

from mqcore.tasks.spi import SLICE, Announcement, Clock, SystemClock, TaskStore, hookimpl
from mqcore_sql.database import Database
from mqcore_sql.options import SqliteOptions, file_of, read_options
from mqcore_sql.sqlite import SqliteDatabase
from mqcore_sql.tasks.store import SqlTaskStore

__all__ = ["SqliteTaskStore", "mqcore_register_stores"]


_LOOK = 0.005
"""Seconds between two looks at the state of the file's log, which cost some microseconds each."""
_FRESH = 0.02
"""Seconds for which a write to the log is followed by further looks.

Two writes within one tick of the system's clock, 4 ms or more, look like one.
"""


class SqliteTaskStore(SqlTaskStore):
    """Tasks in a file, which may be that of a queue. Its options are those of the backend."""

    scheme: ClassVar[str | tuple[str, ...]] = "sqlite"
    product = "SQLite"

    def __init__(self, url: str, clock: Clock | None = None, *, slice_size: int = SLICE) -> None:
        """Read the URL. Raises `ConfigurationError` for one that is not valid."""
        options = read_options(SqliteOptions, url)
        super().__init__(url, clock, slice_size=slice_size, migrate=options.migrate)
        own_clock = self.clock if self.clock.real else SystemClock()
        self._options = options.model_copy(update={"clock": own_clock})
        self._file = f"sqlite:///{quote(str(file_of(url)))}"  # the same after `os.chdir`

    def exists(self) -> bool:
        """Return whether the file is there: a command that only reads does not create it."""
        return file_of(self._file).exists()

    def make_database(self) -> Database:
        """Return the file."""
        return SqliteDatabase(self._file, self._options)

    async def listen(self, heard: Callable[[Announcement | None], None]) -> None:
        """Look whether another connection has written to the file. Which rows, it does not say."""
        heard(None)
        loop, fresh_until = asyncio.get_running_loop(), 0.0
        while True:
            await asyncio.sleep(_LOOK)
            database = self._db
            if database is None or database.may_have_changed():
                fresh_until = loop.time() + _FRESH
            if loop.time() < fresh_until and await self._run("listen", _has_changed):
                heard(None)

    @staticmethod
    def has_met_another(error: Exception) -> bool:  # noqa: ARG004 - the seam's name
        """Return False: transactions that write take turns."""
        return False


def _has_changed(database: Database) -> bool:
    return database.changed()


@hookimpl
def mqcore_register_stores() -> list[type[TaskStore]]:
    """Register `sqlite`."""
    return [SqliteTaskStore]
