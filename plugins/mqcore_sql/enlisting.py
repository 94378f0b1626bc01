"""Publishing in transactions of the application: the same rows, through its own connection.

An `Enlister` uses nothing of the driver's connection. So it works in any thread, and also while
that connection is lost.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from mqcore.spi import (
    STORED,
    Clock,
    ConfigurationError,
    ErrorKind,
    Failed,
    Outcome,
    Outgoing,
    Stored,
    Transaction,
)
from mqcore_sql import statements as sql
from mqcore_sql.database import Database
from mqcore_sql.options import SqlOptions
from mqcore_sql.queues import QueueRow
from mqcore_sql.records import Row, lease_of, name_of
from mqcore_sql.schema import VERSION, instance_of
from mqcore_sql.store import refusal, row_of

__all__ = ["Enlister", "Facts"]

Facts = Mapping[str, int]
_DUPLICATE = Stored(duplicate=True)
_LIST = re.compile(r"\{any:(\w+)\}")


class Enlister(ABC):
    """Stores messages in transactions that are in one database."""

    dialect: ClassVar[str]
    words: ClassVar[Mapping[str, str]]

    def __init__(self, database: Database, options: SqlOptions, clock: Clock) -> None:
        """`database` is open, and used by its thread during this call alone."""
        self._counts_totals = database.counts_totals
        self._product, self._options, self._clock = database.product, options, clock
        self._window = round(options.dedup_window * 1e6)
        own = _Own(self.dialect, database.query)
        self._tables = self._table_names(database, own)
        self._texts: dict[str, str] = {}
        instance = instance_of(database)
        self._identity = instance, self._place(own)

    # Where a transaction is

    def foreign(self, transaction: Transaction) -> str:
        """Return why a transaction is not in this database, or an empty text."""
        if transaction.dialect != self.dialect:
            return f"its database is {transaction.dialect!r}, and not {self._product}"
        facts = self._facts(transaction)
        if not facts:
            return (
                f"its {self._product} database has no tables of mqcore with the prefix "
                f"{self._options.prefix!r}. Create them with: mqcore sql upgrade URL"
            )
        if (facts.get("instance"), self._place(transaction)) != self._identity:
            return f"its tables of mqcore are those of another {self._product} database"
        if (version := facts.get("schema", 0)) > VERSION:
            raise ConfigurationError(
                f"the tables of mqcore in this {self._product} database have version {version}, "
                f"and this version of mqcore knows {VERSION} at most. Upgrade mqcore in this "
                "process"
            )
        return ""

    @abstractmethod
    def _table_names(self, database: Database, own: Transaction) -> dict[str, str]:
        """Return the names of the tables, as every connection finds them."""

    @abstractmethod
    def _place(self, transaction: Transaction) -> tuple[int, ...]:
        """Return what distinguishes a database from its copies, which have its instance id."""

    @abstractmethod
    def _facts(self, transaction: Transaction) -> Facts:
        """Return the numbers in the table of facts; nothing where there is no such table."""

    # Storing

    def enlist(self, transaction: Transaction, batch: Sequence[Outgoing]) -> list[Outcome]:
        """Store a batch in a transaction, all of it or nothing; return an outcome for each item."""
        if (full := self._no_room()) is not None:
            return [full] * len(batch)
        names = list({out.to for out in batch if isinstance(out.to, str)})
        rows = self._run(transaction, sql.QUEUES, queues=json.dumps(names))
        targets = {row[1]: QueueRow(*row[:-2]) for row in rows}
        epoch = int(rows[0][-1]) if rows else 0

        found = [self._target(out, targets) for out in batch]
        refused = {index: each for index, each in enumerate(found) if isinstance(each, Failed)}
        if refused:
            other = next(iter(refused.values()))
            return [
                refused.get(index, Failed(other.kind, f"another one was refused: {other.text}"))
                for index in range(len(batch))
            ]

        new: dict[tuple[int, bytes | None], tuple[int, Row]] = {}
        for index, (out, queue) in enumerate(zip(batch, found, strict=True)):
            if isinstance(queue, QueueRow):
                row = row_of(out, queue, name_of(out.message))
                new.setdefault((queue.id, row.name), (index, row))
        numbers = [index for index, _ in new.values()]
        stored = self._store(transaction, [row for _, row in new.values()], epoch % 2)
        accepted = {numbers[position] for position in stored}
        return [STORED if index in accepted else _DUPLICATE for index in range(len(batch))]

    def acknowledge(self, transaction: Transaction, receipt: bytes) -> bool:
        """Remove a leased message in a transaction; False when the claim is lost.

        A lease that has ended and was not given to another consumer is still a claim.
        """
        number, token = lease_of(receipt)
        if self._counts_totals:
            self._run(transaction, sql.SETTLED_ONE, id=number, token=token)
        return bool(self._run(transaction, sql.ACKNOWLEDGE, id=number, token=token))

    def _target(self, out: Outgoing, targets: dict[str, QueueRow]) -> QueueRow | Failed:
        queue = refusal(out, targets, self._options, self._product)
        if isinstance(queue, QueueRow) and queue.max_length is not None:
            return Failed(
                ErrorKind.PERMANENT,
                f"queue {queue.name!r} has max_length={queue.max_length:,}. A transaction would "
                "hold back all its other publishers until it ends, so a bounded queue takes no "
                "message inside one. Publish after the commit, or alter the queue",
            )
        return queue

    def _no_room(self) -> Failed | None:
        """Return a refusal where the disk is nearly full; a server refuses by itself."""
        return None

    @abstractmethod
    def _store(self, transaction: Transaction, rows: Sequence[Row], current: int) -> set[int]:
        """Remember names and insert rows; return the indexes of those that were new."""

    # Statements

    def _run(
        self, transaction: Transaction, statement: str, **values: Any
    ) -> Sequence[Sequence[Any]]:
        if "{now}" in statement and ":now" in self.words["now"]:
            values["now"] = self._now(transaction)
        return transaction.execute(self._text(statement), values)

    def _text(self, statement: str) -> str:
        if (found := self._texts.get(statement)) is None:
            found = _LIST.sub(lambda match: self._any_of(match[1]), statement)
            for word, text in (*self._tables.items(), *self.words.items()):
                found = found.replace(f"{{{word}}}", text)
            self._texts[statement] = found
        return found

    @staticmethod
    @abstractmethod
    def _any_of(name: str) -> str:
        """Return a comparison with the elements of a JSON text."""

    def _now(self, transaction: Transaction) -> int:
        """Return the time, where the database has no clock of its own."""
        raise NotImplementedError


class _Own:
    """The driver's own connection, as a transaction; on its thread."""

    def __init__(self, dialect: str, query: Callable[..., list[tuple[Any, ...]]]) -> None:
        self.dialect, self._query = dialect, query

    def execute(self, statement: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        return self._query(statement, **values)
