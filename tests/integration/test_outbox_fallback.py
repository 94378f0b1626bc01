"""An outbox and a fallback together: the broker is away, and both take what is published."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.faulty import Broken, Faults, lost_answer, plugin_for, raised

from mqcore import App, Broker, Fallback, Queue, Settings, Worker
from mqcore.broker import session_of
from mqcore.config.plugins import Plugins
from mqcore.testing import VirtualClock

pytest.importorskip("sqlalchemy", reason="pip install 'mqcore[sqlalchemy]'")
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from sqlalchemy.engine import Engine

pytestmark = pytest.mark.timeout(120)
numbers, others = Queue("numbers", int), Queue("others", int)
AWAY = 10_000


class Shop:
    """An application with a worker, an outbox and a fallback; its broker fails as a test says."""

    def __init__(self, folder: Path, url: str, clock: VirtualClock, faults: Faults) -> None:
        self.path, self.url, self.clock, self.faults = folder / "app.db", url, clock, faults
        self.spool: str | None = f"sqlite:///{folder / 'spool.db'}"
        self.plugins = Plugins()
        self.plugins.register(plugin_for(faults))
        self.engine: Engine = create_engine(f"sqlite:///{self.path}")
        self.handled: list[int] = []

    @asynccontextmanager
    async def running(
        self, *, consume: bool = False, worker: bool = True, settings: Settings | None = None
    ) -> AsyncIterator[Broker]:
        app = App("shop")

        @app.consumer(numbers, concurrency=1)
        async def handle(number: int) -> None:
            self.handled.append(number)

        options: Any = {} if self.spool is None else {"fallback": self.fallback(consume=consume)}
        broker = app.connect(
            self.url.replace("memory://", "faulty://"),
            clock=self.clock,
            plugins=self.plugins,
            outbox=f"sqlite:///{self.path}",
            settings=settings or Settings(),
            queues=[numbers],
            **options,
        )
        await broker.open()
        running = Worker(app, broker, grace=1.0) if worker else None
        if running is not None:
            await ended(self.clock, running.start())
        try:
            yield broker
        finally:
            if running is not None:
                await ended(self.clock, running.drain())
            await ended(self.clock, broker.close())

    def fallback(self, *, consume: bool) -> Fallback:
        return Fallback(url=self.spool, consume=consume)  # type: ignore[arg-type]  # a text is a URL

    async def commit(self, broker: Broker, *values: int) -> None:
        """Publish in one transaction."""
        with Session(self.engine) as session:
            for value in values:
                receipt = await broker.publish(numbers, value, session=session, id=f"m{value}")
                assert receipt.pending
                assert not receipt.spooled
            session.commit()

    def is_away(self) -> None:
        self.faults.next("open", *[raised(Broken("no server"))] * AWAY)
        self.faults.lose()

    def is_back(self) -> None:
        self.faults.forget("open")


async def ended(clock: VirtualClock, call: Any) -> Any:
    task = asyncio.ensure_future(call)
    while not task.done():
        await clock.advance(0.1)
    return await task


async def until(clock: VirtualClock, condition: Callable[[], object], within: float = 90.0) -> None:
    end = clock.monotonic() + within
    while not condition():
        assert clock.monotonic() < end, "it did not happen in time"
        await clock.advance(0.1)


async def waiting(broker: Broker) -> int:
    """Return how many messages wait in the outbox and in the spool."""
    outbox = session_of(broker).outbox
    assert outbox is not None
    await outbox._look()
    health = broker.health()
    assert health.outbox is not None
    return health.outbox.depth + (health.spool.depth if health.spool is not None else 0)


@pytest.fixture
def shop(tmp_path: Path, url: str, clock: VirtualClock, faults: Faults) -> Iterator[Shop]:
    shop = Shop(tmp_path, url, clock, faults)
    yield shop
    shop.engine.dispose()


@pytest.mark.parametrize("consume", [False, True])
async def test_both_are_empty_when_the_broker_is_back(
    shop: Shop, clock: VirtualClock, broker: Broker, *, consume: bool
) -> None:
    """The broker is away from the start. What is committed and what is published arrives once."""
    shop.is_away()
    async with shop.running(consume=consume, worker=False) as app:
        await shop.commit(app, 1, 2, 3)
        for value in (11, 12, 13):
            receipt = await ended(clock, app.publish(numbers, value, id=f"m{value}"))
            assert receipt.spooled
        assert await waiting(app) == 6
        assert app.health().degraded
        shop.is_back()

    async with shop.running(consume=consume) as app:
        await until(clock, lambda: len(shop.handled) == 6)
        await clock.advance(60)
        assert await waiting(app) == 0
        assert not app.health().degraded
    assert [value for value in shop.handled if value < 10] == [1, 2, 3]
    assert [value for value in shop.handled if value > 10] == [11, 12, 13]
    [counts] = await broker.counts("numbers")
    assert counts.total == 0


async def test_without_a_spool_the_outbox_waits(shop: Shop, clock: VirtualClock) -> None:
    """The process needs the broker at its start; the loss of it later is no loss of messages."""
    shop.spool = None
    async with shop.running() as app:
        await shop.commit(app, 1)
        await until(clock, lambda: shop.handled == [1])
        shop.is_away()
        await clock.advance(1)
        await shop.commit(app, 2, 3)
        await clock.advance(60)
        assert shop.handled == [1]
        assert await waiting(app) == 2
        shop.is_back()
        await until(clock, lambda: shop.handled == [1, 2, 3])
        await clock.advance(10)
        assert await waiting(app) == 0


async def test_what_was_committed_waits_in_the_outbox_unless_workers_use_the_spool(
    shop: Shop, clock: VirtualClock
) -> None:
    shop.is_away()
    async with shop.running(consume=False) as app:
        await shop.commit(app, 1, 2)
        await clock.advance(60)
        assert shop.handled == []
        health = app.health()
        assert health.outbox is not None
        assert health.outbox.depth == 2
        assert health.spool is not None
        assert health.spool.depth == 0


async def test_workers_that_use_the_spool_handle_what_was_committed(
    shop: Shop, clock: VirtualClock, broker: Broker
) -> None:
    """While the broker is away, when it goes, and when it is back: each once and in order."""
    shop.is_away()
    async with shop.running(consume=True) as app:
        await shop.commit(app, *range(5))
        await until(clock, lambda: shop.handled == list(range(5)))
        shop.is_back()
        await clock.advance(30)
        await shop.commit(app, *range(5, 10))
        await until(clock, lambda: shop.handled == list(range(10)))
        shop.is_away()
        await clock.advance(1)
        await shop.commit(app, *range(10, 15))
        await until(clock, lambda: shop.handled == list(range(15)))
        shop.is_back()
        await clock.advance(60)
        assert await waiting(app) == 0
    assert shop.handled == list(range(15))
    [counts] = await broker.counts("numbers")
    assert counts.total == 0


async def test_an_application_without_its_broker_works_on_its_spool(
    shop: Shop, clock: VirtualClock
) -> None:
    off = Settings(enabled=False)
    async with shop.running(consume=True, settings=off) as app:
        await shop.commit(app, 1, 2)
        await ended(clock, app.publish(numbers, 3))
        await until(clock, lambda: sorted(shop.handled) == [1, 2, 3])
        await clock.advance(10)
        assert await waiting(app) == 0


@pytest.mark.parametrize("consume", [False, True])
async def test_an_answer_that_is_lost_makes_no_second_copy(
    shop: Shop, clock: VirtualClock, broker: Broker, *, consume: bool
) -> None:
    """The broker has stored what the relay publishes, and the connection breaks."""
    async with shop.running(consume=consume, worker=False) as app:
        shop.faults.next("publish", lost_answer())
        await shop.commit(app, 1, 2, 3)
        outbox = session_of(app).outbox
        assert outbox is not None
        await ended(clock, outbox.drain())
        await clock.advance(60)
        assert await waiting(app) == 0
        entries = await broker.peek("numbers", 10)
        assert [entry.message.id for entry in entries] == ["m1", "m2", "m3"]


async def test_a_full_spool_holds_back_what_was_committed(shop: Shop, clock: VirtualClock) -> None:
    shop.is_away()
    shop.fallback = lambda *, consume: Fallback(  # type: ignore[method-assign]  # another limit
        url=shop.spool,  # type: ignore[arg-type]  # a text is a URL
        consume=consume,
        max_length=2,
    )
    async with shop.running(consume=True, worker=False) as app:
        outbox = session_of(app).outbox
        assert outbox is not None
        relaying = asyncio.create_task(outbox.relay())
        await shop.commit(app, *range(5))
        await clock.advance(120)
        assert await waiting(app) == 5
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
    async with Broker.connect(f"sqlite:///{shop.path}", settings=Settings()) as own:
        assert await own.peek("mq.outbox.dlq", 10) == []

    shop.is_back()
    async with shop.running(consume=True) as app:
        await until(clock, lambda: len(shop.handled) == 5)
        assert shop.handled == list(range(5))


async def test_another_process_relays_what_a_dead_one_has_left(
    shop: Shop, clock: VirtualClock, tmp_path: Path
) -> None:
    """Outbox and spool are files; the process that comes next empties both."""
    shop.is_away()
    async with shop.running(worker=False) as app:
        await shop.commit(app, 1)
        await ended(clock, app.publish(others, 2))
    shop.is_back()
    async with shop.running() as app:
        await until(clock, lambda: shop.handled == [1])
        await until(clock, lambda: app.events.counts["message.relayed"] == 2)
        [entry] = await app.peek("others", 10)
        assert entry.message.body == b"2"
    assert (tmp_path / "spool.db").exists()
