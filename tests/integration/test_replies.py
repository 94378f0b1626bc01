"""Replies in special cases: not encodable, too late, unrequested, and without a reply queue."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mqcore import (
    App,
    Broker,
    ConnectionLost,
    DeadLetter,
    Message,
    Queue,
    Reject,
    RemoteError,
    RequestTimeout,
    Retry,
    RetryPolicy,
    Router,
    Settings,
    ValidationError,
    Worker,
    fixed,
)
from mqcore.testing import VirtualClock

Dead = Callable[[Queue[Any]], Awaitable[list[DeadLetter]]]
questions = Queue("questions", str)
ONCE = RetryPolicy(max_attempts=1)
THREE = RetryPolicy(max_attempts=3, backoff=fixed(10))


async def tea(_: str) -> str:
    return "tea"


async def test_the_failure_arrives_only_when_it_is_final(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    times: list[float] = []

    async def failing(_: str) -> None:
        times.append(clock.monotonic())
        raise LookupError("no such tea")

    async with serve(questions, failing, retry=THREE):
        request = asyncio.create_task(broker.request(questions, "x", timeout=60))
        await clock.advance(19)
        assert not request.done()
        await clock.advance(1)
        with pytest.raises(RemoteError, match="no such tea") as told:
            await request
    assert times == [0, 10, 20]
    error = told.value
    assert (error.reason, error.type, error.text) == (
        "retries_exhausted",
        "LookupError",
        "no such tea",
    )


async def test_the_reply_of_a_later_attempt_is_the_reply(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    errors: list[Exception] = [ValueError("first"), Retry(delay=3)]

    async def third(_: str) -> str:
        if errors:
            raise errors.pop(0)
        return "at last"

    async with serve(questions, third, retry=THREE):
        request = asyncio.create_task(broker.request(questions, "x", timeout=60))
        await clock.advance(13)
        assert await request == "at last"


@pytest.mark.parametrize(
    ("error", "reason", "kind", "text"),
    [
        (Reject("closed on Mondays"), "rejected", "mqcore.errors.Reject", "closed on Mondays"),
        (SystemExit(3), "retries_exhausted", "SystemExit", "3"),
        (ValueError("\ud800"), "retries_exhausted", "ValueError", "?"),
    ],
    ids=["reject", "exit", "surrogate"],
)
async def test_a_remote_error_carries_reason_type_and_text(
    broker: Broker, serve: Any, error: BaseException, reason: str, kind: str, text: str
) -> None:
    async def failing(_: str) -> None:
        raise error

    async with serve(questions, failing, retry=ONCE):
        with pytest.raises(RemoteError) as told:
            await broker.request(questions, "x")
    assert (told.value.reason, told.value.type, told.value.text) == (reason, kind, text)


async def test_a_handler_past_its_limit_is_told_as_such(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    async def hangs(_: str) -> None:
        await asyncio.Event().wait()

    async with serve(questions, hangs, timeout=5, retry=ONCE):
        request = asyncio.create_task(broker.request(questions, "x", timeout=60))
        await clock.advance(5)
        with pytest.raises(RemoteError) as told:
            await request
    assert (told.value.reason, told.value.type) == ("timeout", "mqcore.errors.HandlerTimeout")


async def test_a_late_answer_disturbs_nobody(
    broker: Broker, clock: VirtualClock, serve: Any, held: Any
) -> None:
    async with serve(questions, held):
        request = asyncio.create_task(broker.request(questions, "x", timeout=7))
        await clock.advance(7)
        with pytest.raises(RequestTimeout, match=r"'questions' within 7 s"):
            await request
        held.go.set()
        await clock.settle()
        assert (await broker.counts(questions))[0].leased == 0
    assert held.ended == ["x"]
    assert broker.events.counts["reply.failed"] == 0


async def test_the_default_is_thirty_seconds(broker: Broker, clock: VirtualClock) -> None:
    request = asyncio.create_task(broker.request(questions, "x"))
    await clock.advance(29.9)
    assert not request.done()
    await clock.advance(0.1)
    with pytest.raises(TimeoutError):
        await request


async def test_a_retry_that_would_come_too_late_is_told_at_once(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    async def failing(_: str) -> None:
        raise ValueError("why")

    async with serve(questions, failing, retry=THREE):
        request = asyncio.create_task(broker.request(questions, "x", timeout=15))
        await clock.advance(10)
        with pytest.raises(RemoteError) as told:
            await request
    assert (told.value.reason, told.value.text) == ("expired", "why")


async def test_many_at_once_get_their_own_replies(
    broker: Broker, other: Broker, clock: VirtualClock
) -> None:
    async def later(number: int) -> int:
        await clock.sleep(100 - number)  # the last asked is the first answered
        return number * number

    app = App("squares")
    squares = Queue("squares", int)
    app.consumer(squares, concurrency=100)(later)
    async with Worker(app, broker):
        asked = [
            (broker, other)[n % 2].request(squares, n, result=int, timeout=200) for n in range(100)
        ]
        answers = asyncio.gather(*asked)
        await clock.advance(100)
        assert await answers == [n * n for n in range(100)]


class Odd:
    pass


@pytest.mark.parametrize(
    "value",
    [Odd(), float("nan"), "\ud800", {1: object()}, "x" * 1_100_000],
    ids=["class", "nan", "text", "deep", "size"],
)
async def test_what_cannot_be_sent_back_is_a_failure_of_the_handler(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead, value: object
) -> None:
    async def odd(_: str) -> object:
        return value

    async with serve(questions, odd, retry=ONCE):
        request = asyncio.create_task(broker.request(questions, "x"))
        await clock.settle()
        assert request.done()
        with pytest.raises(RemoteError) as told:
            await request
        (letter,) = await dead(questions)
    assert told.value.reason == "retries_exhausted"
    assert (letter.reason, letter.death.error_type) == ("retries_exhausted", told.value.type)


async def test_a_codec_that_is_not_allowed_is_a_failure_of_the_handler(
    clock: VirtualClock, url: str
) -> None:
    app = App("json only")
    numbers = Queue("numbers", int)

    @app.consumer(numbers, retry=ONCE)
    async def text(_: int) -> str:
        return "text is not allowed"

    settings = Settings.model_validate({"codecs": ["json"]})
    async with Broker.connect(url, clock=clock, settings=settings) as broker, Worker(app, broker):
        request = asyncio.create_task(broker.request(numbers, 1))
        await clock.settle()
        assert request.done()
        with pytest.raises(RemoteError, match="'text' is not"):
            await request


async def test_nobody_asked_for_what_cannot_be_sent_back(
    broker: Broker, serve: Any, clock: VirtualClock
) -> None:
    async def odd(_: str) -> object:
        return Odd()

    await broker.publish(questions, "x")
    async with serve(questions, odd):
        await clock.settle()
    assert broker.events.counts["message.done"] == 1


async def test_a_routed_request(broker: Broker, serve: Any) -> None:
    router = Router("asking", str, kind="direct").bind(questions, "drinks")
    async with serve(questions, tea):
        assert await broker.request(router, "?", key="drinks") == "tea"


@pytest.mark.parametrize(
    "option", [{"timeout": "soon"}, {"ttl": 5}, {"priority": 11}, {"delay": 31}], ids=str
)
async def test_options_that_make_no_sense_are_refused(
    broker: Broker, option: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        await broker.request(questions, "x", **option)


async def test_a_request_expires_at_its_own_time_and_keeps_its_options(
    broker: Broker, serve: Any
) -> None:
    seen: list[Any] = []

    async def handler(_: str, ctx: Any) -> None:
        seen.append(
            (
                ctx.id,
                ctx.priority,
                dict(ctx.headers),
                bool(ctx.correlation_id),
                ctx.delivery.expires_in,
            )
        )

    async with serve(questions, handler):
        await broker.request(questions, "x", id="me", priority=7, headers={"a": "b"}, timeout=12)
    assert seen == [("me", 7, {"a": "b"}, True, 12)]


async def test_a_deleted_reply_queue_comes_back(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    async with serve(questions, tea):
        assert await broker.request(questions, "?") == "tea"
        name = broker._session.requests._queue
        await broker.delete(name)
        await clock.advance(1)
        assert broker.health().ok
        request = asyncio.create_task(broker.request(questions, "?", timeout=60))
        await clock.advance(1)
        assert request.done()
        assert await request == "tea"


async def test_closing_ends_what_still_waits(
    client: Callable[[], Awaitable[Broker]], clock: VirtualClock
) -> None:
    asking = await client()
    request = asyncio.create_task(asking.request(questions, "x", timeout=60))
    await clock.settle()
    await asking.close()
    await clock.settle()
    assert request.done()
    with pytest.raises(ConnectionLost):
        await request


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"reason": {"deep": [1]}}', b"\xff"])
async def test_a_forged_error_is_data(broker: Broker, clock: VirtualClock, body: bytes) -> None:
    request = asyncio.create_task(broker.request(questions, "x"))
    await clock.settle()
    (entry,) = await broker.peek(questions)
    asked = entry.message
    assert asked.reply_to is not None
    kind = "application/vnd.mqcore.error+json"
    forged = Message(id="forged", body=body, content_type=kind, correlation_id=asked.correlation_id)
    await broker._session.publisher.send(asked.reply_to, forged, {}, 5)
    with pytest.raises(RemoteError):
        await request


async def test_a_reply_to_nobody_is_let_go(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    request = asyncio.create_task(broker.request(questions, "?"))
    await clock.settle()
    (entry,) = await broker.peek(questions)
    assert entry.message.reply_to is not None
    for correlation in (None, "somebody else"):
        stray = Message(id=f"stray-{correlation}", body=b"1", correlation_id=correlation)
        await broker._session.publisher.send(entry.message.reply_to, stray, {}, 5)
    await clock.settle()
    assert not request.done()
    async with serve(questions, tea):
        assert await request == "tea"


async def test_a_handler_that_asks_another(broker: Broker) -> None:
    app = App("two")
    app.consumer(questions)(tea)
    outer = Queue("outer", str)

    @app.consumer(outer)
    async def ask(question: str) -> str:
        return "they say " + await broker.request(questions, question, result=str)

    async with Worker(app, broker):
        assert await broker.request(outer, "?") == "they say tea"
