"""PostgreSQL's own corners: bad input, killed sessions, several writers, tables and vacuum."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from support.postgresql import plugins
from support.waiting import eventually

from mqcore import Settings
from mqcore.broker import Broker
from mqcore.cli import main
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
    QueueSpec,
    TopologyMismatch,
)

from .conftest import at, out

psycopg = pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
from mqcore_sql.options import PostgresOptions  # noqa: E402 - they need psycopg
from mqcore_sql.postgres_backend import PostgresBackend  # noqa: E402 - as above

Open = Callable[..., Any]
pytestmark = pytest.mark.timeout(120)


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


async def test_a_wrong_password_is_denied_and_never_shown(
    server: Server,
    admin: Any,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(0)
    role = f"guarded_{new_id()[:8]}"
    admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'right'")
    ((place,),) = admin.execute("SHOW hba_file").fetchall()
    ((rules,),) = admin.execute("SELECT pg_read_file(%s)", [place]).fetchall()
    guarded = f"host all {role} all scram-sha-256\n{rules}"
    url = at(server, f"{role}:wrong-word")
    try:
        write(admin, place, guarded)
        broker = Broker.connect(url, plugins=plugins(), settings=Settings())
        with pytest.raises(BrokerError, match="password authentication failed") as caught:
            await broker.open()
        cause = caught.value.__cause__
        assert isinstance(cause, Exception)
        backend = PostgresBackend(url, PostgresOptions())
        assert backend.classify(cause) is ErrorKind.DENIED
        assert await asyncio.to_thread(main, ["doctor", url]) == 1
    finally:
        write(admin, place, rules)
        admin.execute(f"DROP ROLE {role}")

    texts = [
        repr(broker),
        repr(backend),
        *capsys.readouterr(),
        *traceback.format_exception(caught.value),
    ]
    texts += [repr(error) for error in (caught.value, cause)]
    texts += [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
    assert not any("wrong-word" in text for text in texts)


def write(admin: Any, place: str, text: str) -> None:
    """Write the server's rules of access, and wait until it uses them."""
    lines = text.splitlines()
    copy = psycopg.sql.SQL("COPY (SELECT unnest({}::text[])) TO {}")
    admin.execute(copy.format(psycopg.sql.Literal(lines), psycopg.sql.Literal(place)))
    admin.execute("SELECT pg_reload_conf()")


async def test_a_missing_database_ends_the_start_of_an_application(
    server: Server, admin: Any
) -> None:
    role = f"visitor_{new_id()[:8]}"
    admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'")
    url = at(server, f"{role}:secret-word", database="nowhere")
    with pytest.raises(BrokerError, match='"nowhere" does not exist') as caught:
        await Broker.connect(url, plugins=plugins(), settings=Settings()).open()
    assert "secret-word" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("rights", ["SELECT", "SELECT, INSERT"])
async def test_a_role_that_may_not_write_is_denied_and_told_what_it_lacks(
    server: Server, admin: Any, opened: Open, prefix: str, rights: str
) -> None:
    owner = await opened()
    await owner.declare([QueueSpec(name="jobs")])
    await owner.publish([out()], timeout=5)
    role = f"reader_{prefix}"
    admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'reader'")
    names = ("meta", "queues", "messages", "names0", "names1", "bindings")
    tables = ", ".join(f"{prefix}_{name}" for name in names)
    admin.execute(f"GRANT {rights} ON {tables} TO {role}")
    try:
        backend = await opened(url=at(server, f"{role}:reader"))
        (outcome,) = await backend.publish([out("b")], timeout=5)
        assert isinstance(outcome, Failed)
        assert outcome.kind is ErrorKind.DENIED
        assert "permission denied for" in outcome.text
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            await backend.subscribe("jobs", prefetch=1, lease=30)
        assert backend.classify(caught.value) is ErrorKind.DENIED
        await backend.close()
        assert (await owner.count(["jobs"]))[0].ready == 1
    finally:
        admin.execute(f"DROP OWNED BY {role}")
        admin.execute(f"DROP ROLE {role}")


async def test_a_session_that_may_only_read_is_refused_at_connect(
    server: Server, admin: Any, opened: Open, prefix: str
) -> None:
    await (await opened()).close()
    role = f"standby_{prefix}"
    admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'standby'")
    admin.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    try:
        with pytest.raises(psycopg.OperationalError, match="read-only") as caught:
            await opened(url=at(server, f"{role}:standby"))
        backend = PostgresBackend(at(server), PostgresOptions())
        assert backend.classify(caught.value) is ErrorKind.TRANSIENT  # a failover may end it
    finally:
        admin.execute(f"DROP ROLE {role}")


async def test_a_role_that_may_not_create_tables_is_told_to_upgrade_as_an_owner(
    server: Server, admin: Any, prefix: str
) -> None:
    role = f"plain_{prefix}"
    admin.execute(f"CREATE SCHEMA s{prefix}")
    admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'plain'")
    admin.execute(f"GRANT USAGE ON SCHEMA s{prefix} TO {role}")
    try:
        url = at(server, f"{role}:plain") + f"?schema_name=s{prefix}"
        with pytest.raises(BrokerError, match="mqcore sql upgrade") as caught:
            await Broker.connect(url, plugins=plugins(), settings=Settings()).open()
        assert f"s{prefix}" in str(caught.value)
    finally:
        admin.execute(f"DROP SCHEMA s{prefix}")
        admin.execute(f"DROP ROLE {role}")


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


@pytest.mark.parametrize("what", ["a snapshot", "a number"])
async def test_a_long_transaction_is_a_problem_for_doctor(
    opened: Open,
    server: Server,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    monkeypatch.setattr("mqcore_sql.postgres._PINNED", 0.0)
    backend = await opened()
    with closing(psycopg.connect(server.url, application_name="reports")) as session:
        if what == "a snapshot":
            session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            session.execute("SELECT count(*) FROM pg_class")
        else:  # what has written keeps dead rows as well, and has no snapshot between statements
            session.execute(f"UPDATE {prefix}_meta SET value = value WHERE key = 'epoch'")
        pid = session.info.backend_pid
        assert await asyncio.to_thread(main, ["doctor", f"{server.url}?prefix={prefix}"]) == 1
        problems = await backend.diagnose()
    (text,) = [text for text in problems if f"process {pid} " in text]
    assert "application reports, idle in transaction" in text
    assert f"pg_terminate_backend({pid})" in text
    assert f"pg_terminate_backend({pid})" in "".join(capsys.readouterr().out.split())

    async def is_over() -> bool:
        return not any(f"process {pid} " in text for text in await backend.diagnose())

    await eventually(is_over, 20)  # the server notices the end of the session a little later


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


async def test_many_messages_are_purged_and_deleted_in_short_transactions(
    opened: Open, admin: Any, prefix: str
) -> None:
    backend = await opened()
    await backend.declare([QueueSpec(name="q"), QueueSpec(name="other")])
    outs = [out(f"{number}", "q") for number in range(900)] + [out("a", "other")]
    await backend.publish(outs, timeout=60)
    consumer = await backend.subscribe("q", prefetch=1, lease=60)
    held = await consumer.receive(1, 30)
    assert held

    steps: list[int] = []
    purge_some = type(backend).Driver.purge_some

    def counted(driver: Any, *given: Any) -> int:
        steps.append(found := purge_some(driver, *given))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mqcore_sql.driver._STEP", 200)
        patch.setattr(type(backend).Driver, "purge_some", counted)
        assert await backend.purge("q") == 900 - len(held)
        assert steps == [200, 200, 200, 200, 100 - len(held)]
        (counts,) = await backend.count(["q"])
        assert (counts.ready, counts.leased) == (0, len(held))

        await backend.publish([out(f"more {number}", "q") for number in range(500)], timeout=60)
        assert await backend.delete("q")
    assert await backend.count(["q"]) == []
    (counts,) = await backend.count(["other"])
    assert counts.ready == 1
    names = [
        admin.execute(f"SELECT count(*) FROM {prefix}_{table}").fetchone()[0]
        for table in ("messages", "names0", "names1")
    ]
    assert (names[0], names[1] + names[2]) == (1, 1)


async def test_a_purge_that_is_interrupted_has_removed_a_part(opened: Open) -> None:
    backend, begun = await opened(), asyncio.Event()
    loop, go_on = asyncio.get_running_loop(), threading.Event()
    await backend.declare([QueueSpec(name="q")])
    await backend.publish([out(f"{number}", "q") for number in range(300)], timeout=60)
    purge_some = type(backend).Driver.purge_some

    def slow(driver: Any, *given: Any) -> int:
        found = purge_some(driver, *given)
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(60)
        return int(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mqcore_sql.driver._STEP", 100)
        patch.setattr(type(backend).Driver, "purge_some", slow)
        purging = asyncio.create_task(backend.purge("q"))
        await begun.wait()
        purging.cancel()
        go_on.set()
        await asyncio.gather(purging, return_exceptions=True)
    (counts,) = await backend.count(["q"])
    assert counts.ready == 200
    assert await backend.purge("q") == 200
