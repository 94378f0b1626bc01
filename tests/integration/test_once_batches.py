"""`once=` with `batch=`: one transaction for the messages of a batch that were not handled yet."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.waiting import eventually

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    Queue,
    Received,
    RetryPolicy,
    Settings,
    Worker,
    fixed,
)
from mqcore.spi import Inbox, InboxEntry
from mqcore.testing import VirtualClock, memory_url

pytest.importorskip("sqlalchemy", reason="pip install 'mqcore[sqlalchemy]'")
pytest.importorskip("aiosqlite", reason="pip install aiosqlite")
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from mqcore_sql import SqlInbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from mqcore.contract.brokers import Server

    Items = list[Received[int]]
    Work = Callable[[Items], Awaitable[None]]

pytestmark = pytest.mark.timeout(120)
jobs = Queue("jobs", int)
INSERT = text("INSERT INTO bookings VALUES (:n)")
OPTIONS: Any = {"once": "24h", "name": "book", "batch": 10, "linger": 0.2, "concurrency": 1}
ALONE = RetryPolicy(2, fixed(10))


# With ids alone, by the virtual clock


class Handled:
    """The batches of a handler, and what it does besides."""

    def __init__(self, work: Work | None = None) -> None:
        self.seen: list[list[int]] = []
        self._work = work

    async def __call__(self, items: Items) -> None:
        self.seen.append([item.value for item in items])
        if self._work is not None:
            await self._work(items)


@asynccontextmanager
async def serving(
    url: str, clock: VirtualClock, handled: Handled, **options: Any
) -> AsyncIterator[Broker]:
    app = App("shop")
    app.register(jobs, handled, OPTIONS | {"retry": ALONE} | options)
    async with app.connect(url, clock=clock) as broker, Worker(app, broker):
        yield broker


async def publish(broker: Broker, *values: int) -> None:
    """Publish messages whose ids are their values."""
    for value in values:
        await broker.publish(jobs, value, id=f"m{value}")


async def test_what_was_handled_is_left_out(clock: VirtualClock, url: str) -> None:
    handled = Handled()
    async with serving(url, clock, handled) as broker:
        await publish(broker, 1, 2)
        await clock.advance(700)  # past the deduplication of publishes
        await publish(broker, 1, 2, 3)
        await clock.advance(1)
        await clock.advance(700)
        await publish(broker, 1, 2, 3)
        await clock.advance(1)
        assert handled.seen == [[1, 2], [3]]
        assert broker.events.counts["message.skipped"] == 5
        [counts] = await broker.counts(jobs)
        assert counts.total == 0


async def test_a_failed_batch_is_retried_one_by_one(clock: VirtualClock, url: str) -> None:
    async def fail(items: Items) -> None:
        if any(item.value == 13 for item in items):
            raise OSError("on purpose")

    handled = Handled(fail)
    async with serving(url, clock, handled) as broker:
        await publish(broker, 1, 13, 2)
        await clock.advance(15)
        assert handled.seen == [[1, 13, 2], [1], [13], [2]]
        assert [letter.id for letter in await broker.dead_letters(jobs).list()] == ["m13"]
        await clock.advance(700)
        await publish(broker, 1, 13, 2)
        await clock.advance(1)
        assert handled.seen[4:] == [[13]]  # the others are remembered


async def test_what_an_item_asks_for_holds_also_when_the_batch_fails(
    clock: VirtualClock, url: str
) -> None:
    async def reject_and_fail(items: Items) -> None:
        if items[0].attempt == 1:
            await items[0].reject("not today")
            raise OSError("on purpose")

    handled = Handled(reject_and_fail)
    async with serving(url, clock, handled) as broker:
        await publish(broker, 1, 2)
        await clock.advance(15)
        assert handled.seen == [[1, 2], [2]]
        [letter] = await broker.dead_letters(jobs).list()
        assert (letter.id, letter.reason) == ("m1", "rejected")


async def test_items_that_are_settled_apart_are_not_recorded(clock: VirtualClock, url: str) -> None:
    async def settle(items: Items) -> None:
        for item in items:
            if item.value == 1:
                await item.ack()
            elif item.value == 2:
                await item.reject("not today")
            elif item.value == 3 and item.attempt == 1:
                await item.retry(5)

    handled = Handled(settle)
    async with serving(url, clock, handled) as broker:
        await publish(broker, 1, 2, 3, 4)
        await clock.advance(6)
        assert handled.seen == [[1, 2, 3, 4], [3]]
        await clock.advance(700)
        await publish(broker, 1, 2, 3, 4)
        await clock.advance(1)
        assert handled.seen[2:] == [[2]]
        assert len(await broker.dead_letters(jobs).list()) == 2


async def test_an_ack_counts_when_the_batch_succeeds(clock: VirtualClock, url: str) -> None:
    async def fail_once(items: Items) -> None:
        await items[0].ack()
        if items[0].attempt == 1:
            raise OSError("on purpose")

    handled = Handled(fail_once)
    async with serving(url, clock, handled) as broker:
        await publish(broker, 1, 2)
        await clock.advance(1)
        assert broker.events.counts["message.done"] == 0
        await clock.advance(15)
        assert handled.seen == [[1, 2], [1], [2]]
        assert broker.events.counts["message.done"] == 2


async def test_two_copies_in_one_batch_are_handled_once(clock: VirtualClock, url: str) -> None:
    handled = Handled()
    app = App("shop")
    app.register(jobs, handled, OPTIONS | {"retry": ALONE})
    async with app.connect(url, clock=clock) as broker:
        await broker.declare(jobs)
        await publish(broker, 1, 2)
        await clock.advance(700)
        await publish(broker, 1, 3)
        async with Worker(app, broker):
            await clock.advance(1)
        assert handled.seen == [[1, 2, 3]]
        assert broker.events.counts["message.skipped"] == 1
        [counts] = await broker.counts(jobs)
        assert counts.total == 0


async def test_a_copy_of_an_item_that_is_retried_comes_again(clock: VirtualClock, url: str) -> None:
    async def retry_first(items: Items) -> None:
        if len(handled.seen) == 1:
            await items[0].retry(5)

    handled = Handled(retry_first)
    app = App("shop")
    app.register(jobs, handled, OPTIONS | {"retry": ALONE})
    async with app.connect(url, clock=clock) as broker:
        await broker.declare(jobs)
        await publish(broker, 1)
        await clock.advance(700)
        await publish(broker, 1)
        async with Worker(app, broker):
            await clock.advance(10)
        assert handled.seen == [[1], [1]]  # the copy; the first one is then remembered
        [counts] = await broker.counts(jobs)
        assert counts.total == 0


async def test_the_hook_is_called_for_all(clock: VirtualClock, url: str) -> None:
    concluded: list[str] = []

    async def note(conclusions: Any) -> None:
        concluded.extend(each.id for each in conclusions)

    handled = Handled()
    async with serving(url, clock, handled, conclusion=note) as broker:
        await publish(broker, 1, 2)
        await clock.advance(700)
        await publish(broker, 2, 3)
        await clock.advance(1)
    assert handled.seen == [[1, 2], [3]]
    assert sorted(concluded) == ["m1", "m2", "m2", "m3"]


async def test_an_inbox_for_single_messages_is_refused(url: str) -> None:
    class Single(Inbox):
        def transaction(self, entry: InboxEntry) -> Any: ...

    app = App("shop", inbox=Single())
    app.register(jobs, Handled(), OPTIONS)
    async with app.connect(url) as broker:
        with pytest.raises(ConfigurationError, match="batch= does not go with once= and the inbox"):
            await Worker(app, broker).start()


# With sessions


class Bank:
    """A database of an application, and a batch handler of each kind that books numbers."""

    def __init__(self, url: str, broker_url: str, kind: str) -> None:
        self.kind, self.broker_url = kind, broker_url
        self.engine = create_engine(url)
        self.async_engine = create_async_engine(url.replace("sqlite://", "sqlite+aiosqlite://"))
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE bookings (n INTEGER)"))
        self.seen: list[list[int]] = []
        self.may_write = threading.Event()
        self.may_write.set()
        self.fails_with: int | None = None

    @property
    def is_same(self) -> bool:
        return not self.broker_url.startswith("memory")

    def app(self, **options: Any) -> App:
        inbox = SqlInbox(async_sessionmaker(self.async_engine), sessionmaker(self.engine))
        app = App("bank", inbox=inbox)
        handler = self.book if self.kind == "async" else self.book_blocking
        app.register(jobs, handler, OPTIONS | {"retry": RetryPolicy(2, fixed(0))} | options)
        return app

    async def book(self, items: list[Received[int]]) -> None:
        self.seen.append([item.value for item in items])
        await eventually(self.may_write.is_set, 30)
        for item in items:
            await item.session.execute(INSERT, {"n": item.value})
        self._fail(items)

    def book_blocking(self, items: list[Received[int]]) -> None:
        self.seen.append([item.value for item in items])
        assert self.may_write.wait(30)
        for item in items:
            item.session.execute(INSERT, {"n": item.value})
        self._fail(items)

    def _fail(self, items: list[Received[int]]) -> None:
        if self.fails_with in [item.value for item in items]:
            raise OSError("on purpose")

    def rows(self) -> list[int]:
        return self._read("SELECT n FROM bookings ORDER BY n")

    def ids(self) -> list[str]:
        return self._read("SELECT id FROM mq_inbox ORDER BY id")

    def _read(self, statement: str) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement)).scalars())

    @asynccontextmanager
    async def serving(self, **options: Any) -> AsyncIterator[Broker]:
        app = self.app(**options)
        connecting = app.connect(self.broker_url, settings=Settings(), queues=[jobs])
        async with connecting as broker, Worker(app, broker, grace=5):
            yield broker

    async def close(self) -> None:
        self.engine.dispose()
        await self.async_engine.dispose()


@pytest.fixture(params=["sqlite", "sqlite-same", "postgresql", "postgresql-same"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, broker_server: Callable[[str], Server]
) -> tuple[str, str]:
    """URL of the application's database for SQLAlchemy, and of a broker."""
    product, _, same = str(request.param).partition("-")
    url = f"sqlite:///{tmp_path / 'app.db'}"
    if product == "postgresql":
        server = broker_server("postgresql").url
        name = f"bank_{id(request):x}"
        admin = create_engine(
            server.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
        )
        with admin.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{name}"'))
        admin.dispose()
        url = f"{server.rpartition('/')[0]}/{name}"
    return url.replace("postgresql://", "postgresql+psycopg://"), url if same else memory_url()


@pytest.fixture(params=["async", "blocking"])
async def bank(request: pytest.FixtureRequest, place: tuple[str, str]) -> AsyncIterator[Bank]:
    bank = Bank(*place, str(request.param))
    yield bank
    await bank.close()


async def ended(broker: Broker, number: int) -> None:
    """Wait until so many messages were handled, skipped or dead-lettered, and none is left."""
    counts = broker.events.counts
    names = ("message.done", "message.skipped", "message.dead")
    await eventually(lambda: sum(counts[name] for name in names) >= number, 30)

    async def is_empty() -> bool:
        [found] = await broker.counts("jobs")
        return found.total == 0

    await eventually(is_empty, 30)


async def test_rows_and_ids_are_stored_together(bank: Bank) -> None:
    async with bank.serving() as broker:
        await publish(broker, *range(25))
        await ended(broker, 25)
        assert broker.events.counts["message.done"] == 25
        assert broker.events.counts["settle.stale"] == 0
    assert bank.rows() == list(range(25))
    assert bank.ids() == sorted(f"m{number}" for number in range(25))


async def test_a_failure_rolls_the_whole_batch_back(bank: Bank) -> None:
    bank.fails_with = 2
    async with bank.serving() as broker:
        await broker.publish_many(jobs, [1, 2, 3])
        await ended(broker, 3)
        [letter] = await broker.dead_letters(jobs).list()
        assert letter.body == b"2"
    assert bank.rows() == [1, 3]
    assert len(bank.ids()) == 2


async def test_two_workers_have_the_same_messages(bank: Bank) -> None:
    """Both handlers have begun; one transaction conflicts with the other and begins again."""
    bank.may_write.clear()
    other = Bank.__new__(Bank)
    other.__dict__.update(bank.__dict__, broker_url=memory_url())
    async with bank.serving() as broker, other.serving() as second:
        await publish(broker, 1, 2)
        await publish(second, 2, 3)
        await eventually(lambda: sum(map(len, bank.seen)) >= 4, 30)
        bank.may_write.set()
        await ended(broker, 2)
        await ended(second, 2)
        counts = broker.events.counts + second.events.counts
        assert counts["message.done"] == 3
        assert counts["message.skipped"] == 1
        assert counts["message.retried"] == 0
    assert bank.rows() == [1, 2, 3]
    assert bank.ids() == ["m1", "m2", "m3"]


async def test_a_claim_of_one_item_is_lost(bank: Bank) -> None:
    """The acknowledgement in the transaction finds it: nothing of the batch is stored then."""
    if not bank.is_same:
        pytest.skip("the acknowledgement is not in the transaction")
    bank.may_write.clear()
    async with bank.serving(lease=60) as broker:
        await publish(broker, 1, 2, 3)
        await eventually(lambda: bank.seen, 30)
        with bank.engine.begin() as connection:
            connection.execute(
                text(
                    "UPDATE mq_messages SET token = NULL, until = NULL "
                    "WHERE id = (SELECT min(id) FROM mq_messages)"
                )
            )
        bank.may_write.set()
        await ended(broker, 3)
        assert broker.events.counts["message.dead"] == 0
    assert bank.rows() == [1, 2, 3]
    assert len(bank.seen) >= 2


async def test_all_items_are_settled_apart_and_the_session_is_committed(bank: Bank) -> None:
    if bank.kind == "blocking":
        pytest.skip("only async handlers settle items apart")

    async def reject(items: list[Received[int]]) -> None:
        async with items[0].session.begin_nested():
            await items[0].session.execute(INSERT, {"n": len(items)})
        for item in items:
            await item.reject()

    bank.book = reject  # type: ignore[method-assign]  # another handler
    async with bank.serving() as broker:
        await broker.publish_many(jobs, [1, 2])
        await ended(broker, 2)
    assert sum(bank.rows()) == 2
    assert bank.ids() == []


async def test_a_drain_rolls_the_batch_back(bank: Bank) -> None:
    bank.may_write.clear()
    app = bank.app()
    connecting = app.connect(bank.broker_url, settings=Settings(), queues=[jobs])
    async with connecting as broker:
        await broker.publish_many(jobs, [1, 2])
        async with Worker(app, broker) as worker:
            await eventually(lambda: bank.seen, 30)
            await worker.drain(0)
        bank.may_write.set()
        async with Worker(bank.app(), broker):
            await ended(broker, 2)
    assert bank.rows() == [1, 2]
    assert len(bank.ids()) == 2
