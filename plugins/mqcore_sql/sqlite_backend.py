"""The backend of SQLite: its scheme, its options, and its driver."""

from typing import cast
from urllib.parse import quote

from pydantic import BaseModel

from mqcore.spi import ErrorKind
from mqcore_sql.database import Database
from mqcore_sql.driver import SqlBackend, SqlDriver, kind_of
from mqcore_sql.enlisting import Enlister
from mqcore_sql.options import SqliteOptions, file_of
from mqcore_sql.sqlite import SqliteDatabase
from mqcore_sql.sqlite_enlisting import SqliteEnlister

__all__ = ["SqliteBackend"]


class SqliteDriver(SqlDriver):
    """The calls of one connection to a file."""

    def make_database(self) -> Database:
        """Return the file's database."""
        return SqliteDatabase(self.url, cast("SqliteOptions", self.options))

    def make_enlister(self) -> Enlister:
        """Return what writes in transactions on the file."""
        file = cast("SqliteDatabase", self._db).file
        return SqliteEnlister(self._db, self.options, self._clock, file)

    @staticmethod
    def classify(error: Exception) -> ErrorKind:
        """Return the kind of an error."""
        return kind_of(SqliteDatabase, error)


class SqliteBackend(SqlBackend):
    """`sqlite:///file.db`: queues in a file, without a server."""

    scheme = "sqlite"
    spi_version = 1
    Options = SqliteOptions
    Driver = SqliteDriver

    def __init__(self, url: str, options: BaseModel) -> None:
        # A wrong URL is an error at once. A reconnect after `os.chdir` needs the same file.
        super().__init__(f"sqlite:///{quote(str(file_of(url)))}", options)

    def exists(self) -> bool:
        """Return whether the file is there."""
        return file_of(self.url).exists()

    def file_identity(self) -> tuple[int, int] | None:
        """Return device and inode of the file."""
        try:
            found = file_of(self.url).stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino
