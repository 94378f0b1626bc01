"""The service's own tables: what its users and its support ask for.

A task has a row before it has a message: the row names the message's id. The worker completes the
row in the transaction that also records the message as handled (`once=`), so a worker that dies in
between leaves either both or neither. A failed attempt rolls the handler's transaction back, so its
failure is stored in one of its own.

`SEGMENTATION_DATABASE` names the database of a worker.
"""

import os
import time
from collections.abc import Iterable

from sqlalchemy import ForeignKey, String, create_engine, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.schema import CreateTable

from examples.segmentation.images import Tier
from mqcore_sql import share

DATABASE = "SEGMENTATION_DATABASE"

sessions = sessionmaker[Session]()


class Table(DeclarativeBase):
    """A table of the service."""


class TaskRow(Table):
    """One task: its message, whose it is, and what became of it.

    `status` is `queued`, `completed` or `failed`. `retry_count` is how many attempts have failed.
    """

    __tablename__ = "segmentation_tasks"

    message_queue_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    name: Mapped[str]
    tier: Mapped[str]
    status: Mapped[str] = mapped_column(default="queued")
    retry_count: Mapped[int] = mapped_column(default=0)
    processing_time_ms: Mapped[int | None] = mapped_column(default=None)
    objects: Mapped[int | None] = mapped_column(default=None)


class FailureRow(Table):
    """One attempt that failed. `final` says that the message has become a dead letter."""

    __tablename__ = "segmentation_failures"

    number: Mapped[int] = mapped_column(primary_key=True)
    message_queue_id: Mapped[str] = mapped_column(ForeignKey(TaskRow.message_queue_id))
    attempt: Mapped[int]
    error: Mapped[str]
    final: Mapped[bool]
    failed_at: Mapped[float]


def use_database(url: str) -> None:
    """Use this database from now on, here and in worker processes that are started from here."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        share(engine)  # the queues may be in the same file: all take turns
    sessions.configure(bind=engine)
    os.environ[DATABASE] = url


def create_tables() -> None:
    """Create the tables that are missing."""
    with sessions.begin() as session:
        for table in Table.metadata.sorted_tables:
            session.execute(CreateTable(table, if_not_exists=True))


def add_task(message: str, name: str, tier: Tier) -> None:
    """Store a task whose message is about to be published with this id."""
    with sessions.begin() as session:
        session.add(TaskRow(message_queue_id=message, name=name, tier=tier.value))


def complete(session: Session, message: str, seconds: float, objects: int) -> None:
    """Store what a task has come to, in the handler's transaction."""
    session.execute(
        update(TaskRow)
        .where(TaskRow.message_queue_id == message)
        .values(status="completed", processing_time_ms=round(seconds * 1000), objects=objects)
    )


def add_failure(message: str, attempt: int, error: str, *, final: bool) -> None:
    """Store that an attempt failed. A task whose last attempt it was is `failed`."""
    row = FailureRow(
        message_queue_id=message,
        attempt=attempt,
        error=error,
        final=final,
        failed_at=time.time(),
    )
    failed = {"status": "failed"} if final else {}
    with sessions.begin() as session:
        session.execute(
            update(TaskRow)
            .where(TaskRow.message_queue_id == message)
            .values(retry_count=TaskRow.retry_count + 1, **failed)
        )
        session.add(row)


def queue_again(messages: Iterable[str]) -> None:
    """Store that tasks were redriven."""
    with sessions.begin() as session:
        session.execute(
            update(TaskRow)
            .where(TaskRow.message_queue_id.in_(list(messages)))
            .values(status="queued")
        )


def all_tasks(messages: Iterable[str]) -> list[TaskRow]:
    """Return the rows of these tasks."""
    with sessions() as session:
        chosen = select(TaskRow).where(TaskRow.message_queue_id.in_(list(messages)))
        return list(session.scalars(chosen))


use_database(os.environ.get(DATABASE, "sqlite:///segmentation.db"))
