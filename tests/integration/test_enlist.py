"""`SupportsEnlist`: messages in a transaction of the application, on the bare client libraries."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from support.enlisting import Psycopg, Sqlite

from mqcore.contract.brokers import Server
from mqcore.messages.message import new_id
from mqcore.spi import (
    STORED,
    Ack,
    Backend,
    ConfigurationError,
    ErrorKind,
    Failed,
    Message,
    Outgoing,
    QueueSpec,
    Stored,
)
from mqcore.testing import VirtualClock
from mqcore_sql import SqliteBackend, SqliteOptions

pytestmark = pytest.mark.timeout(120)


class Database:
    """A backend, and connections of an application to its database."""

    def __init__(self, backend: Any, connect: Callable[[], Any]) -> None:
        self.backend = backend
        self.connect = connect

    def transaction(self, connection: Any) -> Any:
        return (
            Sqlite(connection)
            if isinstance(connection, sqlite3.Connection)
            else Psycopg(connection)
        )

    async def ids(self, queue: str = "jobs") -> list[str]:
        return [entry.message.id for entry in await self.backend.browse(queue, 100)]


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(
    request: pytest.FixtureRequest, tmp_path: Path, broker_server: Callable[[str], Server]
) -> AsyncIterator[Database]:
    backend: Backend
    if request.param == "sqlite":
        path = tmp_path / "app.db"
        backend = SqliteBackend(f"sqlite:///{path}", SqliteOptions())
        found = Database(backend, lambda: sqlite3.connect(path, 0.2, check_same_thread=False))
    else:
        psycopg = pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
        from mqcore_sql.postgres_backend import (  # noqa: PLC0415 - it needs psycopg
            PostgresBackend,
            PostgresOptions,
        )

        url = broker_server("postgresql").url
        backend = PostgresBackend(url, PostgresOptions(prefix=f"t{new_id()[:8]}"))
        found = Database(backend, lambda: psycopg.connect(url))
    await backend.open(lambda _: None)
    await backend.declare([QueueSpec(name="jobs"), QueueSpec(name="letters", role="dead_letter")])
    yield found
    await backend.close()


@pytest.fixture
def connection(database: Database) -> Iterator[Any]:
    with closing(database.connect()) as connection:
        yield connection


def publish(id: str = "one", **options: Any) -> Outgoing:
    to = options.pop("to", "jobs")
    message = Message(id=id, body=b"\x00body\xff", headers={"name": "a:b 'c' %s"}, priority=7)
    return Outgoing(to, message, options.get("delay", 0.0), options.get("ttl"))


async def test_a_message_is_there_after_the_commit_and_not_before(
    database: Database, connection: Any
) -> None:
    transaction = database.transaction(connection)
    assert database.backend.foreign(transaction) == ""
    assert database.backend.enlist(transaction, [publish()]) == [STORED]
    (counts,) = await database.backend.count(["jobs"])
    assert counts.total == 0
    connection.commit()

    subscription = await database.backend.subscribe("jobs", prefetch=1, lease=30.0)
    (delivery,) = await subscription.receive(1, 5.0)
    message = delivery.message
    assert (message.id, message.body, message.priority) == ("one", b"\x00body\xff", 7)
    assert dict(message.headers) == {"name": "a:b 'c' %s"}
    assert (delivery.redelivered, delivery.takeovers) == (False, 0)
    await subscription.settle([Ack(delivery.receipt)], timeout=5.0)


async def test_nothing_is_left_of_a_rollback(database: Database, connection: Any) -> None:
    transaction = database.transaction(connection)
    assert database.backend.enlist(transaction, [publish()]) == [STORED]
    connection.rollback()
    assert await database.ids() == []

    # nor is its name known: it can be published now
    assert database.backend.enlist(transaction, [publish()]) == [STORED]
    connection.commit()
    assert await database.ids() == ["one"]


async def test_a_savepoint_takes_its_messages_with_it(database: Database, connection: Any) -> None:
    transaction = database.transaction(connection)
    database.backend.enlist(transaction, [publish("kept")])
    connection.execute("SAVEPOINT part")
    database.backend.enlist(transaction, [publish("dropped")])
    connection.execute("ROLLBACK TO part")
    connection.commit()
    assert await database.ids() == ["kept"]


async def test_a_known_id_is_a_duplicate_here_too(database: Database, connection: Any) -> None:
    transaction = database.transaction(connection)
    await database.backend.publish([publish("old")], timeout=5.0)
    outcomes = database.backend.enlist(
        transaction, [publish("new"), publish("old"), publish("new")]
    )
    assert outcomes == [STORED, Stored(duplicate=True), Stored(duplicate=True)]
    connection.commit()
    (again,) = await database.backend.publish([publish("new")], timeout=5.0)
    assert again == Stored(duplicate=True)
    assert sorted(await database.ids()) == ["new", "old"]


async def test_delay_and_ttl_count_from_the_publish(database: Database, connection: Any) -> None:
    batch = [publish("late", delay=60.0), publish("short", ttl=60.0), publish("plain")]
    database.backend.enlist(database.transaction(connection), batch)
    connection.commit()
    entries = {entry.message.id: entry for entry in await database.backend.browse("jobs", 10)}
    assert 50 < entries["late"].due_in <= 60
    assert [entries[id].state for id in ("late", "short", "plain")] == ["delayed", "ready", "ready"]
    assert entries["plain"].message.expires_at is None

    subscription = await database.backend.subscribe("jobs", prefetch=5, lease=30.0)
    deliveries = {each.message.id: each for each in await subscription.receive(5, 5.0)}
    assert set(deliveries) == {"short", "plain"}
    assert 50 < (deliveries["short"].expires_in or 0) <= 60


async def test_one_refusal_refuses_the_batch_and_leaves_the_transaction_usable(
    database: Database, connection: Any
) -> None:
    transaction = database.transaction(connection)
    first, second = database.backend.enlist(transaction, [publish("a"), publish("b", to="nowhere")])
    assert isinstance(first, Failed)
    assert isinstance(second, Failed)
    assert second.kind is ErrorKind.NOT_FOUND
    assert "'nowhere'" in second.text
    database.backend.enlist(transaction, [publish("c")])
    connection.commit()
    assert await database.ids() == ["c"]


async def test_a_bounded_queue_takes_nothing_inside_a_transaction(
    database: Database, connection: Any
) -> None:
    await database.backend.declare([QueueSpec(name="small", max_length=5)])
    transaction = database.transaction(connection)
    (outcome,) = database.backend.enlist(transaction, [publish(to="small")])
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.PERMANENT
    assert "max_length=5" in outcome.text


async def test_newer_tables_are_refused(database: Database, connection: Any) -> None:
    transaction = database.transaction(connection)
    meta = f"{database.backend.options.prefix}_meta"
    connection.execute(f"UPDATE {meta} SET value = 99 WHERE key = 'schema'")  # noqa: S608 - a name of ours
    with pytest.raises(ConfigurationError, match=r"version 99.*Upgrade mqcore"):
        database.backend.foreign(transaction)
    connection.rollback()


async def test_a_transaction_of_another_kind_of_database_is_foreign(
    database: Database, connection: Any
) -> None:
    transaction = database.transaction(connection)
    transaction.dialect = "mysql"
    assert "mysql" in database.backend.foreign(transaction)


async def test_a_connection_that_is_lost_does_not_matter(
    database: Database, connection: Any
) -> None:
    await database.backend.close()
    database.backend.enlist(database.transaction(connection), [publish()])
    connection.commit()
    await database.backend.open(lambda _: None)
    assert await database.ids() == ["one"]


class TestSqlite:
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[SqliteBackend]:
        backend = SqliteBackend(f"sqlite:///{tmp_path / 'app.db'}", SqliteOptions())
        await backend.open(lambda _: None)
        await backend.declare([QueueSpec(name="jobs")])
        yield backend
        await backend.close()

    @pytest.mark.parametrize("with_tables", [False, True])
    async def test_another_file_is_foreign(
        self, backend: SqliteBackend, tmp_path: Path, *, with_tables: bool
    ) -> None:
        if with_tables:
            other = SqliteBackend(f"sqlite:///{tmp_path / 'other.db'}", SqliteOptions())
            await other.open(lambda _: None)
            await other.close()
        with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
            why = backend.foreign(Sqlite(connection))
        assert ("those of another" if with_tables else "mqcore sql upgrade") in why

    async def test_a_copy_of_the_file_is_foreign(
        self, backend: SqliteBackend, tmp_path: Path
    ) -> None:
        with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(tmp_path / "app.db", tmp_path / "copy.db")
        with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
            assert "another" in backend.foreign(Sqlite(connection))

    async def test_a_link_to_the_file_is_the_same_database(
        self, backend: SqliteBackend, tmp_path: Path
    ) -> None:
        (tmp_path / "link.db").symlink_to(tmp_path / "app.db")
        with closing(sqlite3.connect(tmp_path / "link.db")) as connection:
            assert backend.foreign(Sqlite(connection)) == ""

    async def test_a_statement_that_fails_leaves_nothing_of_its_batch(
        self, backend: SqliteBackend, tmp_path: Path
    ) -> None:
        with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
            connection.execute(
                "CREATE TEMP TRIGGER refuse BEFORE INSERT ON mq_messages "
                "WHEN instr(NEW.meta, 'bad') BEGIN SELECT RAISE(ABORT, 'not this one'); END"
            )
            with pytest.raises(sqlite3.IntegrityError, match="not this one"):
                backend.enlist(Sqlite(connection), [publish("good"), publish("bad")])
            connection.commit()
        assert list(await backend.browse("jobs", 10)) == []

    async def test_a_full_disk_refuses(self, tmp_path: Path) -> None:
        options = SqliteOptions(reserve=1 << 60)
        backend = SqliteBackend(f"sqlite:///{tmp_path / 'app.db'}", options)
        await backend.open(lambda _: None)
        with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
            (outcome,) = backend.enlist(Sqlite(connection), [publish()])
        assert isinstance(outcome, Failed)
        assert outcome.kind is ErrorKind.FULL
        await backend.close()

    async def test_a_clock_that_was_set_back_does_not_delay(self, tmp_path: Path) -> None:
        clock = VirtualClock()
        backend = SqliteBackend(f"sqlite:///{tmp_path / 'app.db'}", SqliteOptions(clock=clock))
        await backend.open(lambda _: None)
        await backend.declare([QueueSpec(name="jobs")])
        with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
            connection.execute("UPDATE mq_meta SET value = value + 3600000000 WHERE key = 'time'")
            connection.commit()
            backend.enlist(Sqlite(connection), [publish()])
            connection.commit()
        subscription = await backend.subscribe("jobs", prefetch=1, lease=30.0)
        assert len(await subscription.receive(1, 0.0)) == 1
        await backend.close()


class TestPostgres:
    @pytest.fixture
    def server(self, broker_server: Callable[[str], Server]) -> Server:
        pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
        return broker_server("postgresql")

    async def test_a_missing_table_does_not_fail_the_transaction(self, server: Server) -> None:
        import psycopg  # noqa: PLC0415 - an extra

        from mqcore_sql.postgres_backend import (  # noqa: PLC0415 - as above
            PostgresBackend,
            PostgresOptions,
        )

        backend = PostgresBackend(server.url, PostgresOptions(prefix=f"t{new_id()[:8]}"))
        await backend.open(lambda _: None)
        with closing(psycopg.connect(server.url)) as connection:
            for table in ("meta", "queues", "messages", "names0", "names1", "bindings"):
                connection.execute(f"DROP TABLE {backend.options.prefix}_{table}")  # type: ignore[attr-defined]
            assert "mqcore sql upgrade" in backend.foreign(Psycopg(connection))
            assert connection.execute("SELECT 1").fetchone() == (1,)
            connection.rollback()
        await backend.close()

    async def test_an_open_transaction_holds_no_other_publisher_back(self, server: Server) -> None:
        import psycopg  # noqa: PLC0415 - an extra

        from mqcore_sql.postgres_backend import (  # noqa: PLC0415 - as above
            PostgresBackend,
            PostgresOptions,
        )

        options = PostgresOptions(prefix=f"t{new_id()[:8]}", dedup_window=0.2)
        backend = PostgresBackend(server.url, options)
        await backend.open(lambda _: None)
        await backend.declare([QueueSpec(name="jobs")])
        with closing(psycopg.connect(server.url)) as connection:
            backend.enlist(Psycopg(connection), [publish("open")])
            # several times the window: the tables of names are emptied meanwhile
            for number in range(8):
                outcomes = await backend.publish([publish(f"other-{number}")], timeout=5.0)
                assert outcomes == [STORED]
                connection.execute("SELECT pg_sleep(0.1)")
            connection.commit()
        assert len(await backend.browse("jobs", 20)) == 9
        with suppress(Exception):
            await backend.close()
