"""What every inbox promises: the same cases on Redis, memory, and sessions of both kinds."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mqcore import Broker, Settings
from mqcore.clock import SystemClock
from mqcore.messages.message import new_id
from mqcore.spi import Inbox, InboxEntry, Recorded
from mqcore.testing import memory_url

sqlalchemy = pytest.importorskip("sqlalchemy", reason="pip install 'mqcore[sqlalchemy]'")
pytest.importorskip("aiosqlite", reason="pip install aiosqlite")
from sqlalchemy import create_engine  # noqa: E402 - as above
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine  # noqa: E402 - as above
from sqlalchemy.orm import sessionmaker  # noqa: E402 - as above

from mqcore_sql import SqlInbox  # noqa: E402 - it needs SQLAlchemy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from mqcore.contract.brokers import Server

STORES = ["memory", "redis", "sqlite", "sqlite-blocking", "postgresql", "postgresql-blocking"]
pytestmark = pytest.mark.timeout(120)


class TurnedClock(SystemClock):
    """A clock whose wall time a test sets forward."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


class Store:
    """An inbox under test: `run` is one run of a handler that ends well."""

    def __init__(self, inbox: Inbox, clock: TurnedClock, *, blocking: bool) -> None:
        self.inbox, self.clock, self.blocking = inbox, clock, blocking
        self.name = new_id()

    def entry(self, id: str = "a", **changes: Any) -> InboxEntry:
        values = {"consumer": self.name, "queue": "jobs", "id": id, "window": 3600.0} | changes
        return InboxEntry(**values)

    async def run(self, entry: InboxEntry) -> Recorded:
        if self.blocking:
            return await asyncio.to_thread(self._run_blocking, entry)
        async with self.inbox.transaction(entry) as transaction:
            return Recorded.DUPLICATE if transaction.was_handled else await transaction.commit()

    def _run_blocking(self, entry: InboxEntry) -> Recorded:
        with self.inbox.blocking_transaction(entry) as transaction:
            return Recorded.DUPLICATE if transaction.was_handled else transaction.commit()

    async def begin(self, entry: InboxEntry) -> None:
        """A run that does not come to its commit."""
        if self.blocking:
            await asyncio.to_thread(self._begin_blocking, entry)
            return
        async with self.inbox.transaction(entry) as transaction:
            assert not transaction.was_handled

    def _begin_blocking(self, entry: InboxEntry) -> None:
        with self.inbox.blocking_transaction(entry) as transaction:
            assert not transaction.was_handled


@asynccontextmanager
async def broker_inbox(url: str) -> AsyncIterator[Inbox]:
    async with Broker.connect(url, settings=Settings()) as broker:
        inbox = broker._session.inbox(None)
        inbox.check("handler x", blocking=False)
        yield inbox


@asynccontextmanager
async def sql_inbox(url: str, *, blocking: bool) -> AsyncIterator[SqlInbox]:
    if blocking:
        engine = create_engine(url.replace("+aiosqlite", ""))
        yield SqlInbox(sessionmaker(engine))
        engine.dispose()
    else:
        async_engine = create_async_engine(url)
        yield SqlInbox(async_sessionmaker(async_engine))
        await async_engine.dispose()


@pytest.fixture(params=STORES)
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, broker_server: Callable[[str], Server]
) -> AsyncIterator[Store]:
    product, _, blocking = str(request.param).partition("-")
    async with AsyncExitStack() as stack:
        clock = TurnedClock()
        if product == "memory":
            inbox: Inbox = await stack.enter_async_context(broker_inbox(memory_url()))
        elif product == "redis":
            inbox = await stack.enter_async_context(broker_inbox(broker_server("redis").url))
        else:
            url = f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
            if product == "postgresql":
                server = broker_server("postgresql").url
                url = server.replace("postgresql://", "postgresql+psycopg://")
            inbox = await stack.enter_async_context(sql_inbox(url, blocking=bool(blocking)))
        async with Broker.connect(memory_url(), settings=Settings()) as broker:
            inbox = await inbox.open(clock, broker._session.connection.backend)
            yield Store(inbox, clock, blocking=bool(blocking))
            await inbox.close()


async def test_what_was_committed_is_found(store: Store) -> None:
    assert await store.run(store.entry()) is Recorded.RECORDED
    assert await store.run(store.entry()) is Recorded.DUPLICATE


async def test_what_was_not_committed_is_not_found(store: Store) -> None:
    await store.begin(store.entry())
    assert await store.run(store.entry()) is Recorded.RECORDED


async def test_consumer_queue_and_id_are_told_apart(store: Store) -> None:
    other = new_id()
    entries = [
        store.entry(),
        store.entry("b"),
        store.entry(queue="other"),
        store.entry(consumer=other),
        store.entry("jobs a"),
    ]
    assert [await store.run(entry) for entry in entries] == [Recorded.RECORDED] * len(entries)
    assert [await store.run(entry) for entry in entries] == [Recorded.DUPLICATE] * len(entries)


async def test_an_id_is_forgotten_after_its_window(store: Store) -> None:
    entry = store.entry(window=0.05)
    assert await store.run(entry) is Recorded.RECORDED
    store.clock.ahead += 0.06
    await asyncio.sleep(0.06)  # Redis and memory have clocks of their own
    assert await store.run(entry) is Recorded.RECORDED


async def test_many_at_once_and_each_commits_once(store: Store) -> None:
    entries = [store.entry(str(number)) for number in range(5)]
    results = await asyncio.gather(*map(store.run, entries))
    assert results == [Recorded.RECORDED] * 5
    assert set(await asyncio.gather(*map(store.run, entries))) == {Recorded.DUPLICATE}


async def test_an_inbox_may_be_opened_again(store: Store) -> None:
    await store.run(store.entry())
    async with Broker.connect(memory_url(), settings=Settings()) as broker:
        await store.inbox.close()
        store.inbox = await store.inbox.open(store.clock, broker._session.connection.backend)
        assert await store.run(store.entry()) is Recorded.DUPLICATE


async def test_forgetting_is_bounded_and_leaves_what_is_needed(store: Store) -> None:
    kept, old = store.entry("kept", window=10_000.0), store.entry("old", window=1.0)
    assert await store.run(kept) is Recorded.RECORDED
    assert await store.run(old) is Recorded.RECORDED
    store.clock.ahead = 100.0
    while await store.inbox.forget():
        pass
    assert await store.run(kept) is Recorded.DUPLICATE
