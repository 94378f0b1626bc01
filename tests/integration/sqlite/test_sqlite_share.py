"""`share`: an application's own connections to the file take turns with mqcore's processes."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mqcore import Blocked, Broker, Queue, Settings
from mqcore.spi import STORED, ConfigurationError, Message, Outgoing, QueueSpec
from mqcore_sql import SharedConnection, SqliteBackend, SqliteOptions, share

SUPPORT = Path(__file__).parents[2] / "support"
TRANSACTIONS, MESSAGES = 200, 1_000

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend(f"sqlite:///{path}", SqliteOptions())
    await backend.open(lambda _: None)
    await backend.declare([QueueSpec(name="jobs")])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE totals (value INTEGER)")
        connection.execute("INSERT INTO totals VALUES (0)")
    yield backend
    await backend.close()


@pytest.fixture
def connection(backend: SqliteBackend, path: Path) -> Iterator[SharedConnection]:
    with closing(sqlite3.connect(path, factory=SharedConnection)) as connection:
        yield connection


def total(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT value FROM totals").fetchone()[0])


def is_free(path: Path) -> bool:
    """Return whether nobody has the turn."""
    lock = os.open(f"{path}.lock", os.O_RDONLY | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def out(name: str = "a") -> Outgoing:
    return Outgoing("jobs", Message(id=name, body=b"body"))


# Four processes


@pytest.mark.parametrize("client", ["sqlite3", "sqlalchemy"])
def test_four_processes_share_a_file_and_none_finds_it_locked(
    backend: SqliteBackend, path: Path, tmp_path: Path, client: str
) -> None:
    if client == "sqlalchemy":
        pytest.importorskip("sqlalchemy", reason="pip install 'mqcore[sqlalchemy]'")
    queue = [str(SUPPORT / "sqlite_process.py")]
    own = [str(SUPPORT / "sqlite_shared.py"), str(path), client, str(TRANSACTIONS)]
    words = [
        *(
            [*queue, role, f"sqlite:///{path}", str(tmp_path / role)]
            for role in ("publish", "consume")
        ),
        own,
        own,
    ]
    started = [
        subprocess.Popen(
            [sys.executable, *line, *([str(MESSAGES)] if line is not own else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for line in words
    ]
    try:
        outputs = [process.communicate(timeout=150)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert outputs == [""] * 4
    assert [process.returncode for process in started] == [0] * 4
    assert total(path) == 2 * TRANSACTIONS
    handled = (tmp_path / "consume").read_text().split()
    assert sorted(handled) == sorted(f"publish-{index}" for index in range(MESSAGES))


# One connection


async def test_a_transaction_that_reads_first_can_write(
    backend: SqliteBackend, connection: SharedConnection, path: Path
) -> None:
    connection.isolation_level = None
    connection.execute("BEGIN")
    assert connection.execute("SELECT value FROM totals").fetchone() == (0,)
    publishing = asyncio.create_task(backend.publish([out()], timeout=30))
    await asyncio.sleep(0)
    assert not is_free(path)
    connection.execute("UPDATE totals SET value = 7")
    connection.execute("COMMIT")
    assert await publishing == [STORED]
    assert total(path) == 7


async def test_without_turns_a_transaction_that_reads_first_finds_the_file_locked(
    backend: SqliteBackend, path: Path
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as plain:
        plain.execute("BEGIN")
        plain.execute("SELECT value FROM totals").fetchone()
        assert await backend.publish([out()], timeout=5) == [STORED]
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            plain.execute("UPDATE totals SET value = 7")


@pytest.mark.parametrize("end", ["commit", "rollback", "close", "with", "error"])
def test_a_turn_begins_with_the_first_write_and_ends_with_the_transaction(
    connection: SharedConnection, path: Path, end: str
) -> None:
    connection.execute("/* a query */ SELECT value FROM totals -- no turn").fetchone()
    assert is_free(path)
    connection.cursor().executemany("UPDATE totals SET value = value + ?", [[1], [2]])
    assert not is_free(path)
    if end == "with":
        with connection:
            pass
    elif end == "error":
        with pytest.raises(ZeroDivisionError), connection:
            raise ZeroDivisionError
    else:
        getattr(connection, end)()
    assert is_free(path)
    assert total(path) == (3 if end in ("commit", "with") else 0)


def test_a_statement_that_fails_and_a_statement_by_itself_leave_no_turn(
    connection: SharedConnection, path: Path
) -> None:
    connection.isolation_level = None
    with pytest.raises(sqlite3.OperationalError):
        connection.execute("UPDATE nothing SET value = 1")
    assert is_free(path)
    connection.execute("UPDATE totals SET value = 5")
    assert is_free(path)
    connection.executescript("UPDATE totals SET value = 6; SAVEPOINT a")
    assert not is_free(path)
    connection.execute("RELEASE a")
    assert is_free(path)
    assert total(path) == 6


@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
def test_a_connection_that_is_forgotten_leaves_no_turn(backend: SqliteBackend, path: Path) -> None:
    connection = sqlite3.connect(path, factory=SharedConnection)
    connection.execute("UPDATE totals SET value = 1")
    assert not is_free(path)
    del connection
    gc.collect()  # a connection of sqlite3 refers to itself
    assert is_free(path)
    assert total(path) == 0


def test_a_turn_that_does_not_come_is_an_error_after_the_timeout(
    backend: SqliteBackend, path: Path
) -> None:
    with (
        closing(sqlite3.connect(path, factory=SharedConnection)) as one,
        closing(sqlite3.connect(path, 0.1, factory=SharedConnection)) as other,
    ):
        one.execute("UPDATE totals SET value = 1")
        with pytest.raises(sqlite3.OperationalError, match=r"shop\.db\.lock.*0\.1 s"):
            other.execute("UPDATE totals SET value = 2")
        assert not other.in_transaction
        one.commit()
        other.execute("UPDATE totals SET value = 3")
        other.commit()
    assert is_free(path)
    assert total(path) == 3


def test_a_cursor_class_of_the_application_takes_turns_as_well(
    connection: SharedConnection, path: Path
) -> None:
    class Counting(sqlite3.Cursor):
        number = 0

        def execute(self, sql: str, parameters: Any = ()) -> Any:
            self.number += 1
            return super().execute(sql, parameters)

    cursor = connection.cursor(Counting)
    cursor.execute("UPDATE totals SET value = 1")
    assert (cursor.number, is_free(path)) == (1, False)
    connection.rollback()
    with pytest.raises(ConfigurationError, match=r"sqlite3\.Cursor"):
        connection.cursor(lambda _: cursor)


def test_an_error_names_the_holder_in_this_process(
    connection: SharedConnection, path: Path
) -> None:
    connection.execute("UPDATE totals SET value = 1")
    with (
        closing(sqlite3.connect(path, timeout=0, factory=SharedConnection)) as other,
        pytest.raises(sqlite3.OperationalError) as caught,
    ):
        other.execute("UPDATE totals SET value = 2")
    text = str(caught.value)
    assert "a transaction of this process" in text
    assert repr(threading.current_thread().name) in text
    assert "fuser" not in text


def test_an_error_names_the_tool_for_a_holder_elsewhere(path: Path) -> None:
    lock = os.open(f"{path}.lock", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as another process would
    with (
        closing(sqlite3.connect(path, timeout=0, factory=SharedConnection)) as other,
        pytest.raises(sqlite3.OperationalError, match="fuser"),
    ):
        other.execute("UPDATE totals SET value = 2")
    os.close(lock)


async def test_a_lock_of_another_connection_is_explained(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that does not take turns makes a publish fail."""
    monkeypatch.setattr("mqcore_sql.sqlite._WAIT", 0.1)
    queue = Queue("jobs", int)
    async with Broker.connect(f"sqlite:///{path}", settings=Settings(), queues=[queue]) as broker:
        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE totals (value INTEGER)")
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Blocked, match=r"database is locked.*mqcore_sql\.share"):
                await broker.publish(queue, 1)


def test_a_connection_that_does_not_wait_leaves_no_turn_to_nobody(
    connection: SharedConnection, path: Path
) -> None:
    for _ in range(100):
        connection.execute("UPDATE totals SET value = 1")
        before = set(threading.enumerate())
        with closing(sqlite3.connect(path, timeout=0, factory=SharedConnection)) as other:
            with pytest.raises(sqlite3.OperationalError, match="has held"):
                other.execute("UPDATE totals SET value = 2")
            waiting = set(threading.enumerate()) - before
            connection.commit()
            for thread in waiting:
                thread.join()
            assert is_free(path)
            other.execute("UPDATE totals SET value = 3")
            other.commit()
    assert is_free(path)


def test_a_database_in_memory_cannot_be_shared() -> None:
    with pytest.raises(ConfigurationError, match="memory"):
        sqlite3.connect(":memory:", factory=SharedConnection)


# SQLAlchemy


@pytest.fixture
def sqlalchemy() -> Any:
    return pytest.importorskip("sqlalchemy", reason="pip install 'mqcore[sqlalchemy]'")


def test_an_engine_takes_turns_also_with_what_it_had_connected(
    sqlalchemy: Any, backend: SqliteBackend, path: Path
) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with engine.connect() as session:
        session.execute(sqlalchemy.text("SELECT 1"))
    assert share(share(engine)) is engine
    with engine.connect() as session:
        session.execute(sqlalchemy.text("SELECT value FROM totals"))
        assert is_free(path)
        session.execute(sqlalchemy.text("UPDATE totals SET value = 4"))
        assert not is_free(path)
        session.commit()
        assert is_free(path)
        session.execute(sqlalchemy.text("UPDATE totals SET value = 5"))
    assert is_free(path)  # the pool has rolled back
    assert total(path) == 4
    engine.dispose()


async def test_an_async_engine_takes_turns(
    sqlalchemy: Any, backend: SqliteBackend, path: Path
) -> None:
    pytest.importorskip("aiosqlite", reason="pip install aiosqlite")
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - an extra

    engine = share(create_async_engine(f"sqlite+aiosqlite:///{path}"))
    async with engine.begin() as session:
        await session.execute(sqlalchemy.text("UPDATE totals SET value = 4"))
        assert not is_free(path)
    assert is_free(path)
    assert total(path) == 4
    await engine.dispose()


def test_an_engine_on_another_database_is_refused(sqlalchemy: Any) -> None:
    with pytest.raises(ConfigurationError, match="sqlite://"):
        share(sqlalchemy.create_engine("sqlite://"))
    pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
    with pytest.raises(ConfigurationError, match=r"postgresql\+psycopg") as caught:
        share(sqlalchemy.create_engine("postgresql+psycopg://a:secret-word@localhost/b"))
    assert "secret-word" not in str(caught.value)


def test_an_engine_whose_connections_have_a_class_of_their_own_is_refused(
    sqlalchemy: Any, backend: SqliteBackend, path: Path
) -> None:
    class Own(sqlite3.Connection):
        pass

    engine = share(sqlalchemy.create_engine(f"sqlite:///{path}", connect_args={"factory": Own}))
    with pytest.raises(ConfigurationError, match="SharedConnection"):
        engine.connect()
