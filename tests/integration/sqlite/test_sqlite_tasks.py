"""The task store in an SQLite file: several processes, a queue beside it, and what can be wrong."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.task_kills import run_and_kill

from mqcore import Broker, Queue
from mqcore.errors import ConfigurationError
from mqcore.tasks.spi import IllegalTransition, Kind, Node, State, StoreError
from mqcore.tasks.spi import changes as make
from mqcore.tasks.spi import outcomes as made
from mqcore_sql import schema
from mqcore_sql.tasks.sqlite import SqliteTaskStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from mqcore.tasks.spi import Change

pytestmark = pytest.mark.timeout(180)

JOBS = Queue("jobs", str)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[SqliteTaskStore]:
    store = SqliteTaskStore(url)
    await store.open()
    yield store
    await store.close()


def add(name: str) -> Change:
    return make.Add([Node(id=name)])


def begin(name: str) -> Change:
    return make.Begin(name, 0, 1, "token", "worker")


async def states(store: SqliteTaskStore, *names: str) -> list[str | None]:
    return [node and node.state.value for node in await store.nodes(names)]


# Several at once


async def test_processes_that_are_killed_leave_no_workflow_open(url: str) -> None:
    steps = await run_and_kill(f"{url}?synchronous=normal", workflows=18, kills=9, seed=1)
    assert steps > 9


async def test_changes_of_one_turn_are_one_transaction_and_each_caller_has_its_answer(
    store: SqliteTaskStore, path: Path
) -> None:
    with closing(sqlite3.connect(path)) as watcher:
        answers = await asyncio.gather(*[store.apply([add(f"r{number}")]) for number in range(50)])
        ((number,),) = watcher.execute("SELECT count(DISTINCT due) FROM mq_tasks")
    assert [list(applied.outcomes) for applied in answers] == [[made.Added()]] * 50
    assert [list(applied.keys) for applied in answers] == [[f"r{it}:0"] for it in range(50)]
    assert number == 1  # all have the time of one transaction


async def test_a_change_that_cannot_be_made_fails_its_caller_alone(store: SqliteTaskStore) -> None:
    await store.apply([add("r"), begin("r")])
    wrong = [add("w"), make.Back("r", 0, "token", State.SKIPPED)]
    given: Sequence[Sequence[Change]] = ([add("a")], wrong, [add("b")])
    answers = await asyncio.gather(*map(store.apply, given), return_exceptions=True)
    assert isinstance(answers[1], IllegalTransition)
    assert await states(store, "a", "w", "b", "r") == ["queued", None, "queued", "running"]


async def test_a_caller_that_goes_away_takes_no_other_with_it(store: SqliteTaskStore) -> None:
    calls = [asyncio.create_task(store.apply([add(name)])) for name in "abc"]
    await asyncio.sleep(0)
    calls[1].cancel()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(ended[1], asyncio.CancelledError)
    assert (await states(store, "a", "c")) == ["queued", "queued"]


async def test_a_batch_of_endings_reads_neither_the_other_members_nor_one_by_one(
    store: SqliteTaskStore,
) -> None:
    members = [Node(id=f"g.{index}", parent="g", index=index) for index in range(500)]
    group = Node(id="g", kind=Kind.GROUP, size=len(members))
    await store.apply([make.Add([group, *members])])
    names = [f"g.{index}" for index in range(100, 150)]
    await store.apply([begin(name) for name in names])

    statements: list[str] = []
    await store._run("test", lambda it: it._opened.set_trace_callback(statements.append))  # type: ignore[attr-defined]  # it is SQLite's
    ends = [make.End(name, 0, "token", State.SUCCEEDED) for name in names]
    applied = await asyncio.gather(*[store.apply([end]) for end in ends])
    assert [list(it.outcomes) for it in applied] == [[made.Ended()]] * 50

    reads = [text for text in statements if "FROM mq_task" in text and "SELECT" in text]
    writes = [text for text in statements if text.startswith("UPDATE mq_tasks")]
    assert len(reads) == 1
    assert '"g.99"' not in reads[0]
    assert len(writes) == 51  # each member, and the counter of the group once


# A queue in the same file


async def test_a_queue_and_a_store_share_a_file(url: str, store: SqliteTaskStore) -> None:
    async with Broker.connect(url) as broker:
        await asyncio.gather(
            *[broker.publish(JOBS, f"{number}") for number in range(20)],
            *[store.apply([add(f"r{number}")]) for number in range(20)],
        )
        (counts,) = await broker.counts(JOBS)
    assert counts.ready == 20
    assert len(await store.outbox()) == 20


@pytest.mark.parametrize("version", range(1, schema.VERSION))
async def test_a_file_of_an_earlier_version_is_upgraded_with_its_messages(
    url: str, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    with monkeypatch.context() as before:
        before.setattr(schema, "VERSION", version)
        async with Broker.connect(url) as broker:
            await broker.publish(JOBS, "kept")
    refusing = SqliteTaskStore(f"{url}?migrate=false")
    with pytest.raises(ConfigurationError, match="mqcore sql upgrade"):
        await refusing.open()

    store = SqliteTaskStore(url)
    await store.open()
    await store.apply([add("r")])
    await store.close()
    async with Broker.connect(url) as broker:
        assert (await broker.counts(JOBS))[0].ready == 1


# What can be wrong


@pytest.mark.parametrize("wrong", ["sqlite://host/shop.db", "sqlite:///", "sqlite:///a.db?no=1"])
def test_a_url_that_is_not_valid_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError):
        SqliteTaskStore(wrong)


async def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a folder"):
        await SqliteTaskStore(f"sqlite:///{tmp_path}").open()


async def test_a_store_that_is_closed_says_so(store: SqliteTaskStore) -> None:
    await store.close()
    for call in (store.apply([add("r")]), store.nodes(["r"])):
        with pytest.raises(StoreError, match="open it first"):
            await call
    await store.open()
    assert await store.apply([add("r")])


async def test_a_file_that_is_deleted_is_made_again(store: SqliteTaskStore, path: Path) -> None:
    await store.apply([add("old")])
    for file in path.parent.iterdir():
        file.unlink()
    assert (await store.apply([add("new")])).outcomes == [made.Added()]
    assert await states(store, "old", "new") == [None, "queued"]


async def test_a_file_that_cannot_be_written_is_an_error_that_says_what_to_do(
    store: SqliteTaskStore, path: Path
) -> None:
    await store.apply([add("r")])
    with closing(sqlite3.connect(path)) as admin:
        admin.execute("DROP TABLE mq_task_outbox")
    with pytest.raises(StoreError, match=r"Nothing was changed\. Repeat the call"):
        await store.apply([add("s")])
    assert await states(store, "r", "s") == ["queued", None]


async def test_a_reason_with_any_characters_is_stored(store: SqliteTaskStore) -> None:
    await store.apply([add("r"), begin("r")])
    await store.apply([make.End("r", 0, "token", State.FAILED, None, "no \0 and \udcff in it")])
    (node,) = await store.nodes(["r"])
    assert node is not None
    assert node.reason.startswith("no \N{REPLACEMENT CHARACTER} and ")
