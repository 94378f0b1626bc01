"""The task store in an SQLite file: `sqlite:///tasks.db`."""

from typing import ClassVar
from urllib.parse import quote

from mqcore.tasks.spi import SLICE, Clock, SystemClock, TaskStore, hookimpl
from mqcore_sql.database import Database
from mqcore_sql.options import SqliteOptions, file_of, read_options
from mqcore_sql.sqlite import SqliteDatabase
from mqcore_sql.tasks.store import SqlTaskStore

__all__ = ["SqliteTaskStore", "mqcore_register_stores"]


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

    @staticmethod
    def has_met_another(error: Exception) -> bool:  # noqa: ARG004 - the seam's name
        """Return False: transactions that write take turns."""
        return False


@hookimpl
def mqcore_register_stores() -> list[type[TaskStore]]:
    """Register `sqlite`."""
    return [SqliteTaskStore]
