"""Handlers with a session on an SQLite file that publish to the same file (`once=`).

From its first write on the handler's transaction has the file's only write lock. A publish outside
of that transaction would wait for its own handler.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mqcore import App, Broker, ConfigurationError, Queue, RetryPolicy, Settings, Worker, fixed
from mqcore.sync import Broker as BlockingBroker
from mqcore.testing import memory_url

pytest.importorskip("sqlalchemy", reason="pip install 'mqcore[sqlalchemy]'")
pytest.importorskip("aiosqlite", reason="pip install aiosqlite")
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from mqcore_sql import SqlInbox, share

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)
jobs, other = Queue("jobs", int), Queue("other", int)
INSERT = text("INSERT INTO rows VALUES (1)")


class Bench:
    """A file with the rows of an application and its queues, and a handler of each kind."""

    def __init__(self, path: Path, *, is_shared: bool) -> None:
        self.url = f"sqlite:///{path}"
        self.engine = create_engine(self.url)
        self.async_engine = create_async_engine(self.url.replace("sqlite:", "sqlite+aiosqlite:"))
        if is_shared:
            share(self.engine)
            share(self.async_engine)
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE rows (n INTEGER)"))
        self.errors: list[Exception] = []

    def app(self) -> App:
        inbox = SqlInbox(async_sessionmaker(self.async_engine), sessionmaker(self.engine))
        return App("bench", inbox=inbox)

    def async_app(self, work: Callable[[Any], Awaitable[object]]) -> App:
        """Return an app whose handler notes what `work` raises."""
        app = self.app()

        async def handle(_: int, ctx: Any) -> None:
            try:
                await work(ctx)
            except ConfigurationError as error:
                self.errors.append(error)

        app.register(jobs, handle, {"once": "1h", "retry": RetryPolicy(1, fixed(0))})
        return app

    def blocking_app(self, work: Callable[[Any], object]) -> App:
        app = self.app()

        def handle(_: int, ctx: Any) -> None:
            try:
                work(ctx)
            except ConfigurationError as error:
                self.errors.append(error)

        app.register(jobs, handle, {"once": "1h", "retry": RetryPolicy(1, fixed(0))})
        return app

    @asynccontextmanager
    async def handled(self, app: App, url: str = "", **options: Any) -> AsyncIterator[Broker]:
        """Let the app handle one message, then give the broker."""
        async with (
            app.connect(url or self.url, settings=Settings(), queues=[other], **options) as broker,
            Worker(app, broker),
        ):
            await broker.request(jobs, 1, timeout=60)
            yield broker

    def refused(self) -> str:
        """Return the text of the only error."""
        [error] = self.errors
        return str(error)


@pytest.fixture(params=["plain", "shared"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "app.db", is_shared=request.param == "shared")
    yield bench
    bench.engine.dispose()
    asyncio.run(bench.async_engine.dispose())


async def ready(broker: Broker) -> int:
    [counts] = await broker.counts("other")
    return counts.ready or 0


async def test_a_publish_after_a_write_is_refused_at_once(bench: Bench) -> None:
    async def work(ctx: Any) -> None:
        await ctx.publish(other, 1)  # nothing is written yet
        await ctx.session.execute(INSERT)
        await ctx.publish(other, 2)

    async with bench.handled(bench.async_app(work)) as broker:
        text = bench.refused()
        assert "publishing to 'other'" in text
        assert "session=ctx.session" in text
        assert "app.db" in text
        assert await ready(broker) == 1


async def test_the_same_in_a_blocking_handler(bench: Bench) -> None:
    def work(ctx: Any) -> None:
        ctx.publish(other, 1)
        ctx.session.execute(INSERT)
        ctx.publish(other, 2)

    async with bench.handled(bench.blocking_app(work)) as broker:
        assert "session=ctx.session" in bench.refused()
        assert await ready(broker) == 1


async def test_in_the_transaction_and_after_a_rollback_it_is_published(bench: Bench) -> None:
    async def work(ctx: Any) -> None:
        await ctx.session.execute(INSERT)
        await ctx.session.rollback()
        await ctx.publish(other, 1)
        await ctx.session.execute(INSERT)
        await ctx.publish(other, 2, session=ctx.session)

    async with bench.handled(bench.async_app(work)) as broker:
        assert bench.errors == []
        assert await ready(broker) == 2


async def test_a_handler_that_only_reads_holds_nothing_up(bench: Bench) -> None:
    async def work(ctx: Any) -> None:
        await ctx.session.execute(text("SELECT n FROM rows"))
        await ctx.publish(other, 1)

    async with bench.handled(bench.async_app(work)) as broker:
        assert bench.errors == []
        assert await ready(broker) == 1


async def test_a_queue_that_is_not_declared_and_many_payloads(bench: Bench) -> None:
    async def work(ctx: Any) -> None:
        await ctx.session.execute(INSERT)
        await ctx.publish(Queue("new", int), 2)

    async with bench.handled(bench.async_app(work)):
        assert "publishing to 'new'" in bench.refused()

    async def many(_: Any) -> None:
        await holder[0].publish_many(other, [1, 2])

    async def write_and_publish(ctx: Any) -> None:
        await ctx.session.execute(INSERT)
        await many(ctx)

    bench.errors.clear()
    holder: list[Broker] = []
    app = bench.async_app(write_and_publish)
    async with app.connect(bench.url, settings=Settings(), queues=[other]) as broker:
        holder.append(broker)
        async with Worker(app, broker):
            await broker.request(jobs, 1, timeout=60)
            assert "publishing to 'other'" in bench.refused()
            assert await ready(broker) == 0


async def test_another_broker_on_the_file_is_refused_and_one_elsewhere_is_not(
    bench: Bench,
) -> None:
    async with (
        Broker.connect(bench.url, settings=Settings(), queues=[other]) as same,
        Broker.connect(memory_url(), settings=Settings(), queues=[other]) as elsewhere,
    ):

        async def work(ctx: Any) -> None:
            await ctx.session.execute(INSERT)
            await elsewhere.publish(other, 1)
            await same.publish(other, 1)

        async with bench.handled(bench.async_app(work), memory_url()) as broker:
            assert "publishing to 'other'" in bench.refused()
            assert await ready(broker) == 0
        assert await ready(same) == 0
        assert await ready(elsewhere) == 1


async def test_a_blocking_broker_on_the_file(bench: Bench) -> None:
    same = BlockingBroker.connect(bench.url, settings=Settings(), queues=[other])
    await asyncio.to_thread(same.open)

    def work(ctx: Any) -> None:
        ctx.session.execute(INSERT)
        same.publish(other, 1)

    async with bench.handled(bench.blocking_app(work)) as broker:
        assert "publishing to 'other'" in bench.refused()
        assert await ready(broker) == 0
    await asyncio.to_thread(same.close)


async def test_a_spool_in_the_file_is_refused_while_the_broker_is_away(
    bench: Bench, tmp_path: Path
) -> None:
    async with Broker.connect(
        "redis://localhost:1/0", fallback=bench.url, settings=Settings()
    ) as away:

        async def work(ctx: Any) -> None:
            await away.publish(other, 1)  # this declares its lane
            await ctx.session.execute(INSERT)
            await away.publish(other, 2)

        elsewhere = f"sqlite:///{tmp_path / 'queues.db'}"
        async with bench.handled(bench.async_app(work), elsewhere) as broker:
            assert "publishing to 'other'" in bench.refused()
            assert await ready(broker) == 0


async def test_a_task_that_outlives_the_handler_may_publish(bench: Bench) -> None:
    """It has the handler's context, but the transaction has ended."""
    may_publish = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def later(ctx: Any) -> None:
        await may_publish.wait()
        await ctx.publish(other, 1)

    async def work(ctx: Any) -> None:
        await ctx.session.execute(INSERT)
        tasks.append(asyncio.create_task(later(ctx)))

    async with bench.handled(bench.async_app(work)) as broker:
        may_publish.set()
        await tasks[0]
        assert bench.errors == []
        assert await ready(broker) == 1
