"""Publishing inside a transaction that the application itself began.

Only a backend whose queues are in a database can do this. A backend that has the methods of
`SupportsEnlist` supports it, as with the protocols in `optional`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mqcore.messages.delivery import Outgoing
    from mqcore.spi.outcomes import Outcome

__all__ = ["SupportsEnlist", "Transaction"]


class Transaction(Protocol):
    """The open transaction of an application, as core shows it to a backend.

    `dialect` is the database's name as SQLAlchemy writes it: `sqlite`, `postgresql`. What runs
    through it is committed or rolled back by the application, with its own statements.
    """

    dialect: str

    def execute(self, statement: str, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Run one statement and return its rows; none for a statement that returns no rows.

        Parameters are named, as in `WHERE name = :name`. A value is text, bytes, a number or None;
        pass several as one JSON text, which every client library can carry. A statement has no
        percent sign. Raises the client library's own error.
        """
        ...


@runtime_checkable
class SupportsEnlist(Protocol):
    """Storing messages through a transaction of the application.

    A message that is enlisted is visible to consumers after the commit, and gone after a rollback,
    also one to a savepoint. Core calls these methods in the thread that uses the transaction, which
    may be any thread, after the instance was open once. They must not use the instance's own
    connection, and must not commit, roll back, or change a setting of the transaction's session.
    """

    def foreign(self, transaction: Transaction) -> str:
        """Return why the transaction is not in this backend's database; an empty text if it is.

        Decides by something that is stored in the database, never by comparing URLs. A database
        without the backend's tables is foreign, and the text says how to create them. A missing
        table must not make the transaction fail. Raises `ConfigurationError` when this database's
        tables are newer than the code, and `ConnectionLost` when the instance was never open.
        """
        ...

    def enlist(self, transaction: Transaction, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        """Store a batch inside the transaction; return an outcome for each item, in its order.

        Outcomes are those of `Backend.publish`, and `Stored` counts when the commit has succeeded.
        Whatever would hold a lock that other publishers need until the application commits is
        refused: a queue with `max_length` is `Failed(PERMANENT)`, with a text that says so.

        Must store nothing unless each item is `Stored`: a routed message goes to all its queues. A
        refusal that can be known beforehand must leave the transaction usable. Raises the client
        library's own error when a statement fails.
        """
        ...

    def committed(self, queues: Sequence[str]) -> None:
        """Look for messages in these queues soon: a transaction that enlisted some has ended.

        A hint, on the event loop: consumers find the messages without it. Must not block.
        """
        ...
