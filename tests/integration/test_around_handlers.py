"""What runs around handlers and publishes: its order, what it may decide, and what it hears.

Tracing as OpenTelemetry reads it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from support.faulty import Broken, Faults, plugin_for, raised

from mqcore import (
    App,
    BlockingContext,
    Broker,
    Context,
    DeadLetter,
    Message,
    Queue,
    Reject,
    Retry,
    RetryPolicy,
    Settings,
    Worker,
    fixed,
)
from mqcore.config.plugins import Plugins
from mqcore.events import EVENTS
from mqcore.middleware import Metrics, Middleware, Span, Timeout, Tracing
from mqcore.testing import VirtualClock

jobs, more = Queue("jobs", str), Queue("more", str)
TWICE = RetryPolicy(2, fixed(1))
Next = Callable[[Context], Awaitable[object]]


async def run(
    app: App, clock: VirtualClock, url: str, *messages: str, wait: float = 10, **options: Any
) -> Broker:
    """Let an app handle messages of `jobs`, and return its broker, closed."""
    async with app.connect(url, clock=clock, settings=Settings(), **options) as broker:
        for message in messages:
            await broker.publish(jobs, message)
        async with Worker(app, broker):
            await clock.advance(wait)
    return broker


async def dead(clock: VirtualClock, url: str) -> list[DeadLetter]:
    async with Broker.connect(url, clock=clock, settings=Settings()) as broker:
        return await broker.dead_letters(jobs).list()


@pytest.mark.parametrize(
    ("error", "reason", "attempts"),
    [(Reject("not here"), "rejected", 1), (Retry(delay=3), "retries_exhausted", 2)],
)
@pytest.mark.parametrize("after", [False, True])
async def test_what_it_raises_decides(
    clock: VirtualClock, url: str, error: Exception, reason: str, attempts: int, *, after: bool
) -> None:
    handled = []

    class Deciding(Middleware):
        async def handle(self, ctx: Context, call_next: Next) -> object:
            if after:
                await call_next(ctx)
            raise error

    app = App("test", middleware=[Deciding()])
    app.consumer(jobs, retry=TWICE)(handled.append)
    await run(app, clock, url, "x")
    assert len(handled) == (attempts if after else 0)
    (letter,) = await dead(clock, url)
    assert (letter.reason, letter.attempts) == (reason, attempts)


async def test_it_may_swallow_and_replace(clock: VirtualClock, url: str) -> None:
    class Kind(Middleware):
        async def handle(self, ctx: Context, call_next: Next) -> object:
            try:
                return await call_next(ctx)
            except KeyError:
                return "instead"

        def outgoing(self, message: Message) -> Message:
            return replace(message, body=b"replaced") if message.body == b"x" else message

    app, seen = App("test", middleware=[Kind()]), []

    @app.consumer(jobs)
    async def handler(text: str) -> None:
        seen.append(text)
        raise KeyError

    async with app.connect(url, clock=clock, settings=Settings()) as broker, Worker(app, broker):
        assert await broker.request(jobs, "x") == "instead"
        assert broker.events.counts["message.done"] >= 1
    assert seen == ["replaced"]


async def test_a_batch_is_one_run(clock: VirtualClock, url: str) -> None:
    notes: list[int] = []

    class Counting(Middleware):
        async def handle(self, ctx: Context, call_next: Next) -> object:
            notes.append(len(ctx.payload))
            return await call_next(ctx)

    app = App("test", middleware=[Counting()])

    @app.consumer(jobs, batch=3, linger=0)
    async def handler(_: list[Any]) -> None: ...

    await run(app, clock, url, "x", "y", "z")
    assert notes == [3]


async def test_metrics_are_numbers_with_few_labels(clock: VirtualClock, url: str) -> None:
    counted: Counter[tuple[str, str, str]] = Counter()
    labels: set[str] = set()
    observed: list[tuple[str, str, float]] = []

    def count(name: str, given: Mapping[str, str], number: float) -> None:
        assert name in EVENTS
        labels.update(given)
        counted[name, given["queue"], given.get("reason", "")] += int(number)

    app = App(
        "test",
        middleware=[
            Metrics(count, lambda name, given, took: observed.append((name, given["queue"], took)))
        ],
    )

    @app.consumer(jobs, retry=TWICE, concurrency=1)
    async def handler(text: str) -> str:
        await clock.sleep(2)
        if text == "bad":
            raise Reject("bad")
        if text == "failing":
            raise ValueError
        return text

    async with app.connect(url, clock=clock, settings=Settings()) as broker, Worker(app, broker):
        for text in ("good", "bad", "failing"):
            await broker.publish(jobs, text)
        asked = [asyncio.create_task(broker.request(jobs, "asked", timeout=60)) for _ in range(2)]
        await clock.advance(30)
        await asyncio.gather(*asked)
    assert labels == {"queue", "reason"}
    assert counted["message.published", "jobs", ""] == 5
    assert counted["message.started", "jobs", ""] == 6
    assert counted["message.done", "jobs", ""] == 3
    assert counted["message.retried", "jobs", ""] == 1
    assert counted["message.dead", "jobs", "rejected"] == 1
    assert counted["message.dead", "jobs", "retries_exhausted"] == 1
    assert [one for one in observed if one[1] == "jobs"] == [("message.seconds", "jobs", 2.0)] * 3
    assert {queue for _, queue, _ in counted} == {
        "",
        "jobs",
        "mq.reply",
    }  # one name for everybody's reply queue


def read(headers: Mapping[str, str]) -> trace.SpanContext:
    """Return what OpenTelemetry makes of the headers."""
    return trace.get_current_span(
        TraceContextTextMapPropagator().extract(dict(headers))
    ).get_span_context()


class Spans:
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.app = App("test", middleware=[Tracing(self.spans.append)])

    def of(self, queue: str) -> list[Span]:
        return [span for span in self.spans if span.queue == queue]


async def test_a_trace_goes_through_retries_and_nested_publishes(
    clock: VirtualClock, url: str
) -> None:
    spans = Spans()
    headers: list[Mapping[str, str]] = []

    @spans.app.consumer(jobs, retry=TWICE)
    async def first(_: str, ctx: Context) -> None:
        headers.append(ctx.headers)
        if ctx.attempt == 1:
            raise ValueError
        await ctx.publish(more, "y")

    @spans.app.consumer(more)
    def second(_: str, ctx: BlockingContext) -> None:
        headers.append(ctx.headers)
        ctx.publish(Queue("last", str), "z")
        assert Tracing.current() is not None

    broker = await run(spans.app, clock, url, "x")
    assert broker.events.counts["message.done"] == 2
    one, two = spans.of("jobs")
    (nested,) = spans.of("more")
    assert len({span.trace_id for span in spans.spans}) == 1
    assert len({span.span_id for span in spans.spans}) == 3
    assert one.parent_id == two.parent_id != one.span_id  # both are children of the publish
    assert nested.parent_id == two.span_id
    assert (one.error, two.error, one.attempt, two.attempt) == ("ValueError", "", 1, 2)
    for found, parent in zip(headers, [one.parent_id, one.parent_id, two.span_id], strict=True):
        context = read(found)
        assert context.is_valid
        assert context.trace_flags.sampled
        assert f"{context.trace_id:032x}" == one.trace_id
        assert f"{context.span_id:016x}" == parent
    async with Broker.connect(url, clock=clock, settings=Settings()) as looking:
        (entry,) = await looking.peek("last")
    assert f"{read(entry.message.headers).span_id:016x}" == nested.span_id


async def test_a_trace_goes_into_dead_letters_and_out_again(clock: VirtualClock, url: str) -> None:
    spans = Spans()

    @spans.app.consumer(jobs)
    async def handler(_: str, ctx: Context) -> None:
        if not ctx.redriven:
            raise Reject

    await run(spans.app, clock, url, "x")
    (letter,) = await dead(clock, url)
    assert f"{read(letter.headers).trace_id:032x}" == spans.spans[0].trace_id
    async with Broker.connect(url, clock=clock, settings=Settings()) as broker:
        assert (await broker.dead_letters(jobs).redrive()).moved
    await run(spans.app, clock, url)
    assert [span.error for span in spans.spans] == ["Reject", ""]
    assert len({span.trace_id for span in spans.spans}) == 1


async def test_the_publishers_own_trace_is_taken_up(clock: VirtualClock, url: str) -> None:
    spans = Spans()
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(0))
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(
        headers, trace.set_span_in_context(trace.NonRecordingSpan(context))
    )
    spans.app.consumer(jobs)(lambda _: None)
    async with (
        spans.app.connect(url, clock=clock, settings=Settings()) as broker,
        Worker(spans.app, broker),
    ):
        await broker.publish(jobs, "x", headers=headers)
        await clock.settle()
    (span,) = spans.spans
    assert (int(span.trace_id, 16), int(span.parent_id, 16), span.flags) == (0xABC, 0xDEF, "00")


@pytest.mark.parametrize(
    "header", ["", "nonsense", f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'A' * 32}-{'1' * 16}-01"]
)
async def test_a_header_that_is_no_trace_begins_a_new_one(
    clock: VirtualClock, url: str, header: str
) -> None:
    assert not read({"traceparent": header}).is_valid
    spans = Spans()
    spans.app.consumer(jobs)(lambda _: None)
    async with (
        spans.app.connect(url, clock=clock, settings=Settings()) as broker,
        Worker(spans.app, broker),
    ):
        await broker.publish(jobs, "x", headers={"traceparent": header})
        await clock.settle()
    (span,) = spans.spans
    assert (span.parent_id, read({"traceparent": span.traceparent}).is_valid) == ("", True)


async def test_outside_of_handlers_each_publish_begins_a_trace(
    clock: VirtualClock, url: str
) -> None:
    spans = Spans()
    assert Tracing.current() is None
    spans.app.consumer(jobs, concurrency=1)(lambda _: None)
    await run(spans.app, clock, url, "x", "y")
    assert len({span.trace_id for span in spans.spans}) == 2


async def test_a_reconnect_is_one_line_each_for_loss_and_return(
    clock: VirtualClock, url: str, caplog: pytest.LogCaptureFixture, faults: Faults
) -> None:
    caplog.set_level(logging.INFO, "mqcore")
    plugins = Plugins()
    plugins.register(plugin_for(faults))
    app = App("test")
    for name in ("a", "b", "c"):
        app.consumer(Queue(name, str))(lambda _: None)
    faulty = url.replace("memory://", "faulty://")
    async with (
        app.connect(faulty, clock=clock, settings=Settings(), plugins=plugins) as broker,
        Worker(app, broker),
    ):
        caplog.clear()
        faults.next("open", raised(Broken("not yet")))
        faults.lose()
        await clock.advance(10)
        assert broker.health().ok
        lines = [record.getMessage().split()[0] for record in caplog.records]
    assert [line for line in lines if line.startswith("connection.")] == [
        "connection.lost",
        "connection.retry",
        "connection.restored",
    ]


def a_slow_handler(clock: VirtualClock, began: float) -> Callable[[str], Awaitable[None]]:
    async def handler(text: str) -> None:
        if text == "own":
            raise TimeoutError("of something else")
        await clock.sleep(1000)

    return handler


@pytest.mark.parametrize(
    ("text", "reason", "error"),
    [
        ("own", "retries_exhausted", "TimeoutError: of something else"),
        (
            "slow",
            "timeout",
            "mqcore.errors.HandlerTimeout: the handler of 'jobs' ran longer than 0.1 s",
        ),
    ],
)
@pytest.mark.parametrize("began", [0.0, 0.7, 12.3], ids=str)
async def test_the_handlers_own_timeout_is_not_the_limits(
    clock: VirtualClock, url: str, text: str, reason: str, error: str, began: float
) -> None:
    await clock.advance(began)  # where floats add up to a little less than 0.1 later
    app = App("test")
    app.consumer(jobs, timeout=0.1, retry=RetryPolicy(1))(a_slow_handler(clock, began))
    await run(app, clock, url, text)
    (letter,) = await dead(clock, url)
    assert (letter.reason, letter.error.startswith(error)) == (reason, True)


async def test_a_timeout_as_middleware_ends_what_is_inside_of_it(
    clock: VirtualClock, url: str
) -> None:
    app = App("test", middleware=[Timeout(5, clock)])

    @app.consumer(jobs, timeout=60, retry=RetryPolicy(1))
    async def handler(_: str) -> None:
        await clock.sleep(1000)

    await run(app, clock, url, "x", wait=5)
    (letter,) = await dead(clock, url)
    assert (letter.reason, "longer than 5 s" in letter.error) == ("timeout", True)


async def test_who_turns_the_cancellation_into_a_timeout_is_still_late(
    clock: VirtualClock, url: str
) -> None:
    app = App("test")

    @app.consumer(jobs, timeout=5, retry=RetryPolicy(1))
    async def handler(_: str) -> None:
        try:
            await clock.sleep(1000)
        except asyncio.CancelledError:
            raise TimeoutError("some client's word for it") from None

    await run(app, clock, url, "x")
    (letter,) = await dead(clock, url)
    assert letter.reason == "timeout"
