"""Several processes that meet a file at the same time: an empty one, and one that goes."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path

import pytest
from support.at_once import connect_at_once
from support.sqlite_file import plugins
from support.waiting import eventually

from mqcore import App, Broker, PublishFailed, Queue, Settings, Worker

pytestmark = pytest.mark.timeout(120)
JOBS = Queue("jobs", str)


def test_of_eight_processes_that_connect_at_once_one_makes_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    assert connect_at_once(f"sqlite:///{path}", 8) == []
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM mq_messages").fetchone() == (8,)
        assert connection.execute("SELECT count(*) FROM mq_queues").fetchone() == (1,)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[list[Broker]]:
    """Two connections to one file, as of two processes."""
    url = f"sqlite:///{tmp_path}/queue.db"
    async with AsyncExitStack() as opened:
        yield [
            await opened.enter_async_context(
                Broker.connect(url, plugins=plugins(), settings=Settings())
            )
            for _ in range(2)
        ]


def connections(log: Path) -> int:
    """Return how often this process has a log open."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(link.exists() and link.samefile(log) for link in links)


@pytest.mark.parametrize("what", ["the file", "all files", "the log"])
async def test_two_that_lose_their_file_meet_again_at_the_new_one(
    pair: list[Broker], tmp_path: Path, what: str
) -> None:
    app, handled = App("shop"), list[str]()

    @app.consumer(JOBS)
    async def handle(payload: str) -> None:
        handled.append(payload)

    publisher, consumer = pair
    async with Worker(app, consumer):
        await publisher.publish(JOBS, "before")
        await eventually(lambda: handled == ["before"], 20)
        # the third renews leases, and has nothing to do now
        await eventually(lambda: connections(tmp_path / "queue.db-wal") == 3, 20)
        names = {"the file": ["queue.db"], "the log": ["queue.db-wal"]}
        all_names = ["queue.db", "queue.db-wal", "queue.db-shm", "queue.db.lock"]
        for name in names.get(what, all_names):
            (tmp_path / name).unlink(
                missing_ok=True
            )  # one that is lost closes, and removes its log

        is_confirmed = False
        while not is_confirmed:
            with suppress(PublishFailed):  # the first that finds it, as it is certainly not stored
                await publisher.publish(JOBS, "after", timeout=30)
                is_confirmed = True
        await eventually(lambda: "after" in handled, 30)
    assert handled == ["before", "after"]
