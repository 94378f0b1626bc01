"""Confirms and acknowledgements that are late, lost or unanswered when a worker ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from support.slow_proxy import SlowProxy
from support.waiting import eventually

from mqcore import App, Broker, Queue, Reject, RetryPolicy, Settings, Worker, fixed
from mqcore.messages.message import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(120)
COUNT = 20
LEAST, LATE = 0.3, 0.6
"""Seconds by which answers are late: longer than the tail of a drain, which comes after its grace.
"""
TYPES = pytest.mark.parametrize("query", ["", "durability=machine"], ids=["classic", "quorum"])


@pytest.fixture
async def proxy(rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SlowProxy]:
    """The proxy between the worker and RabbitMQ; it delays nothing until the test says so."""
    monkeypatch.setattr("support.slow_proxy.STEADY_AFTER", 0.0)
    parts = urlsplit(rabbitmq_url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with SlowProxy(parts.hostname, parts.port, 0.0, 1) as proxy:
        yield proxy


class Site:
    """One queue, reached directly by the test and through the proxy by its workers."""

    def __init__(self, url: str, query: str, proxy: SlowProxy) -> None:
        self.queue = Queue(f"t.{new_id()[:12]}", str, retry=RetryPolicy(3, fixed(0)))
        self.direct = f"{url}{'&' if '?' in url else '?'}{query}" if query else url
        self.slow = self.direct.replace(f":{urlsplit(url).port}", f":{proxy.port}", 1)
        self.started: Counter[str] = Counter()
        self.go = asyncio.Event()

    async def handle(self, what: str) -> None:
        self.started[what] += 1
        await self.go.wait()
        if what.startswith("reject"):
            raise Reject("as its name says")
        if what.startswith("retry") and self.started[what] == 1:
            raise ValueError("as its name says")

    def app(self, **options: Any) -> App:
        app = App("late")
        app.consumer(self.queue, concurrency=COUNT, prefetch=COUNT, **options)(self.handle)
        return app

    async def left(self, broker: Broker) -> Counter[str]:
        """Count what is in the queue now, by payload."""
        found: Counter[str] = Counter()
        async with broker.consume(self.queue) as consumer:
            while (delivery := await consumer.get(timeout=1)) is not None:
                found[delivery.value] += 1
                await delivery.ack()
        return found


@TYPES
@pytest.mark.parametrize("kind", ["do", "reject", "retry"])
async def test_late_answers_at_a_drain_double_nothing(
    rabbitmq_url: str, proxy: SlowProxy, query: str, kind: str
) -> None:
    site = Site(rabbitmq_url, query, proxy)
    async with Broker.connect(site.direct, settings=Settings()) as direct:
        await direct.publish_many(site.queue, [f"{kind}-{number}" for number in range(COUNT)])
        async with site.app().connect(site.slow, settings=Settings()) as broker:
            worker = Worker(site.app(), broker, grace=20)
            async with worker:
                await eventually(lambda: len(site.started) == COUNT, 20)
                proxy.least, proxy.late = LEAST, LATE
                site.go.set()
        letters = Counter(letter.body for letter in await direct.dead_letters(site.queue).list())
        left = await site.left(direct)
        await direct.delete(site.queue)
    once = Counter(f"{kind}-{number}" for number in range(COUNT))
    assert letters == (Counter(name.encode() for name in once) if kind == "reject" else {})
    assert left == (once if kind == "retry" else {})


@TYPES
async def test_answers_that_are_too_late_leave_one_duplicate_for_each_end(
    rabbitmq_url: str, proxy: SlowProxy, query: str
) -> None:
    """Without any grace none of them is heard, and RabbitMQ cannot move in one step (G3)."""
    site, ends = Site(rabbitmq_url, query, proxy), 3
    async with Broker.connect(site.direct, settings=Settings()) as direct:
        await direct.publish_many(site.queue, [f"reject-{number}" for number in range(COUNT)])
        site.go.set()
        for _ in range(ends):
            proxy.least = proxy.late = 0.0
            site.started.clear()
            async with (
                site.app().connect(site.slow, settings=Settings()) as broker,
                Worker(site.app(), broker, grace=0),
            ):
                proxy.least = proxy.late = 2.0
                await asyncio.sleep(0.3)
        letters = Counter(letter.body for letter in await direct.dead_letters(site.queue).list())
        left = await site.left(direct)
        await direct.delete(site.queue)
    copies = letters + Counter({name.encode(): count for name, count in left.items()})
    assert set(copies) == {f"reject-{number}".encode() for number in range(COUNT)}, "none is lost"
    assert max(copies.values()) <= 1 + ends, "one duplicate for each end, at most"


@TYPES
async def test_an_acknowledgement_that_never_arrives_starts_no_handler(
    rabbitmq_url: str, proxy: SlowProxy, query: str
) -> None:
    """At most once: RabbitMQ delivers the message again, so no handler may have started (G2)."""
    site = Site(rabbitmq_url, query, proxy)
    site.go.set()
    names = [f"do-{number}" for number in range(COUNT)]
    async with Broker.connect(site.direct, settings=Settings()) as direct:
        await direct.declare(site.queue)
        app = site.app(ack_first=True)
        async with (
            app.connect(site.slow, settings=Settings()) as broker,
            Worker(app, broker, grace=5),
        ):
            await direct.publish(site.queue, "first")
            await eventually(lambda: site.started["first"], 20)
            proxy.deaf = True
            await direct.publish_many(site.queue, names)
            await eventually(lambda: broker.events.counts["message.done"] == 1 + COUNT, 20)
            await asyncio.sleep(0.1)  # for a handler that is started without a proof
            proxy.reset()
            await eventually(lambda: len(site.started) == 1 + COUNT, 20)
        assert await site.left(direct) == {}
        await direct.delete(site.queue)
    assert set(site.started.values()) == {1}


@TYPES
async def test_a_silent_broker_does_not_hold_up_the_end(
    rabbitmq_url: str, proxy: SlowProxy, query: str
) -> None:
    """SIGTERM, and nothing answers any more: all has ended by grace + 1 s (G13).

    One of three has to be in time.
    """
    grace, took = 0.2, list[float]()
    loop = asyncio.get_running_loop()
    for _ in range(3):
        proxy.least = proxy.late = 0.0
        site = Site(rabbitmq_url, query, proxy)
        async with Broker.connect(site.direct, settings=Settings()) as direct:
            await direct.publish_many(site.queue, [f"do-{number}" for number in range(COUNT + 5)])
            app = site.app()
            async with app.connect(site.slow, settings=Settings()) as broker:
                running = asyncio.create_task(Worker(app, broker, grace=grace).run())
                await eventually(lambda site=site: len(site.started) == COUNT, 20)
                proxy.least = proxy.late = 3600.0
                began = loop.time()
                os.kill(os.getpid(), signal.SIGTERM)
                await running
            took.append(loop.time() - began)
            await direct.delete(site.queue)
    assert min(took) <= grace + 1.0, took


@pytest.mark.parametrize("after", [0.05, 0.5, 1.1])
async def test_a_close_that_is_cancelled_keeps_nothing(
    rabbitmq_url: str, proxy: SlowProxy, after: float
) -> None:
    """The connection lasts, and the broker would keep messages of an abandoned consumer (G5)."""
    site = Site(rabbitmq_url, "", proxy)
    async with (
        Broker.connect(site.direct, settings=Settings()) as direct,
        Broker.connect(site.slow, settings=Settings()) as slow,
    ):
        await direct.publish_many(site.queue, ["a", "b"])
        subscription = await slow._session.connection.backend.subscribe(
            site.queue.name, prefetch=1, lease=30
        )
        assert len(await subscription.receive(1, 10)) == 1
        proxy.least, proxy.late = LEAST, LATE
        closing = asyncio.create_task(subscription.close())
        await asyncio.sleep(after)
        closing.cancel()
        await asyncio.wait([closing])
        assert await site.left(direct) == {"a": 1, "b": 1}
        await direct.delete(site.queue)
