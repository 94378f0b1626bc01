"""A Broker belongs to the event loop that opened it; any other gets an error that helps."""

import asyncio
import threading

import pytest
from support.other_loop import CALLS, elsewhere

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    ConnectionLost,
    Context,
    Queue,
    Router,
    Settings,
    Worker,
    sync,
)
from mqcore.testing import memory_url

queue = Queue("loops", str)
router = Router("loops.router", str).bind(queue, "k")


@pytest.fixture
def url() -> str:
    return memory_url()


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_from_another_loop_is_refused(url: str, name: str) -> None:
    async with Broker.connect(url, settings=Settings(), queues=[queue], routers=[router]) as broker:
        async with broker.consume(queue) as consumer:
            error = await elsewhere(lambda: CALLS[name](broker, queue, router, consumer))

            assert isinstance(error, ConfigurationError)
            assert "event loop" in str(error)
            assert "run_coroutine_threadsafe" in str(error)
            assert "mqcore.sync" in str(error)

        assert (await broker.counts(queue))[0].ready == 0, "and nothing was done"
        await broker.publish(queue, "still good here")


async def test_a_message_is_settled_in_its_own_loop(url: str) -> None:
    async with (
        Broker.connect(url, settings=Settings(), queues=[queue]) as broker,
        broker.consume(queue) as deliveries,
    ):
        await broker.publish(queue, "x")
        received = await anext(deliveries)

        for settle in (received.ack, received.release, received.retry, received.reject):
            assert isinstance(await elsewhere(settle), ConfigurationError)

        await received.ack()
        assert (await broker.counts(queue))[0].leased == 0


async def test_the_context_of_a_handler_too(url: str) -> None:
    app, ended = App("loops"), asyncio.Event()
    errors: list[object] = []

    @app.consumer(queue)
    async def handle(_: str, ctx: Context) -> None:
        errors.append(await elsewhere(lambda: ctx.publish("other", b"x")))
        ended.set()

    async with app.connect(url, settings=Settings()) as broker, Worker(app, broker):
        await broker.publish(queue, "x")
        async with asyncio.timeout(10):
            await ended.wait()

    assert isinstance(errors[0], ConfigurationError)


async def test_a_worker_too_before_its_lifespan(url: str) -> None:
    entered: list[object] = []
    app = App("loops", lifespan=entered.append)  # type: ignore[arg-type]  # it is never entered

    @app.consumer(queue)
    async def handle(_: str) -> None: ...

    async with app.connect(url, settings=Settings()) as broker:
        assert isinstance(await elsewhere(Worker(app, broker).start), ConfigurationError)

    assert not entered


async def test_a_broker_that_was_closed_says_that(url: str) -> None:
    async with Broker.connect(url, settings=Settings()) as broker:
        pass

    assert isinstance(await elsewhere(broker.counts), ConnectionLost)
    assert await elsewhere(broker.close) is None


def test_a_loop_that_has_ended_is_another_loop(url: str) -> None:
    broker = Broker.connect(url, settings=Settings())
    asyncio.run(broker.open())

    with pytest.raises(ConfigurationError, match="event loop"):
        asyncio.run(broker.publish(queue, "x"))


def test_the_blocking_broker_serves_every_thread(url: str) -> None:
    receipts: list[object] = []

    with sync.Broker.connect(url, settings=Settings()) as broker:
        thread = threading.Thread(target=lambda: receipts.append(broker.publish(queue, "x")))
        thread.start()
        thread.join(10)

        with broker.consume(queue) as deliveries:
            received = next(iter(deliveries))
            received.ack()

    assert received.value == "x"
    assert len(receipts) == 1


async def test_health_may_be_read_from_anywhere(url: str) -> None:
    async with Broker.connect(url, settings=Settings()) as broker:

        async def look() -> None:
            assert broker.health().ok

        assert await elsewhere(look) is None
