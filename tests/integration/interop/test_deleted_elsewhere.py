"""On real servers, too: what another process deleted is declared again by who publishes (G1)."""

from __future__ import annotations

import pytest

from mqcore import App, Broker, Context, Queue, Router, Settings, Worker
from mqcore.spi import new_id

pytestmark = pytest.mark.timeout(120)


async def test_publishing_goes_on_after_another_process_has_deleted(
    broker_url: str, name: str
) -> None:
    queue, second = Queue(name, str), Queue(f"{name}.second", str)
    router = Router(f"{name}.router", str).bind(queue, "k").bind(second, "other")
    settings = Settings()

    async with (
        Broker.connect(broker_url, settings=settings, queues=[queue], routers=[router]) as broker,
        Broker.connect(broker_url, settings=settings) as other,
    ):
        try:
            await broker.publish(queue, "first")
            for publish in (
                lambda: broker.publish(queue, "x"),
                lambda: broker.publish_many(queue, ["x"]),
                lambda: broker.publish(router, "x", key="k"),
                lambda: broker.publish_many(router, ["x"], key="k"),
            ):
                await other.delete(queue)
                await publish()
                assert (await other.counts(queue))[0].ready == 1

            await other.delete(queue)
            await broker.publish(queue, "x", delay=0.5)
            async with other.consume(queue) as deliveries:
                received = await deliveries.get(timeout=10)
                assert received is not None
                await received.ack()

            await other.delete(queue)
            await other.delete(second)
            await broker.publish(router, "x", key="k")
            assert (await other.counts(queue))[0].ready == 1
        finally:
            for one in (queue.name, second.name, f"{queue.name}.dlq", f"{second.name}.dlq"):
                await broker.delete(one)


async def test_a_handler_that_publishes_and_a_request(broker_url: str, name: str) -> None:
    queue, results = Queue(name, str), Queue(f"{name}.results", str)
    app = App(f"app-{new_id()}")

    @app.consumer(queue)
    async def handle(job: str, ctx: Context) -> str:
        await ctx.publish(results, job)
        return job.upper()

    async with (
        app.connect(broker_url, settings=Settings()) as broker,
        Broker.connect(broker_url, settings=Settings()) as other,
        Worker(app, broker),
    ):
        try:
            assert await broker.request(queue, "a", result=str, timeout=20) == "A"
            await other.delete(results)
            assert await broker.request(queue, "b", result=str, timeout=20) == "B"
            assert (await other.counts(results))[0].ready == 1
        finally:
            for one in (results.name, f"{queue.name}.dlq", f"{results.name}.dlq"):
                await other.delete(one)
    async with Broker.connect(broker_url, settings=Settings()) as tidy:
        await tidy.delete(queue)
