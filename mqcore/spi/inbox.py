"""An inbox: a record of the messages that a consumer has handled, so that none is handled twice.

A consumer with `once=` asks the inbox before it calls its handler, and records the message's id
when the handler has succeeded, before the message is acknowledged. There are two kinds of inboxes.

- An `Inbox` gives each run of a handler a transaction of its own: what the handler does in that
  session and the id are stored together or not at all.
- A Backend with `SupportsInbox` only stores ids. A process that dies between the effect of a
  handler and its record handles the message again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from mqcore.clock import Clock
    from mqcore.spi.backend import Backend
    from mqcore.spi.enlisting import Transaction

__all__ = [
    "BlockingInboxBatch",
    "BlockingInboxTransaction",
    "HoldsUp",
    "Inbox",
    "InboxBatch",
    "InboxEntry",
    "InboxTransaction",
    "Recorded",
    "SupportsInbox",
    "SupportsJoin",
]


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """What an inbox records of one message.

    `window` is for how many seconds. `receipt` is that of the claim that is being handled;
    empty when the message is not to be acknowledged with it.
    """

    consumer: str
    queue: str
    id: str
    window: float
    receipt: bytes = b""


class Recorded(Enum):
    """How the commit of a transaction ended."""

    RECORDED = "recorded"
    """The id and what the handler did are stored. The acknowledgement follows."""
    ACKNOWLEDGED = "acknowledged"
    """As `RECORDED`, and the acknowledgement was a part of the transaction."""
    DUPLICATE = "duplicate"
    """Another delivery has been handled meanwhile. The transaction was rolled back."""
    LOST = "lost"
    """The claim belongs to another consumer. The transaction was rolled back."""
    ROLLED_BACK = "rolled_back"
    """The transaction was rolled back because of another message of the same batch."""


class InboxTransaction(Protocol):
    """The transaction in which an async handler runs."""

    @property
    def session(self) -> Any:
        """What the handler gets as `ctx.session`; None where there is nothing to use."""

    @property
    def was_handled(self) -> bool:
        """Whether the message was handled before. Then the handler is not called."""

    @property
    def acknowledges(self) -> bool:
        """Whether `commit` acknowledges the message as well."""

    async def commit(self) -> Recorded:
        """Record the id as the last step of the transaction, and commit.

        When another delivery has recorded the same id, or the claim is lost, it rolls back.
        """


class BlockingInboxTransaction(Protocol):
    """The transaction in which a blocking handler runs; all of it is called in one thread."""

    @property
    def session(self) -> Any:
        """As `InboxTransaction.session`."""

    @property
    def was_handled(self) -> bool:
        """As `InboxTransaction.was_handled`."""

    @property
    def acknowledges(self) -> bool:
        """As `InboxTransaction.acknowledges`."""

    def commit(self) -> Recorded:
        """As `InboxTransaction.commit`."""


class InboxBatch(Protocol):
    """The transaction in which an async handler runs with a batch of messages."""

    @property
    def session(self) -> Any:
        """As `InboxTransaction.session`, one for the whole batch."""

    @property
    def handled(self) -> Sequence[bool]:
        """For each message, whether it was handled before. The handler does not get those."""

    @property
    def acknowledges(self) -> bool:
        """Whether `commit_items` acknowledges the messages as well."""

    async def commit_items(self, done: Sequence[int]) -> Sequence[Recorded]:
        """Record the ids of these messages, by their index, as the last step, and commit.

        Returns how it ended for each of them. When one of them is a duplicate or its claim is lost,
        all is rolled back, and the others are `ROLLED_BACK`.
        """


class BlockingInboxBatch(Protocol):
    """As `InboxBatch`, for a blocking handler; all of it is called in one thread."""

    @property
    def session(self) -> Any:
        """As `InboxBatch.session`."""

    @property
    def handled(self) -> Sequence[bool]:
        """As `InboxBatch.handled`."""

    @property
    def acknowledges(self) -> bool:
        """As `InboxBatch.acknowledges`."""

    def commit_items(self, done: Sequence[int]) -> Sequence[Recorded]:
        """As `InboxBatch.commit_items`."""


@runtime_checkable
class HoldsUp(Protocol):
    """A transaction of an inbox that may have a lock which publishes need as well.

    Optional, for all that an `Inbox` returns.
    """

    def holds_up(self, backend: Backend) -> str:
        """Return what is locked, such as the path of a file; an empty text if nothing is.

        Locked is what a publish to the backend needs, so that it would certainly wait for the end
        of this transaction. Called in any thread, beside the handler.
        """


class Inbox(ABC):
    """Where a worker records which messages were handled. One object may serve several workers."""

    has_sessions: ClassVar[bool] = True
    """Whether a handler works in the transaction.

    If so, a blocking handler gets a `blocking_transaction`, in its own thread, and a handler in a
    process of its own is refused. If not, `transaction` serves every kind of handler.
    """
    has_batches: ClassVar[bool] = False
    """Whether it has `batch`, and `blocking_batch` where it has sessions, for `batch=`."""

    def check(self, where: str, *, blocking: bool) -> None:  # noqa: B027 - for overriding
        """Raise `ConfigurationError` when it has no transaction for this kind of handler.

        `where` begins the text of the error.
        """

    async def open(self, clock: Clock, backend: Backend) -> Inbox:  # noqa: ARG002 - for overriding
        """Make ready, and return the inbox for one worker, which consumes from the backend.

        By default that is the inbox itself. What depends on the backend belongs into a copy,
        because another worker may have another one.
        """
        return self

    async def close(self) -> None:  # noqa: B027 - for overriding
        """Release what `open` took. Called on what `open` has returned."""

    async def forget(self) -> bool:
        """Remove some of the ids whose window has ended; return whether there may be more.

        Called every minute. It must be quick: bound the number of ids.
        """
        return False

    @abstractmethod
    def transaction(self, entry: InboxEntry) -> AbstractAsyncContextManager[InboxTransaction]:
        """Return a context that has looked for the id, and rolls back unless it was committed."""

    def blocking_transaction(
        self, entry: InboxEntry
    ) -> AbstractContextManager[BlockingInboxTransaction]:
        """As `transaction`, for a blocking handler. Entered and left in the handler's thread."""
        raise NotImplementedError(f"{type(self).__name__} has no transactions for threads")

    def batch(self, entries: Sequence[InboxEntry]) -> AbstractAsyncContextManager[InboxBatch]:
        """As `transaction`, for several messages of one consumer; no id is there twice."""
        raise NotImplementedError(f"{type(self).__name__} has no transactions for batches")

    def blocking_batch(
        self, entries: Sequence[InboxEntry]
    ) -> AbstractContextManager[BlockingInboxBatch]:
        """As `batch`, for a blocking handler. Entered and left in the handler's thread."""
        raise NotImplementedError(f"{type(self).__name__} has no batches for threads")


@runtime_checkable
class SupportsInbox(Protocol):
    """A Backend that can record which messages were handled, outside of any transaction."""

    async def was_handled(self, names: Sequence[str]) -> Sequence[bool]:
        """Return for each name whether it is recorded. A name has 32 letters and digits."""

    async def note_handled(self, names: Sequence[str], window: float) -> None:
        """Record the names for `window` seconds from now, as durably as a message is stored."""


@runtime_checkable
class SupportsJoin(Protocol):
    """A Backend in a database, whose acknowledgement can be a part of another transaction there."""

    def foreign(self, transaction: Transaction) -> str:
        """As `SupportsEnlist.foreign`."""

    def acknowledge(self, transaction: Transaction, receipt: bytes) -> bool:
        """Acknowledge a message in the transaction; return False when the claim is lost.

        The message is gone when the transaction is committed, and still claimed when it is rolled
        back. A settlement with the same receipt that comes later is `Stale`. Called in any thread.
        """
