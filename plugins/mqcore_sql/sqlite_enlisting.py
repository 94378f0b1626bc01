"""Publishing in the transactions of an application on an SQLite file."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from mqcore.spi import Clock, ErrorKind, Failed, Transaction
from mqcore_sql import statements as sql
from mqcore_sql.database import TABLES, Database
from mqcore_sql.enlisting import Enlister, Facts
from mqcore_sql.options import SqlOptions
from mqcore_sql.records import Row
from mqcore_sql.sqlite import INSERT, LAST_NUMBER, REMEMBER, SET_TIME, placed
from mqcore_sql.sqlite_file import DatabaseFile

__all__ = ["SqliteEnlister"]

_SAVEPOINT = "mqcore_enlist"
"""The savepoint around the statements of one batch, where they are several."""


class SqliteEnlister(Enlister):
    """Stores messages in transactions of one SQLite file."""

    dialect = "sqlite"
    words: ClassVar[Mapping[str, str]] = {"now": ":now", "shared": ""}

    def __init__(
        self, database: Database, options: SqlOptions, clock: Clock, file: DatabaseFile
    ) -> None:
        super().__init__(database, options, clock)
        self._file = file

    def _table_names(self, database: Database, own: Transaction) -> dict[str, str]:  # noqa: ARG002 - a file has one schema
        return {name: database.table(name) for name in TABLES}

    def _place(self, transaction: Transaction) -> tuple[int, ...]:
        """Return device and inode of the file: a copy of it is another database."""
        rows = transaction.execute("SELECT file FROM pragma_database_list WHERE name = 'main'", {})
        try:
            found = Path(rows[0][0]).stat()
        except (OSError, IndexError):
            return ()
        return found.st_dev, found.st_ino

    def _facts(self, transaction: Transaction) -> Facts:
        """Ask for the right to write first: one that begins by reading may not get it later."""
        try:
            self._run(transaction, LAST_NUMBER, number=0)
        except Exception as error:
            if "no such table" in str(error):  # SQLite leaves the transaction as it was
                return {}
            raise
        rows = self._run(transaction, "SELECT key, value FROM {meta}")
        return {str(key): int(value) for key, value in rows}

    def _no_room(self) -> Failed | None:
        with suppress(OSError):
            if (free := self._file.free()) < self._file.reserve:
                return Failed(
                    ErrorKind.FULL,
                    f"the disk of {self._file.path} has {free:,} bytes left, which is less than "
                    f"reserve={self._file.reserve:,}. Free some space",
                )
        return None

    @staticmethod
    def _any_of(name: str) -> str:
        return f"IN (SELECT value FROM json_each(:{name}))"

    def _now(self, transaction: Transaction) -> int:
        """Return the time of the file, which goes on where the clock is set back."""
        statement = "SELECT key, value FROM {meta} WHERE key IN ('shift', 'time')"
        rows = transaction.execute(self._text(statement), {})
        found = {str(key): int(value) for key, value in rows}
        now, time = round(self._clock.now() * 1e6) + found.get("shift", 0), found.get("time", 0)
        if now < time:  # the others have to know, or what is stored now would be delayed for them
            shift = found.get("shift", 0) + time - now
            self._run(transaction, SET_TIME, shift=shift, time=time)
        return max(now, time)

    def _store(self, transaction: Transaction, rows: Sequence[Row], current: int) -> set[int]:
        """Store row by row, under a savepoint: a statement that fails leaves nothing behind."""
        # Python begins a transaction with the first change: it would end with the savepoint.
        ((last,),) = self._run(transaction, LAST_NUMBER, number=len(rows))
        transaction.execute(f"SAVEPOINT {_SAVEPOINT}", {})
        try:
            stored = self._store_each(transaction, rows, current, last - len(rows) + 1)
        except BaseException:
            with suppress(Exception):  # an error of the disk has ended the transaction
                transaction.execute(f"ROLLBACK TO {_SAVEPOINT}", {})
                transaction.execute(f"RELEASE {_SAVEPOINT}", {})
            raise
        transaction.execute(f"RELEASE {_SAVEPOINT}", {})
        return stored

    def _store_each(
        self, transaction: Transaction, rows: Sequence[Row], current: int, first: int
    ) -> set[int]:
        now = self._now(transaction)
        remember = self._text(REMEMBER.format(current=current, other=1 - current) + " RETURNING 1")
        insert, stored = self._text(INSERT), set()

        for index, row in enumerate(rows):
            number = first + index
            values = {"queue": row.queue, "name": row.name, "number": number}
            if not transaction.execute(remember, {**values, "now": now, "window": self._window}):
                continue
            stored.add(index)
            columns = ("queue", "rank", "place", "expires", "meta", "body")
            transaction.execute(
                insert, {"id": number, **dict(zip(columns, placed(row, now), strict=True))}
            )

        counted = [rows[index].queue for index in stored]
        for queue in set(counted):
            self._run(transaction, sql.PUBLISHED, queue=queue, number=counted.count(queue))
        return stored
