"""`publish(..., session=)`: what is committed arrives, and nothing else.

Each test runs on SQLite and PostgreSQL, with the broker in the application's database (`same`), and
with another broker that a relay publishes to (`outbox`).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support.databases import AppDatabase, app_database
from support.faulty import Broken, Faults, lost, plugin_for, raised

from mqcore import (
    App,
    BlockingContext,
    Broker,
    ConfigurationError,
    ConnectionLost,
    Context,
    PublishFailed,
    Queue,
    QueueNotFound,
    Receipt,
    Router,
    Settings,
    Unroutable,
    UnsupportedFeature,
    ValidationError,
    Worker,
)
from mqcore import sync as blocking
from mqcore.broker import session_of
from mqcore.config.plugins import Plugins
from mqcore.contract.brokers import Server
from mqcore.testing import memory_url

sqlalchemy = pytest.importorskip("sqlalchemy", reason="pip install 'mqcore[sqlalchemy]'")
from sqlalchemy import text  # noqa: E402 - an extra
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine  # noqa: E402 - an extra
from sqlalchemy.orm import Session, scoped_session, sessionmaker  # noqa: E402 - an extra

pytestmark = pytest.mark.timeout(120)
orders = Queue("orders", dict[str, int])
bills = Queue("bills", dict[str, int])
Ids = Callable[..., Any]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, broker_server: Callable[[str], Server]
) -> AppDatabase:
    return app_database(request.param, tmp_path, broker_server)


@pytest.fixture(params=["same", "outbox"])
async def broker(request: pytest.FixtureRequest, database: AppDatabase) -> AsyncIterator[Broker]:
    url, options = database.url, {}
    if request.param == "outbox":
        url, options = memory_url(), {"outbox": database.url}
    connecting = Broker.connect(url, settings=Settings(), queues=[orders], **options)  # type: ignore[arg-type]
    async with connecting as broker:
        yield broker


async def relayed(broker: Broker) -> None:
    """Publish what was committed, where that takes a relay."""
    if (outbox := session_of(broker).outbox) is not None:
        await asyncio.wait_for(outbox.drain(), 30)


async def ids(broker: Broker, queue: str = "orders") -> list[str]:
    await relayed(broker)
    return [entry.message.id for entry in await broker.peek(queue, 100)]


async def test_a_message_arrives_with_the_commit(broker: Broker, database: AppDatabase) -> None:
    with database.engine() as engine, Session(engine) as session:
        receipt = await broker.publish(orders, {"n": 1}, session=session, id="order-1")
        assert receipt == Receipt("order-1", ("orders",), pending=True)
        assert [counts.total for counts in await broker.counts("orders")] == [0]
        session.commit()

        lost = await broker.publish(orders, {"n": 2}, session=session)
        assert lost.pending
        session.rollback()
    assert await ids(broker) == ["order-1"]


async def test_a_savepoint_takes_its_messages_with_it(
    broker: Broker, database: AppDatabase
) -> None:
    with database.engine() as engine, Session(engine) as session:
        session.execute(text("CREATE TABLE IF NOT EXISTS unrelated (id INTEGER)"))
        session.execute(text("INSERT INTO unrelated VALUES (1)"))  # sqlite3 begins with a change
        first = await broker.publish(orders, {"n": 1}, session=session)
        with session.begin_nested() as nested:
            await broker.publish(orders, {"n": 2}, session=session)
            nested.rollback()
        with session.begin_nested():
            third = await broker.publish(orders, {"n": 3}, session=session)
        session.commit()
        session.execute(text("DROP TABLE unrelated"))
        session.commit()
    assert await ids(broker) == [first.id, third.id]


async def test_sessions_and_connections_of_asyncio(broker: Broker, database: AppDatabase) -> None:
    expected = []
    for url in database.async_urls:
        pytest.importorskip(url.partition("+")[2].partition(":")[0])
        engine = create_async_engine(url)
        async with AsyncSession(engine) as session:
            expected.append((await broker.publish(orders, {"n": 1}, session=session)).id)
            await session.commit()
            await broker.publish(orders, {"n": 2}, session=session)
            await session.rollback()
        async with engine.begin() as connection:
            expected.append((await broker.publish(orders, {"n": 3}, session=connection)).id)
        await engine.dispose()
    assert await ids(broker) == expected


async def test_connections_and_scoped_sessions(broker: Broker, database: AppDatabase) -> None:
    with database.engine() as engine:
        with engine.begin() as connection:
            first = await broker.publish(orders, {"n": 1}, session=connection)
        scoped = scoped_session(sessionmaker(engine))
        second = await broker.publish(orders, {"n": 2}, session=scoped)
        scoped.commit()
        scoped.remove()
    assert await ids(broker) == [first.id, second.id]


async def test_many_messages_keep_their_order_and_options(
    broker: Broker, database: AppDatabase
) -> None:
    options: Any = {"headers": {"kind": "100% a:b"}, "priority": 8}
    with database.engine() as engine, Session(engine) as session:
        producer = broker.producer(orders, **options)
        receipts = await producer.publish_many([{"n": n} for n in range(20)], session=session)
        single = await producer.publish({"n": 20}, session=session)
        late = await broker.publish(orders, {"n": 21}, session=session, delay=60, ttl=90)
        session.commit()
    expected = [each.id for each in receipts if isinstance(each, Receipt)] + [single.id]
    assert await ids(broker) == [*expected, late.id]

    first, *_, last = await broker.peek(orders, 100)
    assert (first.message.priority, dict(first.message.headers)) == (8, options["headers"])
    assert (last.state, 30 < last.due_in <= 60) == ("delayed", True)
    assert last.message.expires_at is not None


async def test_one_id_is_one_message(broker: Broker, database: AppDatabase) -> None:
    with database.engine() as engine, Session(engine) as session:
        await broker.publish(orders, {"n": 1}, session=session, id="twice")
        session.commit()
        again = await broker.publish(orders, {"n": 1}, session=session, id="twice")
        session.commit()
    assert again.duplicate
    assert await ids(broker) == ["twice"]
    assert (await broker.publish(orders, {"n": 1}, id="twice")).duplicate


async def test_a_router_reaches_all_its_queues(broker: Broker, database: AppDatabase) -> None:
    router = Router("events", dict[str, int], kind="topic")
    router.bind(orders, "order.*")
    router.bind(bills, "order.paid")
    await broker.declare(router)
    with database.engine() as engine, Session(engine) as session:
        paid = await broker.publish(router, {"n": 1}, key="order.paid", session=session)
        made = await broker.publish(router, {"n": 2}, key="order.made", session=session)
        session.commit()
        assert await ids(broker) == [paid.id, made.id]
        assert await ids(broker, "bills") == [paid.id]

        if session_of(broker).outbox is None:
            with pytest.raises(Unroutable, match=r"'order\.x\.y'"):
                await broker.publish(router, {"n": 3}, key="order.x.y", session=session)


async def test_a_queue_is_declared_by_its_first_message(
    broker: Broker, database: AppDatabase
) -> None:
    with database.engine() as engine, Session(engine) as session:
        receipt = await broker.publish(bills, {"n": 1}, session=session)
        session.commit()
    assert await ids(broker, "bills") == [receipt.id]


async def test_a_worker_handles_what_was_committed(database: AppDatabase) -> None:
    """The relay runs inside the worker, and a hint after the commit wakes it."""
    app, handled, done = App("shop"), [], asyncio.Event()

    @app.consumer(orders)
    async def handle(order: dict[str, int], ctx: Context) -> None:
        handled.append(order["n"])
        done.set()

    for url, options in ((database.url, {}), (memory_url(), {"outbox": database.url})):
        async with app.connect(url, settings=Settings(), **options) as broker, Worker(app, broker):  # type: ignore[arg-type]
            with database.engine() as engine:
                for number in range(3):
                    with Session(engine) as session:
                        await broker.publish(orders, {"n": number}, session=session)
                        session.rollback() if number == 1 else session.commit()
                    if number != 1:
                        await asyncio.wait_for(done.wait(), 30)
                        done.clear()
    assert handled == [0, 2, 0, 2]


async def test_a_blocking_handler_uses_the_session_in_its_thread(database: AppDatabase) -> None:
    app, done = App("shop"), asyncio.Event()
    loop = asyncio.get_running_loop()

    with database.engine() as engine:
        scoped = scoped_session(sessionmaker(engine))  # one session for each thread

        @app.consumer(orders)
        def handle(order: dict[str, int], ctx: BlockingContext) -> None:
            ctx.publish(bills, order, session=scoped, id="bill-1")
            scoped.commit()
            scoped.remove()
            loop.call_soon_threadsafe(done.set)

        connecting = app.connect(database.url, settings=Settings(), queues=[bills])
        async with connecting as broker, Worker(app, broker):
            await broker.publish(orders, {"n": 1})
            await asyncio.wait_for(done.wait(), 30)
            assert await ids(broker, "bills") == ["bill-1"]


async def test_a_broker_that_is_away_takes_nothing_from_the_publisher(
    database: AppDatabase,
) -> None:
    async with Broker.connect(
        memory_url(), settings=Settings(), queues=[orders], outbox=database.url
    ) as broker:
        session_of(broker).connection.connected_event.clear()  # as after a loss
        with database.engine() as engine, Session(engine) as session:
            known = await broker.publish(orders, {"n": 1}, session=session)
            unknown = await broker.publish(bills, {"n": 2}, session=session)
            session.commit()
        session_of(broker).connection.connected_event.set()
        assert await ids(broker) == [known.id]
        assert await ids(broker, "bills") == [unknown.id]  # its parcel declared the queue


async def test_a_broker_that_is_lost_while_it_declares_takes_nothing_from_the_publisher(
    database: AppDatabase, faults: Faults, url: str
) -> None:
    plugins = Plugins()
    plugins.register(plugin_for(faults))
    async with Broker.connect(
        url.replace("memory://", "faulty://"),
        plugins=plugins,
        settings=Settings(),
        outbox=database.url,
    ) as broker:
        faults.next("declare", lost())
        faults.next("open", *[raised(Broken("no server"))] * 1_000)
        with database.engine() as engine, Session(engine) as session:
            receipt = await broker.publish(bills, {"n": 1}, session=session)
            session.commit()
        assert receipt.pending
        assert broker.events.counts["publish.failed"] == 0
        faults.forget("open")
        assert await ids(broker, "bills") == [receipt.id]  # its parcel declared the queue


async def test_a_database_as_broker_that_was_away_from_the_start(
    database: AppDatabase, tmp_path: Path
) -> None:
    pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
    away = {
        "url": "postgresql://me@127.0.0.1:9/app",
        "settings": Settings(),
        "fallback": f"sqlite:///{tmp_path / 'spool.db'}",
    }
    with database.engine() as engine, Session(engine) as session:
        async with Broker.connect(**away, outbox=database.url) as broker:  # type: ignore[arg-type]
            receipt = await broker.publish(orders, {"n": 1}, session=session)
            assert receipt.pending
            session.commit()
        async with Broker.connect(**away) as broker:  # type: ignore[arg-type]
            with pytest.raises(ConnectionLost, match="not connected yet"):
                await broker.publish(orders, {"n": 2}, session=session)

    async with Broker.connect(memory_url(), settings=Settings(), outbox=database.url) as broker:
        assert await ids(broker) == [receipt.id]


async def test_an_outbox_that_was_deleted_is_declared_again_by_a_relay(
    database: AppDatabase,
) -> None:
    router = Router("events", dict[str, int])
    router.bind(orders, "new")
    async with Broker.connect(
        memory_url(), settings=Settings(), queues=[orders], outbox=database.url
    ) as broker:
        async with Broker.connect(database.url, settings=Settings()) as admin:
            await admin.delete("mq.outbox")
        with database.engine() as engine, Session(engine) as session:
            targets: list[tuple[Any, dict[str, Any]]] = [
                (orders, {}),
                (router, {"key": "new"}),
            ]
            for to, options in targets:
                with pytest.raises(
                    QueueNotFound, match=r"'mq\.outbox'.*`mqcore relay` declares it"
                ):
                    await broker.publish(to, {"n": 1}, session=session, **options)
            session.rollback()
            assert await ids(broker) == []
            receipt = await broker.publish(orders, {"n": 2}, session=session)
            session.commit()
        assert await ids(broker) == [receipt.id]


async def test_relays_of_two_processes_and_the_command(
    database: AppDatabase, tmp_path: Path
) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    command = [sys.executable, "-m", "mqcore", "relay", database.url, "--url", other, "--drain"]
    async with Broker.connect(
        other, settings=Settings(), queues=[orders], outbox=database.url
    ) as broker:
        expected = []
        with database.engine() as engine, Session(engine) as session:
            for number in range(300):
                receipt = await broker.publish(orders, {"n": number}, session=session)
                expected.append(receipt.id)
            session.commit()
        processes = [
            await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        for process in processes:
            _, errors = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 0, errors
        first, second = await broker.peek(orders, 200), []
        second = await broker.peek(orders, 200, first[-1].key)
        assert [entry.message.id for entry in (*first, *second)] == expected


# The blocking API


def test_the_blocking_api_uses_the_session_in_the_callers_thread(database: AppDatabase) -> None:
    with (
        blocking.Broker.connect(database.url, settings=Settings(), queues=[orders]) as broker,
        database.engine() as engine,
        Session(engine) as session,
    ):
        one = broker.publish(orders, {"n": 1}, session=session)
        many = broker.publish_many(orders, [{"n": 2}, {"n": 3}], session=session)
        producer = broker.producer(orders)
        more = [producer.publish({"n": 4}, session=session)]
        more += producer.publish_many([{"n": 5}], session=session)  # type: ignore[arg-type]
        session.commit()
        found = [entry.message.id for entry in broker.peek("orders", 100)]
        assert found == [each.id for each in (one, *many, *more) if isinstance(each, Receipt)]

        scoped = scoped_session(sessionmaker(engine))  # one session for each thread
        last = broker.publish(orders, {"n": 6}, session=scoped)
        scoped.commit()
        scoped.remove()
        assert [entry.message.id for entry in broker.peek("orders", 100)] == [*found, last.id]

        engine_of_asyncio = create_async_engine(database.async_urls[0])
        with pytest.raises(ConfigurationError, match=r"mqcore\.sync cannot use"):
            broker.publish(orders, {"n": 6}, session=AsyncSession(engine_of_asyncio))


# Bad input


async def test_what_is_no_session(broker: Broker) -> None:
    for wrong in (None, "session", object(), sqlalchemy.text("SELECT 1"), sessionmaker()):
        with pytest.raises(ConfigurationError, match="session= takes a Session"):
            await broker.publish(orders, {"n": 1}, session=wrong)


async def test_where_a_session_makes_no_sense(broker: Broker, database: AppDatabase) -> None:
    with database.engine() as engine, Session(engine) as session:
        with pytest.raises(ValidationError, match="takes no session"):
            await broker.request(orders, {"n": 1}, session=session)
        with pytest.raises(ValidationError, match="takes no session"):
            broker.producer(orders, session=session)
        with pytest.raises(ValidationError, match="takes no id"):
            await broker.publish_many(orders, [{"n": 1}], session=session, id="x")
        with pytest.raises(ValidationError, match="nothing was sent"):
            await broker.publish(orders, {"n": "x"}, session=session)  # type: ignore[dict-item]


async def test_health_shows_what_waits_in_the_outbox(database: AppDatabase) -> None:
    connecting = Broker.connect(
        memory_url(), settings=Settings(), queues=[orders], outbox=database.url
    )
    async with connecting as broker:
        outbox = session_of(broker).outbox
        assert outbox is not None

        def health() -> tuple[int, bool, str]:
            found = broker.health().outbox
            assert found is not None
            assert (found.age > 0) == (found.depth > 0)
            return found.depth, found.usable, found.error

        assert health() == (0, True, "")
        with database.engine() as engine, Session(engine) as session:
            await broker.publish(orders, {"n": 1}, session=session)
            await broker.publish(orders, {"n": 2}, session=session)
            session.commit()
        await outbox._look()
        assert health() == (2, True, "")

        await outbox.drain()
        await outbox._look()
        assert health() == (0, True, "")


async def test_a_database_without_tables(broker: Broker, tmp_path: Path) -> None:
    bare = AppDatabase("sqlite", str(tmp_path / "bare.db"))
    with (
        bare.engine() as engine,
        Session(engine) as session,
        pytest.raises(ConfigurationError) as caught,
    ):
        await broker.publish(orders, {"n": 1}, session=session)
    shown = str(caught.value)
    assert "neither the broker nor its outbox" in shown
    assert "outbox=URL" in shown
    if session_of(broker).connection.capabilities.backend == "sqlite":
        assert "mqcore sql upgrade URL" in shown


async def test_a_session_where_no_outbox_is_set(database: AppDatabase) -> None:
    async with Broker.connect(memory_url(), settings=Settings()) as broker:
        with (
            database.engine() as engine,
            Session(engine) as session,
            pytest.raises(ConfigurationError, match="no outbox is set"),
        ):
            await broker.publish(orders, {"n": 1}, session=session)


async def test_tables_that_are_newer(broker: Broker, database: AppDatabase) -> None:
    meta = database.table("meta")
    with database.engine() as engine, Session(engine) as session:
        session.execute(text(f"UPDATE {meta} SET value = 77 WHERE key = 'schema'"))  # noqa: S608 - a name of ours
        with pytest.raises(ConfigurationError, match=r"version 77.*Upgrade mqcore"):
            await broker.publish(orders, {"n": 1}, session=session)
        session.rollback()


async def test_a_transaction_that_has_failed(broker: Broker, database: AppDatabase) -> None:
    if database.product == "sqlite":
        pytest.skip("SQLite goes on after an error")
    with database.engine() as engine, Session(engine) as session:
        with pytest.raises(sqlalchemy.exc.ProgrammingError):
            session.execute(text("SELECT * FROM nothing"))
        with pytest.raises(PublishFailed, match="transaction has failed") as caught:
            await broker.publish(orders, {"n": 12345}, session=session, id="mine")
        assert caught.value.id == "mine"
        assert "12345" not in str(caught.value)
        assert "SELECT" not in str(caught.value)
        (error,) = await broker.publish_many(orders, [{"n": 1}], session=session)
        assert isinstance(error, PublishFailed)
        session.rollback()

        receipt = await broker.publish(orders, {"n": 1}, session=session)
        session.commit()
    assert await ids(broker) == [receipt.id]


async def test_what_is_closed(broker: Broker, database: AppDatabase) -> None:
    with database.engine() as engine:
        session = Session(engine, close_resets_only=False)
        session.close()
        connection = engine.connect()
        connection.close()
        for closed in (session, connection):
            with pytest.raises(PublishFailed, match=r"(?i)closed"):
                await broker.publish(orders, {"n": 1}, session=closed)

    engine_of_asyncio = create_async_engine(database.async_urls[0])
    with pytest.raises(PublishFailed, match="not been started"):
        await broker.publish(orders, {"n": 1}, session=engine_of_asyncio.connect())
    with pytest.raises(PublishFailed, match="bind"):
        await broker.publish(orders, {"n": 1}, session=Session())


async def test_autocommit_is_refused(broker: Broker, database: AppDatabase) -> None:
    with (
        database.engine(isolation_level="AUTOCOMMIT") as engine,
        Session(engine) as session,
        pytest.raises(ConfigurationError, match="autocommit"),
    ):
        await broker.publish(orders, {"n": 1}, session=session)
    with database.engine() as engine:
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(ConfigurationError, match="autocommit"):
            await broker.publish(orders, {"n": 1}, session=connection)
        connection.close()


async def test_queues_that_cannot_take_it(broker: Broker, database: AppDatabase) -> None:
    if session_of(broker).outbox is not None:
        pytest.skip("the relay finds out")
    small = Queue("small", dict[str, int], max_length=3)
    await broker.declare(small)
    with database.engine() as engine, Session(engine) as session:
        with pytest.raises(QueueNotFound):
            await broker.publish("nowhere", {"n": 1}, session=session)
        with pytest.raises(PublishFailed, match="max_length=3"):
            await broker.publish(small, {"n": 1}, session=session)
        receipt = await broker.publish(orders, {"n": 1}, session=session)
        session.commit()
    assert await ids(broker) == [receipt.id]


async def test_what_the_broker_cannot_route_or_find_is_a_dead_letter_of_the_outbox(
    database: AppDatabase,
) -> None:
    async with Broker.connect(
        memory_url(), settings=Settings(), queues=[orders], outbox=database.url
    ) as broker:
        with database.engine() as engine, Session(engine) as session:
            await broker.publish("nowhere", {"n": 1}, session=session)
            good = await broker.publish(orders, {"n": 2}, session=session)
            session.commit()
        assert await ids(broker) == [good.id]
        async with Broker.connect(database.url, settings=Settings()) as admin:
            (letter,) = await admin.dead_letters("mq.outbox").list()
            assert "nowhere" in letter.error


@pytest.mark.parametrize("outbox", [1, "redis", "nothing://x", "sqlite://host/x"])
async def test_outboxes_that_are_not_usable(outbox: Any) -> None:
    with pytest.raises(ConfigurationError):
        Broker.connect(memory_url(), settings=Settings(), outbox=outbox)


async def test_an_outbox_needs_a_database() -> None:
    broker = Broker.connect(memory_url(), settings=Settings(), outbox=memory_url())
    with pytest.raises(UnsupportedFeature, match="outbox= needs a database"):
        await broker.open()
    assert not broker.health().connected


async def test_no_password_is_shown(tmp_path: Path) -> None:
    broker = Broker.connect(
        memory_url(),
        settings=Settings(),
        outbox="postgresql://me:geheim@127.0.0.1:9/app",
    )
    with pytest.raises(Exception, match="cannot connect") as caught:
        await broker.open()
    assert "geheim" not in str(caught.value)
    assert "geheim" not in repr(Settings(outbox="postgresql://me:geheim@h/app"))  # type: ignore[arg-type]
