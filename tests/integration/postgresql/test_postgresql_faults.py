"""PostgreSQL's faults, made with real sessions: deadlocks, cancelled statements, ended sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
from support.waiting import eventually

from mqcore.contract.brokers import Server
from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    Delivery,
    ErrorKind,
    Failed,
    QueueSpec,
    Stored,
    Unknown,
)

from .conftest import out, waits_for_a_lock

psycopg = pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")

Open = Callable[..., Any]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def backend(opened: Open) -> Any:
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs")])
    return backend


@pytest.fixture
def other(server: Server) -> Any:
    """A second session of the superuser, which a test lets wait in a thread."""
    with closing(psycopg.connect(server.url, autocommit=True)) as session:
        yield session


async def pid_of(backend: Any) -> int:
    """Return the process of the server that serves this instance."""
    pid: int = await backend.run(lambda driver: driver._db._opened.info.backend_pid)
    return pid


async def claimed(backend: Any, number: int) -> tuple[Any, list[Delivery]]:
    """Publish and claim so many messages; return the consumer and what it holds."""
    batch = [out(f"{index}") for index in range(number)]
    assert await backend.publish(batch, timeout=5) == [STORED] * number
    consumer = await backend.subscribe("jobs", prefetch=number + 5, lease=60)
    return consumer, list(await consumer.receive(number, 5))


def ids(admin: Any, prefix: str) -> list[int]:
    return [number for (number,) in admin.execute(f"SELECT id FROM {prefix}_messages ORDER BY id")]


def number_of(admin: Any, prefix: str, statement: str) -> int:
    ((number,),) = admin.execute(statement.replace("MESSAGES", f"{prefix}_messages")).fetchall()
    return int(number)


# Deadlocks and serialization failures


@asynccontextmanager
async def as_the_victim(admin: Any, other: Any, backend: Any, lock: str) -> AsyncIterator[None]:
    """Make what waits inside a deadlock with `other`, which runs `lock`; the instance loses."""
    pid = await pid_of(backend)
    await backend.run(lambda driver: driver._db._opened.execute("SET deadlock_timeout = 1000"))
    other.execute("SET deadlock_timeout = '60s'")
    waiting = asyncio.create_task(eventually(waits_for_a_lock(admin, pid), 20))
    crossing = asyncio.create_task(_crossing(waiting, other, lock))
    yield
    await crossing


async def _crossing(waiting: Awaitable[None], other: Any, lock: str) -> None:
    await waiting
    await asyncio.to_thread(other.execute, lock)
    other.execute("ROLLBACK")


async def test_a_settlement_that_loses_a_deadlock_has_failed_and_holds_its_leases(
    backend: Any, admin: Any, other: Any, prefix: str
) -> None:
    consumer, deliveries = await claimed(backend, 2)
    first, second = ids(admin, prefix)
    lock = f"SELECT 1 FROM {prefix}_messages WHERE id = {{}} FOR UPDATE"
    other.execute("BEGIN")
    other.execute(lock.format(second))
    acks = [Ack(delivery.receipt) for delivery in deliveries]
    async with as_the_victim(admin, other, backend, lock.format(first)):
        outcomes = await consumer.settle(acks, timeout=30)
    for outcome in outcomes:
        assert isinstance(outcome, Failed)
        assert outcome.kind is ErrorKind.TRANSIENT
        assert "deadlock" in outcome.text
    assert await consumer.settle(acks, timeout=5) == [DONE, DONE]


async def test_a_publish_that_loses_a_deadlock_has_stored_nothing(
    backend: Any, admin: Any, other: Any, prefix: str
) -> None:
    await backend.publish([out("z")], timeout=5)  # the table of names that takes new ones
    ((queue, table),) = admin.execute(
        f"SELECT queue, tableoid::regclass::text FROM (SELECT queue, tableoid FROM {prefix}_names0 "
        f"UNION ALL SELECT queue, tableoid FROM {prefix}_names1) AS names"
    ).fetchall()
    names = await backend.run(lambda driver: [name_of(out(name)) for name in "ab"])
    low, high = sorted(names)
    insert = f"INSERT INTO {table} (queue, name, number, at) VALUES ({queue}, '\\x{{}}', 0, 0)"
    other.execute("BEGIN")
    other.execute(insert.format(high.hex()))
    async with as_the_victim(admin, other, backend, insert.format(low.hex())):
        outcomes = await backend.publish([out("a"), out("b")], timeout=30)
    for outcome in outcomes:
        assert isinstance(outcome, Failed)
        assert (outcome.kind, "deadlock" in outcome.text) == (ErrorKind.TRANSIENT, True)
    assert await backend.publish([out("a"), out("b")], timeout=5) == [STORED, STORED]


def name_of(outgoing: Any) -> bytes:
    from mqcore_sql.records import name_of  # noqa: PLC0415 - it needs psycopg

    return name_of(outgoing.message)


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
async def test_a_role_with_a_strict_isolation_level_claims_without_conflicts(
    server: Server, opened: Open, admin: Any, other: Any, prefix: str, level: str
) -> None:
    role = f"strict_{prefix}"
    await (await opened()).close()  # the tables belong to another role
    admin.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'strict'")
    admin.execute(f"ALTER ROLE {role} SET default_transaction_isolation = '{level}'")
    try:
        url = f"postgresql://{role}:strict@{server.host}:{server.port}/postgres"
        backend = await opened(url=url)
        await backend.declare([QueueSpec(name="jobs")])
        _, deliveries = await claimed(backend, 3)
        first = ids(admin, prefix)[0]
        other.execute("BEGIN")
        other.execute(f"UPDATE {prefix}_messages SET noted = 1 WHERE id = {first}")
        renewing = asyncio.create_task(backend.renew("jobs", [deliveries[0].receipt], 60))
        await eventually(waits_for_a_lock(admin, await pid_of(backend)), 20)
        other.execute("COMMIT")
        assert await renewing == [True]
        ((found,),) = await backend.run(
            lambda driver: driver._db.query("SELECT current_setting('transaction_isolation')")
        )
        assert found == "read committed"
        await backend.close()
    finally:
        admin.execute(f"DROP ROLE {role}")


async def test_a_serialization_failure_leaves_everything_as_it_was(
    backend: Any, admin: Any, other: Any, prefix: str
) -> None:
    consumer, deliveries = await claimed(backend, 1)
    (first,) = ids(admin, prefix)
    other.execute("BEGIN")
    other.execute(f"UPDATE {prefix}_messages SET noted = 1 WHERE id = {first}")

    # a snapshot from before the other session's commit, as a stricter level would have
    def strict(driver: Any) -> Any:
        with driver._db.transaction():
            driver._db.change("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            return driver._db.change(f"UPDATE {prefix}_messages SET started = 1")

    failing = asyncio.create_task(backend.run(strict))
    await eventually(waits_for_a_lock(admin, await pid_of(backend)), 20)
    other.execute("COMMIT")
    with pytest.raises(psycopg.errors.SerializationFailure) as caught:
        await failing
    assert backend.classify(caught.value) is ErrorKind.TRANSIENT
    assert number_of(admin, prefix, "SELECT sum(started) FROM MESSAGES") == 0
    assert await consumer.settle([Ack(deliveries[0].receipt)], timeout=5) == [DONE]


# Statements and sessions that the server ends, in the middle of each call


async def end_session(backend: Any, admin: Any) -> None:
    admin.execute("SELECT pg_terminate_backend(%s)", [await pid_of(backend)])


class Holding:
    """A lock of another session that every statement on the messages waits for."""

    def __init__(self, admin: Any, other: Any, prefix: str) -> None:
        self.admin, self.other, self.prefix = admin, other, prefix

    async def during(self, call: Awaitable[Any], pid: int, end: str) -> Any:
        """Begin the call, run the statement `end` while it waits for the lock; return its end."""
        self.other.execute("BEGIN")
        self.other.execute(f"LOCK TABLE {self.prefix}_messages IN ACCESS EXCLUSIVE MODE")
        running = asyncio.ensure_future(call)
        await eventually(waits_for_a_lock(self.admin, pid), 20)
        self.admin.execute(end, [pid])
        (result,) = await asyncio.gather(running, return_exceptions=True)
        self.other.execute("ROLLBACK")
        return result


@pytest.fixture
def holding(admin: Any, other: Any, prefix: str) -> Holding:
    return Holding(admin, other, prefix)


ENDS = {
    "cancelled": "SELECT pg_cancel_backend(%s)",
    "terminated": "SELECT pg_terminate_backend(%s)",
}


@pytest.mark.parametrize("end", list(ENDS))
async def test_a_publish_that_is_ended_in_the_middle_has_stored_nothing(
    opened: Open, backend: Any, admin: Any, holding: Holding, prefix: str, end: str
) -> None:
    publishing = backend.publish([out("a"), out("b")], timeout=30)
    outcomes = await holding.during(publishing, await pid_of(backend), ENDS[end])
    for outcome in outcomes:
        assert isinstance(outcome, Failed)
        assert outcome.kind is ErrorKind.TRANSIENT
    assert ids(admin, prefix) == []
    again = backend if end == "cancelled" else await opened()
    assert await again.publish([out("a"), out("b")], timeout=5) == [STORED, STORED]


@pytest.mark.parametrize("end", list(ENDS))
async def test_a_claim_that_is_ended_in_the_middle_leases_nothing(
    opened: Open, backend: Any, admin: Any, holding: Holding, prefix: str, end: str
) -> None:
    await backend.publish([out("a")], timeout=5)
    consumer = await backend.subscribe("jobs", prefetch=5, lease=60)
    error = await holding.during(consumer.receive(5, 30), await pid_of(backend), ENDS[end])
    assert isinstance(error, Exception)
    assert backend.classify(error) is ErrorKind.TRANSIENT
    assert number_of(admin, prefix, "SELECT count(*) FROM MESSAGES WHERE token IS NULL") == 1

    if end == "terminated":
        consumer = await (await opened()).subscribe("jobs", prefetch=5, lease=60)
    (delivery,) = await consumer.receive(5, 5)
    assert (delivery.message.id, delivery.redelivered) == ("a", False)


@pytest.mark.parametrize("end", list(ENDS))
async def test_a_settlement_that_is_ended_in_the_middle_holds_its_lease(
    opened: Open, backend: Any, admin: Any, holding: Holding, prefix: str, end: str
) -> None:
    consumer, (delivery,) = await claimed(backend, 1)
    settling = consumer.settle([Ack(delivery.receipt)], timeout=30)
    (outcome,) = await holding.during(settling, await pid_of(backend), ENDS[end])
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.TRANSIENT
    assert number_of(admin, prefix, "SELECT count(*) FROM MESSAGES WHERE token IS NOT NULL") == 1

    if end == "terminated":
        consumer = await (await opened()).subscribe("jobs", prefetch=5, lease=60)
    assert await consumer.settle([Ack(delivery.receipt)], timeout=5) == [DONE]


async def test_a_commit_without_an_answer_is_unknown_and_its_id_is_stored_once(
    opened: Open, backend: Any, admin: Any, other: Any, prefix: str
) -> None:
    key = abs(hash(prefix)) % 2**31
    # a trigger that runs inside COMMIT, and waits there
    admin.execute(
        f"CREATE FUNCTION {prefix}_wait() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN PERFORM pg_advisory_xact_lock_shared({key}); RETURN NULL; END $$"
    )
    admin.execute(
        f"CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON {prefix}_messages DEFERRABLE "
        f"INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {prefix}_wait()"
    )
    try:
        pid = await pid_of(backend)
        other.execute(f"SELECT pg_advisory_lock({key})")
        publishing = asyncio.create_task(backend.publish([out("a")], timeout=30))
        await eventually(waits_for_a_lock(admin, pid), 20)
        admin.execute("SELECT pg_terminate_backend(%s)", [pid])
        (outcome,) = await publishing
        assert isinstance(outcome, Unknown)
        assert "not confirmed" in outcome.text
        other.execute(f"SELECT pg_advisory_unlock({key})")

        again = await opened()
        (outcome,) = await again.publish([out("a")], timeout=5)
        assert isinstance(outcome, Stored)
        assert len(ids(admin, prefix)) == 1
    finally:
        other.execute("SELECT pg_advisory_unlock_all()")
        admin.execute(f"DROP FUNCTION {prefix}_wait() CASCADE")


@pytest.mark.parametrize(
    "setting", ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
)
async def test_the_servers_time_limits_are_failures_that_may_pass(
    opened: Open, admin: Any, other: Any, prefix: str, setting: str
) -> None:
    lost: list[Exception] = []
    backend = await opened(lost)
    await backend.declare([QueueSpec(name="jobs")])
    await backend.run(lambda driver: driver._db._opened.execute(f"SET {setting} = '100ms'"))
    if setting.startswith("idle"):

        def idle(driver: Any) -> None:
            with driver._db.transaction():
                pid = driver._db._opened.info.backend_pid
                while admin.execute(_ALIVE, [pid]).fetchone():
                    pass
                driver._db.query("SELECT 1")

        with pytest.raises(psycopg.Error) as caught:
            await backend.run(idle)
        assert backend.classify(caught.value) is ErrorKind.TRANSIENT
        await eventually(lambda: lost)
        return

    other.execute("BEGIN")
    other.execute(f"LOCK TABLE {prefix}_messages IN ACCESS EXCLUSIVE MODE")
    (outcome,) = await backend.publish([out()], timeout=30)
    other.execute("ROLLBACK")
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.TRANSIENT
    assert not lost
    assert await backend.publish([out()], timeout=5) == [STORED]


_ALIVE = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"


async def test_tables_that_are_dropped_while_they_are_used_are_a_failure(
    opened: Open, backend: Any, admin: Any, prefix: str
) -> None:
    for name in ("meta", "queues", "messages", "names0", "names1", "bindings"):
        admin.execute(f"DROP TABLE {prefix}_{name}")
    admin.execute(f"DROP SEQUENCE {prefix}_numbers")
    (outcome,) = await backend.publish([out()], timeout=5)
    assert isinstance(outcome, Failed)
    assert f"{prefix}_" in outcome.text
