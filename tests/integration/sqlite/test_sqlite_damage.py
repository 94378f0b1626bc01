"""A file that is damaged while it is open, or whose log or lock goes: a loss and no confirm."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.sqlite_file import plugins
from support.waiting import eventually

from mqcore import Broker, PublishFailed, Queue, Settings
from mqcore.spi import (
    STORED,
    ConfigurationError,
    ConnectionLost,
    ErrorKind,
    Failed,
    Message,
    Outgoing,
    QueueSpec,
)
from mqcore.testing import VirtualClock
from mqcore_sql import SqliteBackend, SqliteOptions

Open = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[Open]:
    backends: list[SqliteBackend] = []

    async def open_one(lost: list[Exception] | None = None, **options: Any) -> SqliteBackend:
        backend = SqliteBackend(f"sqlite:///{path}", SqliteOptions(**options))
        backends.append(backend)
        await backend.open((lost if lost is not None else []).append)
        return backend

    yield open_one
    for backend in backends:
        await backend.close()


def out(name: str = "a") -> Outgoing:
    return Outgoing("jobs", Message(id=name, body=b"x" * 1_000))


async def filled(backend: Any) -> None:
    """Declare a queue and publish until the file has many pages."""
    await backend.declare([QueueSpec(name="jobs")])
    batch = [out(f"{number}") for number in range(2_000)]
    assert await backend.publish(batch, timeout=30) == [STORED] * 2_000


def write_log(path: Path) -> None:
    """Write the log into the file, and empty it."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


def damage(path: Path, how: str) -> None:
    """Overwrite the middle of the file, or cut it off."""
    with path.open("r+b") as file:
        if how == "cut off":
            file.truncate(30_000)
        else:
            file.seek(20_000)
            file.write(os.urandom(path.stat().st_size - 20_000))


@pytest.mark.parametrize("how", ["overwritten", "cut off"])
async def test_a_file_that_is_damaged_while_it_is_open_is_lost_and_refused_at_the_next_open(
    opened: Open, path: Path, how: str
) -> None:
    lost: list[Exception] = []
    backend = await opened(lost)
    await filled(backend)
    write_log(path)
    damage(path, how)
    consumer = await backend.subscribe("jobs", prefetch=2_000, lease=30)

    async def receive_all() -> None:
        while await consumer.receive(500, 0):
            pass

    with pytest.raises(Exception, match=r"malformed|disk I/O|damaged|not a database") as caught:
        await receive_all()
    assert backend.classify(caught.value) is ErrorKind.TRANSIENT
    await eventually(lambda: lost)

    with pytest.raises(ConfigurationError, match=r"damaged|not an SQLite database"):
        await opened()


async def test_an_application_is_not_told_that_a_damaged_file_took_its_message(path: Path) -> None:
    url = f"sqlite:///{path}"
    async with Broker.connect(url, plugins=plugins(), settings=Settings()) as broker:
        queue = Queue("jobs", bytes)

        async def publish(first: int, timeout: float) -> None:
            for number in range(first, first + 50):
                await broker.publish(queue, b"x" * 10_000, id=f"{number}", timeout=timeout)

        await publish(0, 10)
        write_log(path)
        damage(path, "overwritten")
        with pytest.raises(PublishFailed):
            await publish(50, 2)


async def test_a_log_that_is_deleted_while_it_is_open_is_a_loss_and_not_a_confirm(
    opened: Open, path: Path
) -> None:
    """SQLite goes on to write into the deleted log, which nobody reads again."""
    lost: list[Exception] = []
    backend = await opened(lost)
    await backend.declare([QueueSpec(name="jobs")])
    for name in ("queue.db-wal", "queue.db-shm"):
        path.with_name(name).unlink()
    (outcome,) = await backend.publish([out()], timeout=5)
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.TRANSIENT
    assert "queue.db-wal" in outcome.text
    await eventually(lambda: lost)
    assert isinstance(lost[0], ConnectionLost)

    await backend.close()
    again = await opened()
    await again.declare([QueueSpec(name="jobs")])
    assert await again.publish([out()], timeout=5) == [STORED]


async def test_a_lock_file_that_is_deleted_is_made_again_and_shared(
    opened: Open, path: Path
) -> None:
    clock = VirtualClock()
    backend = await opened(clock=clock)
    await backend.declare([QueueSpec(name="jobs")])
    path.with_name("queue.db.lock").unlink()
    other = await opened(clock=clock)
    await clock.advance(5)
    assert await other.publish([out()], timeout=5) == [STORED]

    lock = os.open(path.with_name("queue.db.lock"), os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (outcome,) = await backend.publish([out("b")], timeout=0.3)
        assert outcome != STORED  # it waits for the same lock
    finally:
        os.close(lock)
    await clock.advance(5)
    assert (await backend.publish([out("c")], timeout=5)) == [STORED]
