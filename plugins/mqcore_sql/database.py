"""What the store needs from a database: connecting, transactions, and the statements that differ.

A statement is written once, with fields in braces for what the two databases write differently, and
with named parameters (`:queue`):

    {messages} {queues} {names0} {names1} {bindings} {meta}   the tables, and those of tasks
    {now}                                                     the database's time, in microseconds
    {any:ids}                                                 a comparison with a list parameter
    {shared} {locked} {bounded} {alone} {skipping}            row locks, where the database has them
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from mqcore.spi import Durability, ErrorKind
from mqcore_sql.records import Claimed, Row

__all__ = ["TABLES", "TASK_TABLES", "Columns", "CommitUnknown", "Database"]

TABLES = ("meta", "queues", "messages", "names0", "names1", "bindings")
"""The tables of queues, without their prefix. `state` is reserved for the state of handlers."""
TASK_TABLES = (
    *("tasks", "task_outbox", "task_claims", "task_limits", "task_lines"),
    *("task_schedules", "task_workers"),
)
"""The tables of the task store."""
Columns = Mapping[str, tuple[str, Sequence[Any]]]
"""Names of columns, with their types and the values of all rows."""
_LIST = re.compile(r"\{any:(\w+)\}")


class CommitUnknown(Exception):
    """A commit had no answer: the transaction may have taken effect. The cause says why."""


class Database(ABC):
    """One connection, which one thread uses. Its errors are those of its client library."""

    product: ClassVar[str]
    words: ClassVar[dict[str, str]]
    """What stands for `now`, for the row locks and for the types of columns in a statement."""
    counts_totals: ClassVar[bool]
    """Whether each queue's row counts what was published and settled."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._texts: dict[str, str] = {}

    @abstractmethod
    def open(self) -> None:
        """Connect, and check what can be checked. Raises `ConfigurationError` for bad input."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. May be called in any state."""

    @abstractmethod
    def server(self) -> tuple[str, Durability, dict[str, float | str | bool]]:
        """Return the product with its version, its durability, and the limits of DURABLE."""

    def prepared(self) -> None:  # noqa: B027 - a file has nothing to ask
        """Ask what can be asked once the tables exist."""

    @abstractmethod
    def create(self, statements: str) -> None:
        """Run a migration, inside a transaction: statements with semicolons between them."""

    @abstractmethod
    def migration(self) -> AbstractContextManager[None]:
        """Return a context in which no other process migrates this schema."""

    @abstractmethod
    def has_tables(self) -> list[str]:
        """Return those of `TABLES` that exist."""

    @abstractmethod
    def transaction(self, *, durable: bool = True) -> AbstractContextManager[None]:
        """Return a context that commits at its end, and rolls back when it raises.

        Without `durable`, a power cut may undo it. Raises `CommitUnknown` when it is not known
        whether the commit took effect; every other error means that nothing was changed.
        """

    @abstractmethod
    def time(self) -> float:
        """Return the time of the database, in seconds."""

    @abstractmethod
    def query(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""

    @abstractmethod
    def change(self, statement: str, **values: Any) -> int:
        """Run a statement and return how many rows it has changed."""

    def lock_topology(self) -> None:  # noqa: B027 - one writer needs no lock
        """Wait until no other process changes queues or bindings, inside a transaction."""

    @abstractmethod
    def insert(self, table: str, columns: Columns, *, replace: bool = False) -> None:
        """Insert rows, inside a transaction.

        With `replace`, a row whose first column is in the table is written over.
        """

    @abstractmethod
    def update(self, table: str, columns: Columns) -> int:
        """Write columns of rows that exist; the first column is the key. Return how many rows."""

    @abstractmethod
    def empty_names(self, number: int) -> None:
        """Empty one of the two tables of names, inside a transaction."""

    @abstractmethod
    def check_room(self) -> None:
        """Raise an error of the kind FULL where a publish would take the last of the disk."""

    @abstractmethod
    def store(self, rows: Sequence[Row], current: int, window: int) -> set[int]:
        """Insert rows, unless their name was stored inside the window; return the indexes stored.

        `current` says which table of names takes new ones. Inside a transaction.
        """

    @abstractmethod
    def known(self, names: Sequence[tuple[int, bytes, int]], window: int) -> set[int]:
        """Return the indexes of the names that were stored inside the window.

        A name is a queue, a hash, and the number of a message after which it must have been stored.
        """

    @abstractmethod
    def claim(
        self, queue: int, limit: int, token: int, lease: int, *, alone: bool
    ) -> list[Claimed]:
        """Lease ready messages, after the leases that have ended have been returned.

        With `alone`, nothing is leased while another lease of the queue holds.
        """

    @abstractmethod
    def changed(self) -> bool:
        """Return whether another connection may have changed something since the last call."""

    @abstractmethod
    def may_have_changed(self) -> bool:
        """Return whether `changed` has to be asked; from any thread, and without the connection."""

    @abstractmethod
    def notify(self) -> None:
        """Tell other processes that messages were stored, where that takes a statement."""

    @abstractmethod
    def beat(self) -> None:
        """Check that the connection lives. Called every two seconds; raises when it is lost."""

    @abstractmethod
    def problems(self) -> list[str]:
        """Return what an operator should know, for `mqcore doctor`."""

    @abstractmethod
    def is_lost(self, error: BaseException) -> bool:
        """Return whether the connection cannot be used after this error."""

    @staticmethod
    @abstractmethod
    def kind(error: BaseException) -> ErrorKind:
        """Return the kind of an error of the client library."""

    def abort(self) -> None:  # noqa: B027 - a file has nothing to cut
        """Cut the connection, from another thread."""

    @staticmethod
    @abstractmethod
    def any_of(name: str) -> str:
        """Return a comparison with the list parameter `name`."""

    @staticmethod
    def replacing(columns: Columns) -> str:
        """Return the end of an INSERT that writes over rows with the same first column."""
        key, *names = columns
        changes = ", ".join(f"{name} = excluded.{name}" for name in names)
        return f" ON CONFLICT ({key}) DO UPDATE SET {changes}"

    def text(self, statement: str) -> str:
        """Return a statement as this database reads it."""
        if (found := self._texts.get(statement)) is None:
            found = _LIST.sub(lambda match: self.any_of(match[1]), statement)
            for table in (*TABLES, *TASK_TABLES):
                found = found.replace(f"{{{table}}}", self.table(table))
            for word, text in (*self.words.items(), ("prefix", self.prefix)):
                found = found.replace(f"{{{word}}}", text)
            self._texts[statement] = found
        return found

    def table(self, name: str) -> str:
        """Return the name of a table."""
        return f"{self.prefix}_{name}"
