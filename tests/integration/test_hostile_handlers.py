"""What a handler does to its process concerns its own message, not others or the worker (G4).

That any exception of any class is one attempt is in test_retry.py, deaths of processes are in
test_process_handlers.py, and threads that never end in test_drain.py.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mqcore import (
    App,
    BlockingContext,
    Broker,
    ConfigurationError,
    Context,
    DeadLetter,
    Queue,
    Received,
    RemoteError,
    RetryPolicy,
    Settings,
    Worker,
    fixed,
)
from mqcore.spi import Delivery, Message
from mqcore.testing import VirtualClock

Dead = Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]
SECRET = "hunter2" + "canary"
TWICE = RetryPolicy(2, fixed(1))

jobs = Queue("jobs", str)
baskets = Queue("baskets", list[int])


def current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def hang(_: Context) -> None:
    await asyncio.Event().wait()


async def cancel_itself(_: Context) -> None:
    current().cancel()
    await asyncio.sleep(0)


async def await_what_was_cancelled(_: Context) -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task


async def fail_in_a_group(_: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(hang(_))
        group.create_task(fail_with(ValueError("one of them")))


async def fail_with(error: BaseException) -> None:
    raise error


async def raise_a_cycle(_: Context) -> None:
    error = ValueError("its own cause")
    error.__cause__ = error
    raise error


async def raise_a_long_chain(_: Context) -> None:
    error = ValueError("first")
    for number in range(2_000):
        following = ValueError(f"{number}")
        following.__context__, error = error, following
    raise error


async def cancel_and_go_on(_: Context) -> None:
    current().cancel()


async def swallow_the_limit(_: Context) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return


BAD: dict[str, tuple[Callable[[Context], Awaitable[None]], str | None]] = {
    "hangs": (hang, "timeout"),
    "cancels itself": (cancel_itself, "retries_exhausted"),
    "awaits what was cancelled": (await_what_was_cancelled, "retries_exhausted"),
    "fails in a group": (fail_in_a_group, "retries_exhausted"),
    "raises a cycle": (raise_a_cycle, "retries_exhausted"),
    "raises a long chain": (raise_a_long_chain, "retries_exhausted"),
    "cancels itself and returns before that": (cancel_and_go_on, None),
    "swallows its limit and returns": (swallow_the_limit, None),
}


@pytest.mark.parametrize("kind", ["one by one", "batch"])
@pytest.mark.parametrize("name", BAD)
async def test_it_costs_its_own_message_two_attempts_and_nobody_else(
    broker: Broker, serve: Any, dead: Dead, clock: VirtualClock, name: str, kind: str
) -> None:
    bad, reason = BAD[name]
    handled: list[str] = []

    async def handler(payload: str, ctx: Any) -> None:
        if payload == "bad":
            await bad(ctx)
        handled.append(payload)

    async def batch_handler(items: list[Received[str]]) -> None:
        for item in items:
            await handler(item.value, item)

    await broker.publish_many(jobs, ["good 1", "bad", "good 2"])
    options: dict[str, Any] = {"retry": TWICE, "concurrency": 1, "timeout": 5}
    by_kind: Any = handler if kind == "one by one" else batch_handler
    async with serve(jobs, by_kind, **options, **({} if kind == "one by one" else {"batch": 1})):
        await clock.advance(30)
        (counts,) = await broker.counts(jobs)
        assert (counts.ready, counts.leased, counts.delayed) == (0, 0, 0)
    assert [payload for payload in handled if payload != "bad"] == ["good 1", "good 2"]
    letters = await dead(jobs)
    assert [(letter.reason, letter.attempts) for letter in letters] == (
        [(reason, 2)] if reason else []
    )
    assert all(len(letter.death.traceback) <= 4_000 for letter in letters)


async def test_who_cancels_itself_and_returns_has_replied(broker: Broker, serve: Any) -> None:
    async def handler(payload: str) -> str:
        current().cancel()
        return payload.upper()

    async with serve(jobs, handler):
        assert await broker.request(jobs, "x", result=str) == "X"


async def test_a_handler_that_goes_on_past_its_limit_keeps_its_slot_and_has_timed_out(
    broker: Broker, serve: Any, dead: Dead, clock: VirtualClock
) -> None:
    ran: list[tuple[str, float]] = []

    async def handler(payload: str) -> None:
        ran.append((payload, clock.monotonic()))
        if payload == "bad":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await clock.sleep(7)

    await broker.publish_many(jobs, ["bad", "good"])
    async with serve(jobs, handler, timeout=5, concurrency=1, retry=TWICE):
        await clock.advance(60)
    assert ran == [("bad", 0.0), ("good", 12.0), ("bad", 13.0)]
    assert [(letter.reason, letter.attempts) for letter in await dead(jobs)] == [("timeout", 2)]


async def test_a_payload_that_is_changed_comes_back_unchanged(
    broker: Broker, serve: Any, clock: VirtualClock
) -> None:
    seen: list[list[int]] = []

    async def handler(basket: list[int]) -> None:
        seen.append(list(basket))
        basket.append(9)
        raise ValueError

    await broker.publish(baskets, [1])
    async with serve(baskets, handler, retry=TWICE):
        await clock.advance(5)
    assert seen == [[1], [1]]


async def test_facts_cannot_be_changed(
    broker: Broker, serve: Any, dead: Dead, clock: VirtualClock
) -> None:
    async def handler(_: str, ctx: Context) -> None:
        ctx.headers["who"] = "me"  # type: ignore[index]  # read-only, which is the point

    await broker.publish(jobs, "x", headers={"who": "you"})
    async with serve(jobs, handler, retry=RetryPolicy(1)):
        await clock.settle()
    (letter,) = await dead(jobs)
    assert letter.headers == {"who": "you"}
    assert letter.error.startswith("TypeError")


async def test_a_context_variable_stays_with_its_message(
    broker: Broker, serve: Any, clock: VirtualClock
) -> None:
    tenant = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    async def handler(payload: str) -> None:
        seen.append(tenant.get())
        tenant.set(payload)

    await broker.publish_many(jobs, ["a", "b", "c"])
    async with serve(jobs, handler, concurrency=1):
        await clock.settle()
    assert seen == ["nobody"] * 3


async def test_an_awaitable_that_nobody_awaits_is_no_success(
    broker: Broker, serve: Any, dead: Dead, clock: VirtualClock
) -> None:
    async def really(payload: str) -> None:
        raise AssertionError(payload)

    def wrapped(payload: str) -> Any:
        return really(payload)

    await broker.publish(jobs, "x")
    async with serve(jobs, wrapped, retry=RetryPolicy(1)):
        await clock.settle()
    (letter,) = await dead(jobs)
    assert (letter.reason, letter.attempts) == ("retries_exhausted", 1)
    assert "async def" in letter.error


async def test_a_blocking_publish_on_the_loop_itself_is_refused_and_blocks_nothing(
    broker: Broker,
) -> None:
    ctx = BlockingContext(
        "jobs", Delivery(Message(id="x", body=b""), b""), broker._session.publisher
    )
    with pytest.raises(ConfigurationError, match="call it from a thread"):
        ctx.publish(jobs, "y")
    receipt = await asyncio.to_thread(ctx.publish, jobs, "z")
    assert receipt.queues == ("jobs",)


async def test_an_item_that_is_settled_after_its_batch_is_settled_once(
    broker: Broker, serve: Any, dead: Dead, clock: VirtualClock
) -> None:
    kept: list[Received[str]] = []

    async def handler(items: list[Received[str]]) -> None:
        kept.extend(items)

    await broker.publish_many(jobs, ["a", "b"])
    async with serve(jobs, handler, batch=2):
        await clock.advance(1)
        for item in kept:
            await item.reject("too late")
        await clock.advance(1)
    assert [item.value for item in kept] == ["a", "b"]
    assert await dead(jobs) == []
    assert broker.events.counts["message.done"] == 2


async def test_a_handler_may_stop_its_worker(
    broker: Broker, clock: VirtualClock, dead: Dead
) -> None:
    app, ran = App("shop"), []

    @app.consumer(jobs, concurrency=1)
    async def handler(payload: str) -> None:
        ran.append(payload)
        await worker.drain(3)

    worker = Worker(app, broker)
    await broker.publish_many(jobs, ["bad", "good"])
    async with worker:
        await clock.advance(10)
    (counts,) = await broker.counts(jobs)
    assert (ran, counts.ready, counts.leased) == (["bad"], 2, 0)
    assert [entry.message.attempt for entry in await broker.peek(jobs)] == [1, 1]
    assert await dead(jobs) == []


async def test_a_handler_that_closes_the_broker_loses_no_message(
    broker: Broker, clock: VirtualClock, url: str, serve: Any
) -> None:
    handled: list[str] = []

    async def handler(payload: str) -> None:
        handled.append(payload)

    other = Broker.connect(url, clock=clock, settings=Settings())
    await other.open()

    async def close(_: str) -> None:
        await other.close()

    await broker.publish_many(jobs, ["bad", "good"])
    async with serve(jobs, close, on=other, concurrency=1):
        await clock.advance(1)
    async with serve(jobs, handler):
        await clock.advance(60)
    assert sorted(handled) == ["bad", "good"]


async def test_a_secret_in_an_exception_goes_nowhere(
    broker: Broker, serve: Any, dead: Dead, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def handler(_: str) -> None:
        raise ConnectionError(
            "no route to " + f"postgresql://user:{SECRET}@db:5432/shop?sslpassword={SECRET}"
        )

    async with serve(jobs, handler, retry=TWICE):
        asking = asyncio.create_task(broker.request(jobs, "x"))
        await clock.advance(5)
        with pytest.raises(RemoteError) as caught:
            await asking
    (letter,) = await dead(jobs)
    assert "no route to postgresql://user:***@db:5432" in letter.error
    assert SECRET not in f"{letter!r} {caught.value}"
    for record in caplog.get_records("call"):
        assert SECRET not in logging.Formatter().format(record) + repr(vars(record))
