"""What happens around handlers: order, metrics, traces and log lines."""

import asyncio
import logging
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from mqcore import (
    App,
    BlockingContext,
    Broker,
    ConfigurationError,
    Context,
    Message,
    Queue,
    Reject,
    RetryPolicy,
    Settings,
    Worker,
    fixed,
)
from mqcore.events import EVENTS, Event
from mqcore.middleware import Logging, Metrics, Middleware, Span, Tracing
from mqcore.testing import VirtualClock, memory_url

jobs = Queue("jobs", str)
more = Queue("more", str)
TWICE = RetryPolicy(2, fixed(1))


class Named(Middleware):
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    async def handle(
        self, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
    ) -> object:
        self.log.append(f"{self.name} in")
        try:
            return await call_next(ctx)
        finally:
            self.log.append(f"{self.name} out")

    def outgoing(self, message: Message) -> Message:
        return replace(message, headers={**message.headers, self.name: f"{len(message.headers)}"})


async def run(
    middleware: list[Middleware],
    clock: VirtualClock,
    *handlers: tuple[Queue[str], Callable[..., Any]],
    **options: Any,
) -> Broker:
    """Handle one message with these middlewares; the broker is returned closed, with its counts."""
    app = App("test")
    for queue, handler in handlers:
        app.register(queue, handler, options)  # type: ignore[arg-type]  # a test names real options
    broker = Broker.connect(memory_url(), clock=clock, settings=Settings(), middleware=middleware)
    async with broker:
        await broker.publish(jobs, "the body", headers={"secret": "the header"})
        async with Worker(app, broker):
            await clock.advance(60)
    return broker


async def ok(_: str) -> None:
    return


async def fail(_: str) -> None:
    raise ValueError("no")


async def test_the_first_is_outermost(clock: VirtualClock) -> None:
    log: list[str] = []

    async def handler(_: str, ctx: Context) -> None:
        log.append(f"handler {ctx.headers['a']} {ctx.headers['b']}")

    await run([Named("a", log), Named("b", log)], clock, (jobs, handler))
    assert log == ["a in", "b in", "handler 1 2", "b out", "a out"]


async def test_a_middleware_may_decide_about_the_message(clock: VirtualClock) -> None:
    class Refuses(Middleware):
        async def handle(
            self, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
        ) -> object:
            raise Reject(f"not {ctx.payload}")

    ran: list[str] = []

    async def handler(word: str) -> None:
        ran.append(word)

    broker = await run([Refuses()], clock, (jobs, handler))
    assert not ran
    assert broker.events.counts["message.dead"] == 1


async def test_a_middleware_sees_timeouts_and_may_change_the_payload(clock: VirtualClock) -> None:
    seen: list[object] = []

    class Shouts(Middleware):
        async def handle(
            self, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
        ) -> object:
            ctx.payload = ctx.payload.upper()
            try:
                return await call_next(ctx)
            except TimeoutError as error:
                seen.append(type(error).__name__)
                raise

    async def handler(word: str) -> None:
        seen.append(word)
        await asyncio.Event().wait()

    await run([Shouts()], clock, (jobs, handler), timeout=5, retry=RetryPolicy(1))
    assert seen == ["THE BODY", "HandlerTimeout"]


async def test_metrics(clock: VirtualClock) -> None:
    counts: Counter[tuple[str, str, str]] = Counter()
    took: list[tuple[str, Mapping[str, str], float]] = []

    def count(name: str, labels: Mapping[str, str], value: float) -> None:
        counts[name, labels["queue"], labels.get("reason", "")] += int(value)

    async def handler(_: str, ctx: Context) -> None:
        await clock.sleep(2)
        if ctx.attempt == 1:
            raise ValueError
        await ctx.publish(more, "x")

    metrics = Metrics(count, lambda name, labels, value: took.append((name, labels, value)))
    await run([metrics], clock, (jobs, handler), (more, fail), retry=TWICE)
    assert counts["message.published", "jobs", ""] == 1
    assert counts["message.retried", "jobs", ""] == 1
    assert counts["message.started", "jobs", ""] == 2
    assert counts["message.done", "jobs", ""] == 1
    assert counts["message.dead", "more", "retries_exhausted"] == 1
    assert [(name, dict(labels), value) for name, labels, value in took] == [
        ("message.seconds", {"queue": "jobs"}, 2.0)
    ]
    assert {name for name, _, _ in counts} <= set(EVENTS)


async def test_a_trace_goes_on_through_retry_and_nested_publish(clock: VirtualClock) -> None:
    spans: list[Span] = []

    async def first(_: str, ctx: Context) -> None:
        current = Tracing.current()
        assert current is not None
        assert current.message_id == ctx.id
        if ctx.attempt == 1:
            raise ValueError
        await ctx.publish(more, "x")

    await run([Tracing(spans.append)], clock, (jobs, first), (more, ok), retry=TWICE)
    one, two, three = spans
    assert len({span.trace_id for span in spans}) == 1
    assert one.parent_id == two.parent_id, "both attempts are children of the publish"
    assert three.parent_id == two.span_id, (
        "the second publish is a child of the handler that made it"
    )
    assert [(span.queue, span.attempt, span.error) for span in spans] == [
        ("jobs", 1, "ValueError"),
        ("jobs", 2, ""),
        ("more", 1, ""),
    ]
    assert Tracing.current() is None


async def test_a_trace_goes_on_through_a_thread(clock: VirtualClock) -> None:
    spans: list[Span] = []
    threads: list[str] = []

    def first(_: str, ctx: BlockingContext) -> None:
        threads.append(threading.current_thread().name)
        current = Tracing.current()
        assert current is not None
        ctx.publish(more, current.traceparent)

    await run([Tracing(spans.append)], clock, (jobs, first), (more, ok))
    assert threads[0] != threading.current_thread().name
    one, two = sorted(spans, key=lambda span: span.queue)
    assert (two.parent_id, two.trace_id) == (one.span_id, one.trace_id)


@pytest.mark.parametrize(
    "header", ["garbage", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-ab-cd-01", "ff"]
)
async def test_a_foreign_trace_that_cannot_be_read_begins_a_new_one(
    clock: VirtualClock, header: str
) -> None:
    spans: list[Span] = []
    app = App("test")
    app.consumer(jobs)(ok)
    async with Broker.connect(
        memory_url(), clock=clock, settings=Settings(), middleware=[Tracing(spans.append)]
    ) as broker:
        await broker.publish(jobs, "x", headers={"traceparent": header})
        async with Worker(app, broker):
            await clock.settle()
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", spans[0].traceparent)
    assert spans[0].parent_id == ""


async def test_log_lines_tell_what_happened_and_no_content(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mqcore")
    await run([], clock, (jobs, fail), retry=TWICE)
    lines = [record.getMessage() for record in caplog.records if record.name == "mqcore"]
    assert any(line.startswith("connection.opened") for line in lines)
    assert any(line.startswith("message.retried queue=jobs id=") for line in lines)
    assert any(
        line.startswith("message.dead queue=jobs") and "reason=retries_exhausted" in line
        for line in lines
    )
    assert not any("the body" in line or "the header" in line for line in lines)
    assert not any("\n" in line for line in lines)
    record = next(
        record for record in caplog.records if record.getMessage().startswith("message.dead")
    )
    assert record.levelno == logging.WARNING
    event = record.mqcore  # type: ignore[attr-defined]  # Logging sets it
    assert isinstance(event, Event)
    assert (event.queue, event.attempt) == ("jobs", 2)


async def test_a_log_line_cannot_be_forged(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def forge(_: str) -> None:
        raise ValueError("x\r\nmessage.done queue=jobs \x1b[31m")

    caplog.set_level(logging.DEBUG, "mqcore")
    await run([], clock, (jobs, forge), retry=RetryPolicy(1))
    assert not any(
        "\n" in record.getMessage() or "\r" in record.getMessage() for record in caplog.records
    )


class Counted:
    """Counts how often it was written as text."""

    written = 0

    def __str__(self) -> str:
        self.written += 1
        return "reason"


@pytest.mark.parametrize(("level", "lines"), [(logging.ERROR, 0), (logging.WARNING, 1)])
def test_the_loggers_level_is_respected(
    caplog: pytest.LogCaptureFixture, level: int, lines: int
) -> None:
    logger, reason = logging.getLogger("mqcore.tests.quiet"), Counted()
    with caplog.at_level(level, logger.name):
        Logging(logger).on_event(Event("message.dead", "jobs", "id", 1, {"reason": reason}))
    assert [record.getMessage().split()[0] for record in caplog.records] == ["message.dead"] * lines
    assert reason.written == lines, "no text is made for a line that nobody reads"


async def test_what_connect_names_is_added_to_the_apps_own_nearer_to_the_handler(
    clock: VirtualClock,
) -> None:
    order: list[str] = []

    class Named(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        async def handle(
            self, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
        ) -> object:
            order.append(self.name)
            return await call_next(ctx)

    app = App("shop", middleware=[Named("app")])

    @app.consumer(jobs)
    async def handler(_: str) -> None:
        order.append("handler")

    async with (
        app.connect(memory_url(), clock=clock, middleware=[Named("connect")]) as broker,
        Worker(app, broker),
    ):
        await broker.publish(jobs, "x")
        await clock.settle()
    assert order == ["app", "connect", "handler"]


async def test_a_listener_that_raises_changes_nothing(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Middleware):
        calls = 0

        def on_event(self, event: Event) -> None:
            self.calls += 1
            raise ValueError("telemetry is down")

    broken = Broken()
    broker = await run([broken], clock, (jobs, ok))
    assert broker.events.counts["message.done"] == 1
    assert broken.calls > 3
    told = [record for record in caplog.records if "listener raised" in record.getMessage()]
    assert len(told) == 1


async def test_an_outgoing_hook_that_raises_is_the_publishers_error(clock: VirtualClock) -> None:
    class Broken(Middleware):
        def outgoing(self, message: Message) -> Message:
            raise KeyError("hook")

    async with Broker.connect(
        memory_url(), clock=clock, settings=Settings(), middleware=[Broken()]
    ) as broker:
        with pytest.raises(KeyError, match="hook"):
            await broker.publish(jobs, "x")


async def test_every_event_is_known_and_counted(clock: VirtualClock) -> None:
    broker = await run([], clock, (jobs, fail), retry=TWICE)
    assert set(broker.events.counts) <= set(EVENTS)
    assert broker.health().counts["message.dead"] == 1


async def test_the_apps_middleware_is_never_silently_left_out(
    clock: VirtualClock, broker: Broker
) -> None:
    log: list[str] = []
    app = App("test", middleware=[Named("a", log)])
    app.consumer(jobs)(ok)
    with pytest.raises(ConfigurationError, match=r"app\.connect"):
        Worker(app, broker)
    async with app.connect(memory_url(), clock=clock, settings=Settings()) as connected:
        await connected.publish(jobs, "x")
        async with Worker(app, connected):
            await clock.settle()
    assert log == ["a in", "a out"]
