"""PostgreSQL's own corners: bad input, killed sessions, several writers, tables and vacuum."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from support.postgresql import plugins

from mqcore.broker import Broker
from mqcore.contract.brokers import Server
from mqcore.errors import BrokerError
from mqcore.messages.message import new_id
from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    Ack,
    Capability,
    ConfigurationError,
    ConnectionLost,
    Durability,
    ErrorKind,
    Failed,
    Message,
    Outgoing,
    QueueSpec,
    TopologyMismatch,
)

psycopg = pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
from mqcore_sql.options import PostgresOptions  # noqa: E402 - they need psycopg
from mqcore_sql.postgres_backend import PostgresBackend  # noqa: E402 - as above

Open = Callable[..., Any]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server(broker_server: Callable[[str], Server]) -> Server:
    return broker_server("postgresql")


@pytest.fixture
def admin(server: Server) -> Iterator[Any]:
    """A session of the superuser."""
    with closing(psycopg.connect(server.url, autocommit=True)) as session:
        yield session


@pytest.fixture
def prefix() -> str:
    return f"t{new_id()[:8]}"


@pytest.fixture
async def opened(server: Server, prefix: str, admin: Any) -> AsyncIterator[Open]:
    """A function that opens an instance; all are closed at the end, and their tables dropped."""
    backends: list[PostgresBackend] = []

    async def open_one(
        lost: list[Exception] | None = None, url: str = "", **options: Any
    ) -> PostgresBackend:
        backend = PostgresBackend(url or server.url, PostgresOptions(prefix=prefix, **options))
        backends.append(backend)
        await backend.open((lost if lost is not None else []).append)
        return backend

    yield open_one
    for backend in backends:
        await backend.close()
    for name in ("meta", "queues", "messages", "names0", "names1", "bindings"):
        admin.execute(f"DROP TABLE IF EXISTS {prefix}_{name}")
    admin.execute(f"DROP SEQUENCE IF EXISTS {prefix}_numbers")


def out(name: str = "a", queue: str = "jobs", **fields: Any) -> Outgoing:
    return Outgoing(queue, Message(id=name, body=b"body"), **fields)


def at(server: Server, user: str = "postgres:postgres", database: str = "postgres") -> str:
    return f"postgresql://{user}@{server.host}:{server.port}/{database}"


# What cannot be connected to


async def refused(url: str) -> tuple[ErrorKind, str]:
    """Return the kind and the text of the error of `open`."""
    backend = PostgresBackend(url, PostgresOptions())
    with pytest.raises(psycopg.OperationalError) as caught:
        await backend.open(lambda _: None)
    await backend.close()
    return backend.classify(caught.value), str(caught.value)


async def test_a_missing_database_is_named_and_not_tried_again(server: Server) -> None:
    kind, text = await refused(at(server, database="nowhere"))
    assert kind is ErrorKind.PERMANENT
    assert '"nowhere" does not exist' in text


async def test_a_missing_role_is_denied(server: Server) -> None:
    kind, text = await refused(at(server, user="stranger:secret-word"))
    assert kind is ErrorKind.DENIED
    assert "secret-word" not in text


async def test_a_wrong_password_is_denied_and_never_shown(server: Server, admin: Any) -> None:
    role = f"guarded_{new_id()[:8]}"
    admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'right'")
    ((place,),) = admin.execute("SHOW hba_file").fetchall()
    ((rules,),) = admin.execute("SELECT pg_read_file(%s)", [place]).fetchall()
    guarded = f"host all {role} all scram-sha-256\n{rules}"
    try:
        write(admin, place, guarded)
        make = lambda: PostgresBackend(at(server, f"{role}:wrong-word"), PostgresOptions())  # noqa: E731 - short
        with pytest.raises(BrokerError) as caught:
            await Broker(make_backend=make).open()
        assert "password authentication failed" in str(caught.value)
        assert "wrong-word" not in str(caught.value)
        cause = caught.value.__cause__
        assert isinstance(cause, Exception)
        assert make().classify(cause) is ErrorKind.DENIED
    finally:
        write(admin, place, rules)
        admin.execute(f"DROP ROLE {role}")


def write(admin: Any, place: str, text: str) -> None:
    """Write the server's rules of access, and wait until it uses them."""
    lines = text.splitlines()
    copy = psycopg.sql.SQL("COPY (SELECT unnest({}::text[])) TO {}")
    admin.execute(copy.format(psycopg.sql.Literal(lines), psycopg.sql.Literal(place)))
    admin.execute("SELECT pg_reload_conf()")


async def test_a_role_without_rights_is_denied(server: Server, admin: Any) -> None:
    role = f"guest_{new_id()[:8]}"
    admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'guest'")
    try:
        options = PostgresOptions(schema_name="pg_catalog", prefix=role[:12])
        backend = PostgresBackend(at(server, f"{role}:guest"), options)
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            await backend.open(lambda _: None)
        assert backend.classify(caught.value) is ErrorKind.DENIED
        await backend.close()
    finally:
        admin.execute(f"DROP ROLE {role}")


# Tables


async def test_tables_of_another_application_are_left_alone(
    opened: Open, admin: Any, prefix: str
) -> None:
    admin.execute(f"CREATE TABLE {prefix}_messages (subject text)")
    with pytest.raises(ConfigurationError, match=rf"{prefix}_messages.*prefix"):
        await opened()


async def test_tables_that_are_newer_than_the_code_are_refused(
    opened: Open, admin: Any, prefix: str
) -> None:
    await (await opened()).close()
    newer = psycopg.sql.SQL("UPDATE {} SET value = 99 WHERE key = 'schema'")
    admin.execute(newer.format(psycopg.sql.Identifier(f"{prefix}_meta")))
    with pytest.raises(ConfigurationError, match=r"version 99.*Upgrade mqcore"):
        await opened()


async def test_without_migrate_missing_tables_are_refused(opened: Open) -> None:
    with pytest.raises(ConfigurationError, match="mqcore sql upgrade"):
        await opened(migrate=False)


async def test_many_that_connect_at_once_make_the_tables_once(opened: Open) -> None:
    backends = await asyncio.gather(*(opened() for _ in range(8)))
    await asyncio.gather(
        *(backend.declare([QueueSpec(name="jobs", ttl=60.0)]) for backend in backends)
    )
    assert await backends[0].publish([out()], timeout=5) == [STORED]


async def test_a_schema_of_its_own_is_made(opened: Open, admin: Any, prefix: str) -> None:
    schema = "user"  # a word that has to be quoted
    try:
        backend = await opened(schema_name=schema)
        await backend.declare([QueueSpec(name="jobs")])
        assert await backend.publish([out()], timeout=5) == [STORED]
        count = psycopg.sql.SQL("SELECT count(*) FROM {}")
        table = psycopg.sql.Identifier(schema, f"{prefix}_messages")
        ((number,),) = admin.execute(count.format(table)).fetchall()
        assert number == 1
        await backend.close()
    finally:
        admin.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


async def test_of_many_who_declare_at_once_one_makes_the_queue(opened: Open) -> None:
    backends = await asyncio.gather(*(opened() for _ in range(6)))
    outcomes = await asyncio.gather(
        *(
            backend.declare([QueueSpec(name="jobs", ttl=60.0 + number % 2)])
            for number, backend in enumerate(backends)
        ),
        return_exceptions=True,
    )
    assert [type(error) for error in outcomes if error is not None] == [TopologyMismatch] * 3


async def test_the_durability_is_that_of_the_servers_settings(
    server: Server, admin: Any, opened: Open, prefix: str
) -> None:
    role = f"quick_{new_id()[:8]}"
    await (await opened()).close()
    admin.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'quick'")
    admin.execute(f"ALTER ROLE {role} SET synchronous_commit = off")
    try:
        options = PostgresOptions(prefix=prefix)
        backend = PostgresBackend(at(server, f"{role}:quick"), options)
        capabilities = await backend.open(lambda _: None)
        await backend.close()
    finally:
        admin.execute(f"DROP ROLE {role}")
    assert capabilities.durability is Durability.PROCESS
    assert "synchronous_commit" in str(capabilities[Capability.DURABLE].limits["warning"])


# Sessions that end


async def pids(admin: Any, backend: Any) -> list[int]:
    """Return the process of the server that serves this instance."""
    pid: int = await backend.run(lambda driver: driver._db._opened.info.backend_pid)
    return [pid]


async def test_a_killed_session_is_a_loss_and_no_message_is_lost(opened: Open, admin: Any) -> None:
    lost: list[Exception] = []
    backend = await opened(lost)
    await backend.declare([QueueSpec(name="jobs")])
    await backend.publish([out()], timeout=5)
    consumer = await backend.subscribe("jobs", prefetch=1, lease=30)
    (delivery,) = await consumer.receive(1, 5)

    (pid,) = await pids(admin, backend)
    admin.execute("SELECT pg_terminate_backend(%s)", [pid])
    (outcome,) = await consumer.settle([Ack(delivery.receipt)], timeout=5)
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.TRANSIENT
    async with asyncio.timeout(5):
        while not lost:  # noqa: ASYNC110 - it is reported from a thread
            await asyncio.sleep(0.01)
    with pytest.raises(ConnectionLost):
        await backend.count()

    other = await opened()
    assert await other.renew("jobs", [delivery.receipt], 30) == [True]
    again = await other.subscribe("jobs", prefetch=1, lease=30)
    assert await again.settle([Ack(delivery.receipt)], timeout=5) == [DONE]


async def test_an_idle_publisher_notices_that_its_session_ended(opened: Open, admin: Any) -> None:
    lost: list[Exception] = []
    backend = await opened(lost)
    (pid,) = await pids(admin, backend)
    admin.execute("SELECT pg_terminate_backend(%s)", [pid])
    async with asyncio.timeout(15):
        while not lost:  # noqa: ASYNC110 - it is reported from a thread
            await asyncio.sleep(0.05)


async def test_a_statement_that_the_server_cancels_is_a_failure_that_may_pass(
    opened: Open, admin: Any, prefix: str
) -> None:
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs")])
    await backend.run(
        lambda driver: driver._db.query("SELECT set_config('lock_timeout', '100', false)")
    )
    with admin.transaction():
        admin.execute(f"LOCK TABLE {prefix}_messages IN ACCESS EXCLUSIVE MODE")
        (outcome,) = await backend.publish([out()], timeout=10)
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.TRANSIENT
    assert await backend.publish([out()], timeout=5) == [STORED]


# Several at once


async def test_writers_and_readers_in_any_order_lose_nothing_and_do_nothing_twice(
    opened: Open,
) -> None:
    backends = [await opened() for _ in range(6)]
    await backends[0].declare([QueueSpec(name="jobs")])
    handled: Counter[str] = Counter()

    async def publish(backend: Any, number: int) -> None:
        for first in range(0, 200, 20):
            batch = [out(f"{number}-{first + index}") for index in range(20)]
            assert set(await backend.publish(batch, timeout=30)) == {STORED}

    async def consume(backend: Any) -> None:
        consumer = await backend.subscribe("jobs", prefetch=15, lease=60)
        while handled.total() < 600:
            deliveries = await consumer.receive(15, 0.3)
            # not in the order of the claim: two batches must not wait for each other
            acks = [Ack(delivery.receipt) for delivery in reversed(deliveries)]
            assert set(await consumer.settle(acks, timeout=30)) <= {DONE}
            handled.update(delivery.message.id for delivery in deliveries)
        await consumer.close()

    async with asyncio.timeout(90):
        await asyncio.gather(
            *(publish(backend, number) for number, backend in enumerate(backends[:3])),
            *(consume(backend) for backend in backends[3:]),
        )
    assert len(handled) == handled.total() == 600


async def test_one_id_from_many_publishers_is_one_copy(opened: Open) -> None:
    backends = [await opened() for _ in range(5)]
    await backends[0].declare([QueueSpec(name="jobs")])
    names = [f"{number}" for number in range(50)]
    outcomes = await asyncio.gather(
        *(
            backend.publish([out(name) for name in names[:: 1 - 2 * (number % 2)]], timeout=30)
            for number, backend in enumerate(backends)
        )
    )
    stored = sum(outcome == STORED for found in outcomes for outcome in found)
    assert stored == 50
    assert (await backends[0].count(["jobs"]))[0].ready == 50


async def test_a_bound_is_exact_for_many_publishers(opened: Open) -> None:
    backends = [await opened() for _ in range(5)]
    await backends[0].declare([QueueSpec(name="jobs", max_length=30)])
    outcomes = await asyncio.gather(
        *(
            backend.publish([out(f"{number}-{index}") for index in range(20)], timeout=30)
            for number, backend in enumerate(backends)
        )
    )
    assert sum(outcome == STORED for found in outcomes for outcome in found) == 30


async def test_another_process_is_told_soon(opened: Open) -> None:
    publisher, other = await opened(), await opened()
    await publisher.declare([QueueSpec(name="jobs")])
    consumer = await other.subscribe("jobs", prefetch=1, lease=30)
    assert await consumer.receive(1, 0.2) == []
    waiting = asyncio.create_task(consumer.receive(1, 30))
    await asyncio.sleep(0.2)
    assert await publisher.publish([out()], timeout=5) == [STORED]
    assert len(await waiting) == 1


# Vacuum and doctor


async def test_dead_rows_are_removed_without_the_servers_own_vacuum(
    opened: Open, admin: Any, prefix: str
) -> None:
    backend = await opened()
    admin.execute(f"ALTER TABLE {prefix}_messages SET (autovacuum_enabled = false)")
    await backend.declare([QueueSpec(name="jobs")])
    for first in range(0, 6_000, 500):
        await backend.publish([out(f"{first + index}") for index in range(500)], timeout=30)
    assert await backend.purge("jobs") == 6_000

    async with asyncio.timeout(30):  # the server's statistics come a little later
        while not vacuums(admin, prefix):  # noqa: ASYNC110 - the server sends no news of it
            await asyncio.sleep(0.2)


def vacuums(admin: Any, prefix: str) -> int:
    found = admin.execute(
        "SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = %s", [f"{prefix}_messages"]
    )
    return int(found.fetchall()[0][0])


async def test_a_long_transaction_is_a_problem_for_doctor(
    opened: Open, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqcore_sql.postgres._PINNED", 0.0)
    backend = await opened()
    with closing(psycopg.connect(server.url)) as session:
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        session.execute("SELECT count(*) FROM pg_class")
        pid, problems = session.info.backend_pid, await backend.diagnose()
    assert any(f"process {pid} " in text for text in problems)


async def test_a_receipt_of_another_queue_is_stale(opened: Open) -> None:
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs"), QueueSpec(name="other")])
    await backend.publish([out()], timeout=5)
    jobs, other = [
        await backend.subscribe(name, prefetch=1, lease=30) for name in ("jobs", "other")
    ]
    (delivery,) = await jobs.receive(1, 5)
    assert await other.settle([Ack(delivery.receipt)], timeout=5) == [STALE]


def test_the_schemes_are_registered() -> None:
    found = plugins()
    assert found.backend_for("postgresql") is found.backend_for("postgres") is PostgresBackend
