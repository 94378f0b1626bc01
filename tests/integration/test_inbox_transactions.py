"""Handlers with a session: what they write and the id of their message are stored together."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.process_handlers import Point, double
from support.waiting import eventually

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    Queue,
    RemoteError,
    RetryPolicy,
    Settings,
    Worker,
    fixed,
)
from mqcore.messages.message import new_id
from mqcore.testing import memory_url

pytest.importorskip("sqlalchemy", reason="pip install 'mqcore[sqlalchemy]'")
pytest.importorskip("aiosqlite", reason="pip install aiosqlite")
from sqlalchemy import MetaData, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from mqcore_sql import SqlInbox
from mqcore_sql.inbox import inbox_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from mqcore.contract.brokers import Server

pytestmark = pytest.mark.timeout(120)
jobs = Queue("jobs", int)
TWICE = RetryPolicy(2, fixed(0))
INSERT = text("INSERT INTO bookings VALUES (:n)")


class Bank:
    """A database of an application, a broker, and a handler of each kind that books a number."""

    def __init__(self, url: str, broker_url: str, kind: str, *, is_same: bool) -> None:
        self.kind, self.broker_url, self.is_same = kind, broker_url, is_same
        self.engine = create_engine(url)
        self.async_engine = create_async_engine(url.replace("sqlite://", "sqlite+aiosqlite://"))
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE bookings (n INTEGER UNIQUE)"))
        self.inside: Callable[[Any], None] = lambda _: None
        """What a handler does besides, before it books."""
        self.answer: object = None
        """What a handler returns."""
        self.may_write = threading.Event()
        self.may_write.set()
        self.runs: Counter[int] = Counter()
        self.last = 0
        self.in_handler = threading.Event()

    def inbox(self) -> SqlInbox:
        return SqlInbox(async_sessionmaker(self.async_engine), sessionmaker(self.engine))

    def app(self, **options: Any) -> App:
        app = App("bank", inbox=self.inbox())
        options = {"once": "1h", "name": "book", "retry": TWICE} | options
        app.register(jobs, self.book if self.kind == "async" else self.book_blocking, options)
        return app

    async def book(self, number: int, ctx: Any) -> Any:
        self.runs[number] += 1
        self.last = number
        self.in_handler.set()
        await eventually(self.may_write.is_set, 30)
        await ctx.session.execute(INSERT, {"n": number})
        await ctx.session.run_sync(self.inside)
        return self.answer

    def book_blocking(self, number: int, ctx: Any) -> Any:
        self.runs[number] += 1
        self.last = number
        self.in_handler.set()
        assert self.may_write.wait(30)
        ctx.session.execute(INSERT, {"n": number})
        self.inside(ctx.session)
        return self.answer

    def joins(self, worker: Worker) -> bool:
        """Whether the acknowledgement is a part of the transaction."""
        [runner] = worker._runners
        assert runner._once is not None
        inbox = runner._once._inbox
        assert isinstance(inbox, SqlInbox)
        return inbox.joined is not None

    def rows(self) -> list[int]:
        return self._numbers("SELECT n FROM bookings ORDER BY n")

    def ids(self) -> list[str]:
        return self._numbers("SELECT id FROM mq_inbox ORDER BY id")

    def _numbers(self, statement: str) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement)).scalars())

    @asynccontextmanager
    async def serving(self, **options: Any) -> AsyncIterator[tuple[Broker, Worker]]:
        app = self.app(**options)
        async with (
            app.connect(self.broker_url, settings=Settings()) as broker,
            Worker(app, broker, grace=5) as worker,
        ):
            assert self.joins(worker) == self.is_same
            yield broker, worker

    async def close(self) -> None:
        self.engine.dispose()
        await self.async_engine.dispose()


@pytest.fixture(params=["async", "blocking"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, broker_server: Callable[[str], Server]
) -> Iterator[tuple[str, str]]:
    """URL of the application's database for SQLAlchemy, and of a broker in the same one."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'app.db'}", f"sqlite:///{tmp_path / 'app.db'}"
        return
    url, name = broker_server("postgresql").url, f"bank_{new_id()[:8]}"
    admin = create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    own = f"{url.rpartition('/')[0]}/{name}"
    yield own.replace("postgresql://", "postgresql+psycopg://"), own
    with admin.connect() as connection:
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    admin.dispose()


@pytest.fixture(params=["apart", "same"])
async def bank(
    request: pytest.FixtureRequest, place: tuple[str, str], kind: str
) -> AsyncIterator[Bank]:
    is_same = request.param == "same"
    bank = Bank(place[0], place[1] if is_same else memory_url(), kind, is_same=is_same)
    yield bank
    await bank.close()


async def handled(broker: Broker, number: int = 1) -> None:
    """Wait until so many messages were handled, skipped or dead-lettered."""
    counts = broker.events.counts
    names = ("message.done", "message.skipped", "message.dead")
    await eventually(lambda: sum(counts[name] for name in names) >= number, 30)


async def empty(broker: Broker) -> None:
    async def is_empty() -> bool:
        [counts] = await broker.counts("jobs")
        return counts.total == 0

    await eventually(is_empty, 30)


async def test_what_a_handler_writes_and_the_id_are_stored_together(bank: Bank) -> None:
    async with bank.serving() as (broker, _):
        for number in range(20):
            await broker.publish(jobs, number, id=f"m{number:02}")
        await handled(broker, 20)
        await empty(broker)
        assert broker.events.counts["settle.stale"] == 0
        assert broker.events.counts["lease.lost"] == 0
    assert bank.rows() == list(range(20))
    assert bank.ids() == [f"m{number:02}" for number in range(20)]


async def test_a_failure_rolls_back_and_the_retry_commits(bank: Bank) -> None:
    def fail_once(_: Session) -> None:
        if bank.runs[1] == 1:
            raise OSError("on purpose")

    bank.inside = fail_once
    async with bank.serving() as (broker, _):
        await broker.publish(jobs, 1, id="a")
        await handled(broker)
        assert broker.events.counts["message.retried"] == 1
    assert (bank.rows(), bank.ids(), bank.runs[1]) == ([1], ["a"], 2)


async def test_a_reply_that_cannot_be_sent_rolls_back(bank: Bank) -> None:
    bank.answer = object()
    async with bank.serving() as (broker, _):
        with pytest.raises(RemoteError, match="cannot be sent"):
            await broker.request(jobs, 1, timeout=60)
        assert bank.runs == {1: 2}
        assert bank.rows() == []
        assert bank.ids() == []

        bank.answer = 7
        assert await broker.request(jobs, 1, timeout=60) == 7
        assert bank.rows() == [1]
        assert len(bank.ids()) == 1


async def test_an_error_of_the_database_is_the_handlers_failure(bank: Bank) -> None:
    async with bank.serving(retry=RetryPolicy(1)) as (broker, _):
        await broker.publish(jobs, 1, id="a")
        await handled(broker)
        await broker.publish(jobs, 1, id="b")  # the number is booked
        await handled(broker, 2)
        await empty(broker)
        [letter] = await broker.dead_letters(jobs).list()
        assert "IntegrityError" in letter.error
        assert letter.id == "b"
    assert (bank.rows(), bank.ids()) == ([1], ["a"])


async def test_two_workers_with_the_same_message_and_one_commits(bank: Bank) -> None:
    """Both handlers have begun before one of them writes."""
    bank.may_write.clear()
    other = Bank.__new__(Bank)
    other.__dict__.update(bank.__dict__)
    other.broker_url, other.is_same = memory_url(), False
    with bank.engine.begin() as connection:
        connection.execute(text("DROP TABLE bookings"))
        connection.execute(text("CREATE TABLE bookings (n INTEGER)"))

    async with bank.serving() as (broker, _), other.serving() as (second, _):
        await broker.publish(jobs, 1, id="a")
        await second.publish(jobs, 1, id="a")
        await eventually(lambda: bank.runs[1] == 2, 30)
        bank.may_write.set()
        await handled(broker)
        await handled(second)
        counts = broker.events.counts + second.events.counts
        assert (counts["message.done"], counts["message.skipped"]) == (1, 1)
        await empty(broker)
        await empty(second)
    assert (bank.rows(), bank.ids(), bank.runs[1]) == ([1], ["a"], 2)


async def test_a_handler_that_commits_is_refused(bank: Bank) -> None:
    bank.inside = lambda session: session.commit()
    async with bank.serving(retry=RetryPolicy(1)) as (broker, _):
        await broker.publish(jobs, 1, id="a")
        await handled(broker)
        await empty(broker)
        [letter] = await broker.dead_letters(jobs).list()
        assert "message a of queue 'jobs': the handler committed ctx.session" in letter.error
    assert (bank.rows(), bank.ids()) == ([], [])


async def test_a_handler_may_use_savepoints_and_roll_back(bank: Bank) -> None:
    def try_twice(session: Session) -> None:
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(INSERT, {"n": 1})  # as the handler has
        with session.begin_nested():
            session.execute(INSERT, {"n": 2})

    bank.inside = try_twice
    async with bank.serving() as (broker, _):
        await broker.publish(jobs, 1, id="a")
        await handled(broker)
        bank.inside = lambda session: session.rollback()
        await broker.publish(jobs, 3, id="b")
        await handled(broker, 2)
    assert (bank.rows(), bank.ids()) == ([1, 2], ["a", "b"])


async def test_a_handler_past_its_time_limit_is_rolled_back(bank: Bank) -> None:
    bank.may_write.clear()
    async with bank.serving(timeout=0.3) as (broker, _):
        await broker.publish(jobs, 1, id="a")
        await eventually(lambda: broker.events.counts["message.retried"] == 1, 30)
        assert bank.rows() == []
        bank.may_write.set()
        await handled(broker)
    assert bank.rows() in ([1], [])  # on a busy machine the second run may be late as well
    assert bank.ids() == ["a"] * len(bank.rows())


async def test_a_drain_rolls_back_what_has_not_ended(bank: Bank) -> None:
    bank.may_write.clear()
    async with bank.serving() as (broker, worker):
        await broker.publish(jobs, 1, id="a")
        await eventually(bank.in_handler.is_set, 30)
        await worker.drain(0)
        assert broker.events.counts["message.released"] == 1
        bank.may_write.set()
        async with Worker(bank.app(), broker):
            await handled(broker)
    assert (bank.rows(), bank.ids()) == ([1], ["a"])


async def lose_claims(broker: Broker, bank: Bank) -> None:
    """Take every claim of the queue from its owner, as the end of its lease does."""
    if bank.is_same:
        with bank.engine.begin() as connection:
            connection.execute(text("UPDATE mq_messages SET token = NULL, until = NULL"))
        return
    store = broker._session.connection.backend._store  # type: ignore[attr-defined]  # it is the memory backend
    found = store._queues["jobs"]
    for copy in list(found.leases.values()):
        found.release(copy, lost=True)
    found.nudge()


async def test_a_claim_that_is_lost_in_mid_handler(bank: Bank) -> None:
    """It is given to the next run while the first one has not ended; one of them commits."""
    bank.may_write.clear()
    async with bank.serving(lease=3, retry=RetryPolicy(5, fixed(0))) as (broker, _):
        await broker.publish(jobs, 1, id="a")
        await eventually(bank.in_handler.is_set, 30)
        await lose_claims(broker, bank)
        await eventually(lambda: bank.runs[1] == 2, 30)
        bank.may_write.set()
        await empty(broker)
        await eventually(lambda: bank.rows() == [1], 30)
        await handled(broker)
        assert broker.events.counts["message.dead"] == 0
    assert bank.ids() == ["a"]


@pytest.mark.timeout(240)
async def test_a_drain_at_any_moment(bank: Bank) -> None:
    """Cancelled at each await in turn: what was committed is skipped, the rest is handled again."""
    for steps in range(0, 60, 3):
        id, number = f"m{steps}", steps
        async with bank.serving() as (broker, worker):
            await broker.publish(jobs, number, id=id)
            await eventually(lambda number=number: bank.runs[number] == 1, 30)
            for _ in range(steps):
                await asyncio.sleep(0)
            await worker.drain(0)
            async with Worker(bank.app(), broker):
                await empty(broker)
        assert bank.rows().count(number) == 1
        assert bank.ids().count(id) == 1


async def test_a_commit_without_an_answer_ends(bank: Bank) -> None:
    """Another transaction has inserted the id and does not end; then it is rolled back."""
    if bank.engine.dialect.name == "sqlite":
        pytest.skip("SQLite waits for its one lock at the handler's first write")
    async with bank.serving(lease=1.5, retry=RetryPolicy(5, fixed(1))) as (broker, _):
        errors: list[str] = []
        broker.events.listen(
            lambda event: errors.append(str(event.fields.get("error"))),
            lambda name: name == "message.retried",
        )
        with bank.engine.connect() as connection:
            connection.execute(text("INSERT INTO mq_inbox VALUES ('book', 'jobs', 'a', 1)"))
            await broker.publish(jobs, 1, id="a")
            await eventually(lambda: errors, 30)
        assert "message a of queue 'jobs' in the inbox took longer than 0.5 s" in errors[0]
        await empty(broker)
        await eventually(lambda: bank.ids() == ["a"], 30)
    assert bank.rows() == [1]


async def test_one_inbox_serves_workers_of_two_brokers(bank: Bank, tmp_path: Path) -> None:
    """Each acknowledges with its own broker, whichever was opened last."""
    app = bank.app()
    async with (
        app.connect(bank.broker_url, settings=Settings()) as first,
        app.connect(f"sqlite:///{tmp_path / 'other.db'}", settings=Settings()) as second,
        Worker(app, first) as worker,
        Worker(app, second),
    ):
        assert bank.joins(worker) == bank.is_same
        await first.publish(jobs, 1, id="a")
        await second.publish(jobs, 2, id="b")
        for broker in (first, second):
            await handled(broker)
            await empty(broker)
            assert broker.events.counts["lease.lost"] == 0
    assert (bank.rows(), bank.ids()) == ([1, 2], ["a", "b"])


async def test_a_factory_may_give_the_same_session_again(bank: Bank) -> None:
    if bank.kind == "async":
        pytest.skip("it is one session for each thread")
    app = App("bank", inbox=SqlInbox(scoped_session(sessionmaker(bank.engine))))
    app.register(jobs, bank.book_blocking, {"once": "1h", "concurrency": 1, "retry": TWICE})

    def fail_first(_: Session) -> None:
        if bank.runs[bank.last] == 1:
            raise OSError("on purpose")

    bank.inside = fail_first
    async with app.connect(bank.broker_url, settings=Settings()) as broker, Worker(app, broker):
        for number in range(5):
            await broker.publish(jobs, number, id=str(number))
        await handled(broker, 5)
    assert bank.rows() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 1, 1_000, 2_500])
async def test_old_ids_are_removed_in_bounded_steps(bank: Bank, count: int) -> None:
    inbox = bank.inbox()
    async with Broker.connect(memory_url(), settings=Settings()) as broker:
        inbox = await inbox.open(broker.clock, broker._session.connection.backend)
    rows = [{"id": str(number), "until": number % 7} for number in range(count)]
    insert = text("INSERT INTO mq_inbox VALUES ('book', 'jobs', :id, :until)")
    with bank.engine.begin() as connection:
        connection.execute(insert, [*rows, {"id": "kept", "until": 1e11}])

    steps = 1
    while await inbox.forget():
        steps += 1
    assert steps == count // 1_000 + 1
    assert bank.ids() == ["kept"]


async def test_several_workers_create_the_table_at_once(bank: Bank) -> None:
    async with Broker.connect(memory_url(), settings=Settings()) as broker:
        backend = broker._session.connection.backend
        inboxes = [bank.inbox() for _ in range(6)]
        await asyncio.gather(*(inbox.open(broker.clock, backend) for inbox in inboxes))
    assert bank.ids() == []


async def test_a_table_that_is_missing_or_anothers(bank: Bank) -> None:
    factory = async_sessionmaker(bank.async_engine)
    async with Broker.connect(memory_url(), settings=Settings()) as broker:
        backend = broker._session.connection.backend
        with pytest.raises(ConfigurationError, match="the inbox cannot read the table other: "):
            await SqlInbox(factory, table="other", create=False).open(broker.clock, backend)
        with pytest.raises(ConfigurationError, match="the inbox cannot read the table bookings: "):
            await SqlInbox(factory, table="bookings").open(broker.clock, backend)
        metadata = MetaData()
        inbox_table(metadata, "made")
        metadata.create_all(bank.engine)
        await SqlInbox(factory, table="made", create=False).open(broker.clock, backend)


async def test_what_an_inbox_cannot_serve(bank: Bank) -> None:
    async def own(number: int) -> None: ...
    def blocking(number: int) -> None: ...

    async_sessions, sessions = async_sessionmaker(bank.async_engine), sessionmaker(bank.engine)
    for inbox, handler, text_ in (
        (SqlInbox(sessions), own, r"no sessions for an async handler.*async_sessionmaker"),
        (SqlInbox(async_sessions), blocking, r"no sessions for a blocking handler.*sessionmaker"),
    ):
        app = App("bank", inbox=inbox)
        app.register(jobs, handler, {"once": "1h"})
        async with app.connect(memory_url(), settings=Settings()) as broker:
            with pytest.raises(ConfigurationError, match=text_):
                await Worker(app, broker).start()

    app = App("bank", inbox=SqlInbox(sessions))
    app.register(Queue("points", Point), double, {"once": "1h", "process": True})
    async with app.connect(memory_url(), settings=Settings()) as broker:
        with pytest.raises(ConfigurationError, match=r"process=True does not go with once="):
            await Worker(app, broker).start()

    for wrong in ((), (5,), (sessions, sessions), (sessions(),), (dict,)):
        with pytest.raises(
            ConfigurationError, match=r"SqlInbox (takes an async_|needs the factory)"
        ):
            SqlInbox(*wrong)  # type: ignore[arg-type]  # these are the wrong values


async def test_a_broker_without_an_inbox(place: tuple[str, str]) -> None:
    app = App("bank")

    @app.consumer(jobs, once="1h")
    async def own(number: int) -> None: ...

    async with app.connect(place[1], settings=Settings()) as broker:
        with pytest.raises(
            ConfigurationError, match=r"handler .*own.* needs an inbox, and \w+:// "
        ):
            await Worker(app, broker).start()
