"""`once=`: what a handler has handled is not handled again, with the inbox of `memory://`."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, model_serializer
from support.process_handlers import Point, double
from support.waiting import eventually

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    Context,
    Middleware,
    Queue,
    RemoteError,
    RequestTimeout,
    RetryPolicy,
    Settings,
    Worker,
    fixed,
)
from mqcore.config.url import BrokerUrl
from mqcore.testing import VirtualClock, memory_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.messages.message import Message

jobs = Queue("jobs", int)


def clock_of(broker: Broker) -> VirtualClock:
    assert isinstance(broker.clock, VirtualClock)
    return broker.clock


async def publish_again(broker: Broker, id: str = "a", value: int = 1) -> None:
    """Publish one id twice, past the deduplication of publishes, as a redelivery would come."""
    await broker.publish(jobs, value, id=id)
    await clock_of(broker).advance(700)
    await broker.publish(jobs, value, id=id)


async def test_a_message_that_was_handled_is_acknowledged_without_its_handler(
    clock: VirtualClock, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mqcore")
    app = App("shop")
    handled: list[int] = []

    @app.consumer(jobs, once="24h")
    async def handle(value: int) -> None:
        handled.append(value)

    async with app.connect(url, clock=clock) as broker, Worker(app, broker):
        await publish_again(broker)
        await broker.publish(jobs, 2, id="b")
        await clock.settle()
        assert sorted(handled) == [1, 2]
        assert broker.events.counts["message.skipped"] == 1
        assert broker.events.counts["message.done"] == 2
        [counts] = await broker.counts("jobs")
        assert counts.total == 0
    assert "message.skipped queue=jobs id=a attempt=1" in caplog.text


async def test_after_the_window_a_message_is_handled_again(clock: VirtualClock, url: str) -> None:
    app = App("shop")
    handled: list[int] = []

    @app.consumer(jobs, once=timedelta(hours=1))
    async def handle(value: int) -> None:
        handled.append(value)

    async with app.connect(url, clock=clock) as broker, Worker(app, broker):
        await publish_again(broker)
        await clock.settle()
        assert handled == [1]
        await clock.advance(3600)
        await broker.publish(jobs, 1, id="a")
        await clock.settle()
    assert handled == [1, 1]


async def test_what_fails_is_not_recorded_and_is_retried(clock: VirtualClock, url: str) -> None:
    app = App("shop")
    attempts: list[int] = []

    @app.consumer(jobs, once="1h", retry=RetryPolicy(3, fixed(1)))
    async def handle(value: int, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise OSError(value)

    async with app.connect(url, clock=clock) as broker, Worker(app, broker):
        await broker.publish(jobs, 1)
        await clock.advance(10)
        assert attempts == [1, 2, 3]
        assert broker.events.counts["message.skipped"] == 0


async def test_what_was_dead_lettered_is_handled_when_it_is_redriven(
    clock: VirtualClock, url: str
) -> None:
    app = App("shop")
    runs: list[int] = []

    @app.consumer(jobs, once="24h", retry=RetryPolicy(1))
    async def handle(value: int, ctx: Context) -> None:
        runs.append(ctx.redriven)
        if not ctx.redriven:
            raise OSError(value)

    async with app.connect(url, clock=clock) as broker, Worker(app, broker):
        await broker.publish(jobs, 1)
        await clock.settle()
        await broker.dead_letters(jobs).redrive()
        await clock.settle()
    assert runs == [0, 1]


async def test_consumers_remember_apart(clock: VirtualClock, url: str) -> None:
    handled: list[str] = []
    for name in ("first", "second", "first"):
        app = App("shop")

        @app.consumer(jobs, once="24h", name=name)
        async def handle(value: int, name: str = name) -> None:
            handled.append(name)

        async with app.connect(url, clock=clock) as broker, Worker(app, broker):
            await clock.advance(700)
            await broker.publish(jobs, 1, id="a")
            await clock.settle()
    assert handled == ["first", "second"]


async def test_a_blocking_handler_is_served_too(clock: VirtualClock, url: str) -> None:
    app = App("shop")
    threads: list[str] = []

    @app.consumer(jobs, once="24h")
    def handle(value: int) -> None:
        threads.append(threading.current_thread().name)

    async with app.connect(url, clock=clock) as broker, Worker(app, broker):
        await publish_again(broker)
        await clock.settle()
    assert len(threads) == 1
    assert threads[0].startswith("mqcore-jobs")


@pytest.mark.timeout(120)
async def test_a_handler_in_a_process_is_served_too(url: str) -> None:
    app = App("shop")
    options: Any = {"process": True, "once": "24h", "concurrency": 1}
    app.register(Queue("points", Point), double, options)

    async with app.connect(f"{url}?dedup_window=0.01") as broker, Worker(app, broker):
        queue = app.handlers[0].queue
        assert await broker.request(queue, Point(x=1), result=Point, id="a") == Point(x=2)
        await asyncio.sleep(0.05)  # the window for publishes ends
        await broker.publish(queue, Point(x=1), id="a")
        await eventually(lambda: broker.events.counts["message.skipped"] == 1)


async def test_the_session_of_a_consumer_without_one(clock: VirtualClock, url: str) -> None:
    app = App("shop")
    errors: list[str] = []

    @app.consumer(jobs, once="24h")
    async def handle(value: int, ctx: Context) -> None:
        with pytest.raises(ConfigurationError) as raised:
            _ = ctx.session
        errors.append(str(raised.value))

    async with app.connect(url, clock=clock) as broker, Worker(app, broker):
        await broker.publish(jobs, 1, id="a")
        await clock.settle()
    [text] = errors
    assert text.startswith("message a of queue 'jobs': ctx.session is not available")
    assert "inbox=SqlInbox(sessions)" in text


async def test_a_request_that_was_handled_gets_no_second_answer(
    clock: VirtualClock, url: str
) -> None:
    app = App("shop")

    @app.consumer(jobs, once="24h")
    async def handle(value: int) -> int:
        return value + 1

    async with app.connect(url, clock=clock) as broker, Worker(app, broker):
        assert await broker.request(jobs, 1, result=int, id="a") == 2
        await clock.advance(700)
        again = asyncio.ensure_future(broker.request(jobs, 1, result=int, id="a", timeout=5))
        await clock.advance(6)
        with pytest.raises(RequestTimeout):
            await again
        assert broker.events.counts["message.skipped"] == 1


class _Unsendable:
    """A value that cannot be written."""


@pytest.mark.parametrize("form", ["once", "plain"])
async def test_a_return_value_that_cannot_be_sent_is_the_handlers_failure(
    clock: VirtualClock, url: str, form: str
) -> None:
    app = App("shop")
    runs: list[int] = []

    @app.consumer(
        jobs,
        **({"once": "24h"} if form == "once" else {}),
        retry=RetryPolicy(max_attempts=2, backoff=fixed(1)),
    )
    async def handle(value: int) -> _Unsendable:
        runs.append(value)
        return _Unsendable()

    async with app.connect(url, clock=clock) as broker, Worker(app, broker):
        asking = asyncio.ensure_future(broker.request(jobs, 1, timeout=20))
        await clock.advance(5)
        assert asking.done()
        with pytest.raises(RemoteError, match="_Unsendable"):
            await asking
        assert runs == [1, 1]
        assert broker.events.counts["message.skipped"] == 0
        assert broker.events.counts["message.dead"] == 1


async def test_a_reply_is_encoded_once(clock: VirtualClock, url: str) -> None:
    app = App("shop")
    given: list[object] = []

    class Answer(BaseModel):
        number: int

        @model_serializer
        def _written(self) -> dict[str, int]:
            given.append(self)
            return {"number": self.number}

    @app.consumer(jobs, once="24h")
    async def handle(value: int) -> Answer:
        return Answer(number=value)

    async with app.connect(url, clock=clock) as broker, Worker(app, broker):
        assert await broker.request(jobs, 7, timeout=20) == {"number": 7}
    assert len(given) == 1


async def test_an_inbox_of_another_url(clock: VirtualClock, url: str) -> None:
    handled: list[int] = []
    for _ in range(2):  # two brokers, one inbox
        app = App("shop", inbox=url)

        @app.consumer(jobs, once="24h", name="handle")
        async def handle(value: int) -> None:
            handled.append(value)

        async with app.connect(memory_url(), clock=clock) as broker, Worker(app, broker):
            await broker.publish(jobs, 1, id="a")
            await clock.settle()
    assert handled == [1]


class _Swap(Middleware):
    """Changes what the message looks like, and counts runs."""

    def __init__(self) -> None:
        self.runs = 0

    async def handle(self, ctx: Context, call_next: Callable[[Context], Awaitable[object]]) -> Any:
        self.runs += 1
        return await call_next(ctx)

    def outgoing(self, message: Message) -> Message:
        return message


async def test_an_inbox_of_the_settings(clock: VirtualClock, url: str) -> None:
    app, inbox = App("shop"), memory_url()
    handled: list[int] = []

    @app.consumer(jobs, once="24h")
    async def handle(value: int) -> None:
        handled.append(value)

    settings = Settings(inbox=BrokerUrl(inbox))
    for where in (url, memory_url()):  # two brokers, and one inbox
        connecting = app.connect(where, clock=clock, settings=settings)
        async with connecting as broker, Worker(app, broker):
            await broker.publish(jobs, 1, id="a")
            await clock.settle()
    assert handled == [1]


async def test_middleware_runs_for_what_is_handled_only(clock: VirtualClock, url: str) -> None:
    swap = _Swap()
    app = App("shop", middleware=[swap])

    @app.consumer(jobs, once="24h")
    async def handle(value: int) -> None: ...

    async with app.connect(url, clock=clock) as broker, Worker(app, broker):
        await publish_again(broker)
        await clock.settle()
    assert swap.runs == 1


@pytest.mark.parametrize("value", ["24", "h", "1w", "-1h", "0s", 0, -1, True, None, "", "1e3s"])
def test_a_duration_that_cannot_be_meant_is_refused(value: Any) -> None:
    app = App("shop")
    with pytest.raises(ConfigurationError, match=r"once=.* is not usable; give a duration above 0"):
        app.register(jobs, _nothing, {"once": value})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("24h", 86_400.0), ("1.5 m", 90.0), ("7d", 604_800.0), ("10s", 10.0), (60, 60.0), (0.5, 0.5)],
)
def test_durations(value: Any, seconds: float) -> None:
    app = App("shop")
    app.register(jobs, _nothing, {"once": value})
    assert app.handlers[0].once == seconds


async def _nothing(value: int) -> None: ...


def test_what_does_not_go_with_it() -> None:
    app = App("shop")
    with pytest.raises(ConfigurationError, match="ack_first=True acknowledges it before"):
        app.register(jobs, _nothing, {"once": "1h", "ack_first": True})
    with pytest.raises(ConfigurationError, match="inbox= takes an Inbox"):
        App("shop", inbox=5)  # type: ignore[arg-type]  # this is the wrong value
    with pytest.raises(ConfigurationError, match="no installed plugin serves 'nope'"):
        Broker.connect("memory://x", settings=Settings())._session.inbox("nope://x")
