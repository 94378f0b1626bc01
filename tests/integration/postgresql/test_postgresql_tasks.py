"""The task store on PostgreSQL: its contract in short form, several processes, and faults."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from support.task_kills import run_and_kill
from support.task_stores import of_class
from support.waiting import eventually

from mqcore.contract.store.cases import StoreCase, store_cases
from mqcore.contract.store.equality import compare_with_memory
from mqcore.contract.store.explorer.crash_points import try_crash_points
from mqcore.contract.store.explorer.explorer import explore
from mqcore.contract.store.run import run_store_case
from mqcore.messages.message import new_id
from mqcore.tasks.spi import Node, StoreError
from mqcore.tasks.spi import changes as make
from mqcore.tasks.spi import outcomes as made

from .conftest import at, waits_for_a_lock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from mqcore.contract.brokers import Server
    from mqcore.contract.store.harness import MakeStore
    from mqcore.tasks.spi import Change

psycopg = pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
from mqcore_sql.tasks import store as seam_store  # noqa: E402 - after the skip
from mqcore_sql.tasks.postgres import PostgresTaskStore  # noqa: E402 - it needs psycopg

pytestmark = pytest.mark.timeout(600)  # it commits thousands of times


@pytest.fixture(scope="module")
def url(server: Server) -> Iterator[str]:
    """A database of its own, whose commits do not wait for the disk: no power is cut here."""
    name = f"tasks_{new_id()[:8]}"
    with closing(psycopg.connect(server.url, autocommit=True)) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        admin.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        yield at(server, database=name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def make_store(url: str) -> MakeStore:
    return of_class(PostgresTaskStore, url)


@pytest.mark.parametrize("case", store_cases(), ids=lambda case: case.__name__)
async def test_case(case: StoreCase, make_store: MakeStore) -> None:
    await run_store_case(case, make_store)


def test_a_crash_between_every_two_steps(make_store: MakeStore) -> None:
    assert try_crash_points(make_store) > 200


def test_equality_with_memory(make_store: MakeStore) -> None:
    assert compare_with_memory(make_store, 30, seed=20_000) > 1_800


def test_schedules(make_store: MakeStore) -> None:
    assert explore(make_store, 100, seed=800_000).schedules == 100


# Several processes, and the server's faults


async def test_processes_that_are_killed_leave_no_workflow_open(url: str) -> None:
    assert await run_and_kill(url, workflows=18, kills=9, seed=2) > 9


@pytest.fixture
async def stores(url: str) -> AsyncIterator[list[PostgresTaskStore]]:
    """Two open stores with empty tables."""
    stores = [PostgresTaskStore(url) for _ in range(2)]
    for store in stores:
        await store.open()
    await stores[0].clear()
    yield stores
    for store in stores:
        await store.close()


def add(name: str, unique: str = "") -> Change:
    return make.Add([Node(id=name, unique=unique)])


async def pid_of(store: PostgresTaskStore) -> int:
    """Return the process of the server that serves a store."""
    rows = await store._run("test", lambda database: database.query("SELECT pg_backend_pid()"))
    return int(rows[0][0])


async def test_two_processes_that_add_the_same_task_add_it_once(
    stores: list[PostgresTaskStore],
) -> None:
    for number in range(30):
        answers = await asyncio.gather(*[it.apply([add(f"r{number}")]) for it in stores])
        found = [answer.outcomes[0] for answer in answers]
        assert sorted(map(repr, found)) == ["Added()", "Exists()"]


async def test_two_processes_that_claim_keys_in_opposite_orders_do_not_deadlock(
    stores: list[PostgresTaskStore],
) -> None:
    for number in range(20):
        keys = [f"{number}-{key}" for key in "ab"]
        first = [add(f"x{number}-{key}", key) for key in keys]
        second = [add(f"y{number}-{key}", key) for key in reversed(keys)]
        one, two = await asyncio.gather(stores[0].apply(first), stores[1].apply(second))
        for mine, theirs in zip(one.outcomes, reversed(two.outcomes), strict=True):
            assert (mine == made.Added()) != (theirs == made.Added())


async def test_a_session_that_was_ended_is_made_again(
    stores: list[PostgresTaskStore], admin: Any
) -> None:
    admin.execute("SELECT pg_terminate_backend(%s)", [await pid_of(stores[0])])
    assert (await stores[0].apply([add("r")])).outcomes == [made.Added()]
    admin.execute("SELECT pg_terminate_backend(%s)", [await pid_of(stores[0])])
    assert await stores[0].nodes(["r"]) == await stores[1].nodes(["r"]) != [None]


@pytest.mark.parametrize("end", ["pg_terminate_backend", "pg_cancel_backend"])
async def test_a_transaction_that_is_ended_in_the_middle(
    stores: list[PostgresTaskStore], admin: Any, url: str, end: str
) -> None:
    store = stores[0]
    await store.apply([add("r")])
    with closing(psycopg.connect(url)) as other:
        other.execute("SELECT 1 FROM mq_tasks WHERE id = 'r' FOR UPDATE")
        pid = await pid_of(store)
        begin = asyncio.create_task(store.apply([make.Begin("r", 0, 1, "token", "worker")]))
        await eventually(waits_for_a_lock(admin, pid), 20)
        admin.execute(f"SELECT {end}(%s)", [pid])
        if end == "pg_terminate_backend":  # certainly rolled back: it is made again, and waits
            await eventually(lambda: _waits(admin, other.info.backend_pid), 20)
            other.rollback()
            assert type((await begin).outcomes[0]) is made.Started
            return
        with pytest.raises(StoreError, match=r"Nothing was changed\. Repeat the call"):
            await begin
    assert (await store.apply([make.Cancel("r")])).outcomes == [made.Cancelled()]


async def test_a_call_without_an_answer_is_given_up_and_not_made_later(
    stores: list[PostgresTaskStore], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stores[0].apply([add("r")])
    with closing(psycopg.connect(url)) as other:
        other.execute("SELECT 1 FROM mq_tasks WHERE id = 'r' FOR UPDATE")
        with monkeypatch.context() as impatient:
            impatient.setattr(seam_store, "_PATIENCE", 1.0)
            with pytest.raises(StoreError, match="has not answered"):
                await stores[0].apply([make.Begin("r", 0, 1, "token", "worker")])
    assert (await stores[0].apply([make.Cancel("r")])).outcomes == [made.Cancelled()]
    (node,) = await stores[1].nodes(["r"])
    assert node is not None
    assert node.attempt == 0


def _waits(admin: Any, holder: int) -> bool:
    statement = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    return admin.execute(statement, [holder]).fetchone() is not None


async def test_a_commit_without_an_answer_may_have_been_made(
    stores: list[PostgresTaskStore], admin: Any, url: str
) -> None:
    store = stores[0]
    with closing(psycopg.connect(url, autocommit=True)) as other:
        other.execute(
            "CREATE FUNCTION wait_in_commit() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$"
        )
        other.execute(
            "CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON mq_tasks DEFERRABLE INITIALLY "
            "DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_in_commit()"
        )
        try:
            other.execute("SELECT pg_advisory_lock(7)")
            pid = await pid_of(store)
            adding = asyncio.create_task(store.apply([add("r")]))
            await eventually(waits_for_a_lock(admin, pid), 20)
            admin.execute("SELECT pg_terminate_backend(%s)", [pid])
            with pytest.raises(StoreError, match="The changes may have been made"):
                await adding
        finally:
            other.execute("SELECT pg_advisory_unlock_all()")
            other.execute("DROP FUNCTION wait_in_commit() CASCADE")
    assert (await store.apply([add("r")])).outcomes == [made.Added()]


async def test_a_server_that_cannot_be_reached_is_a_store_error_without_secrets() -> None:
    store = PostgresTaskStore("postgresql://shop:secret-word@127.0.0.1:1/shop")
    with pytest.raises(StoreError, match="open in the task store has failed") as caught:
        await store.open()
    assert "secret-word" not in str(caught.value)
