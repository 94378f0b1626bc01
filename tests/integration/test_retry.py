"""G10 and G4: what is tried again, when, how often, and what stays the same meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    Context,
    DeadLetter,
    Queue,
    Reject,
    Retry,
    RetryPolicy,
    Settings,
    Worker,
    exponential,
    fixed,
    linear,
)
from mqcore.testing import VirtualClock

Dead = Callable[[Queue[Any]], Awaitable[list[DeadLetter]]]
jobs = Queue("jobs", str)
THREE = RetryPolicy(max_attempts=3, backoff=fixed(10))


class Failing:
    """A handler that notes when it ran and what it knew, and raises."""

    def __init__(
        self,
        clock: VirtualClock,
        *errors: BaseException | None,
        always: BaseException | None = None,
    ) -> None:
        self.clock, self.errors, self.always = clock, list(errors), always
        self.times: list[float] = []
        self.seen: list[Context] = []

    async def __call__(self, _: str, ctx: Context) -> None:
        self.times.append(self.clock.monotonic())
        self.seen.append(ctx)
        error = self.errors.pop(0) if self.errors else self.always
        if error is not None:
            raise error

    @property
    def attempts(self) -> list[int]:
        return [ctx.attempt for ctx in self.seen]

    @property
    def waits(self) -> list[float]:
        return [
            round(after - before, 6)
            for before, after in zip(self.times, self.times[1:], strict=False)
        ]


async def test_five_attempts_of_exponential_backoff_in_no_time(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    policy = RetryPolicy(max_attempts=5, backoff=exponential(60, cap=3600, jitter=False))
    handler = Failing(clock, always=ValueError("no"))
    began = time.perf_counter()
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=policy):
        await clock.advance(60 + 120 + 240 + 480)
    assert time.perf_counter() - began < 5
    assert handler.attempts == [1, 2, 3, 4, 5]
    assert handler.waits == [60, 120, 240, 480]
    (letter,) = await dead(jobs)
    assert (letter.reason, letter.attempts) == ("retries_exhausted", 5)


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        (fixed(7), [7, 7, 7]),
        (linear(5, cap=12, jitter=False), [5, 10, 12]),
        (exponential(1, factor=10, cap=50, jitter=False), [1, 10, 50]),
        (fixed(0), [0, 0, 0]),
    ],
)
async def test_the_sequence_of_waits(
    broker: Broker, clock: VirtualClock, serve: Any, backoff: Any, waits: list[float]
) -> None:
    handler = Failing(clock, always=ValueError())
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=RetryPolicy(max_attempts=4, backoff=backoff)):
        await clock.advance(200)
    assert handler.waits == waits


async def test_jitter_draws_from_nothing_to_the_full_wait(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    waits: list[float] = []
    began: dict[str, float] = {}

    async def handler(_: str, ctx: Context) -> None:
        if ctx.attempt == 1:
            began[ctx.id] = clock.monotonic()
            raise ValueError
        waits.append(clock.monotonic() - began[ctx.id])

    await broker.publish_many(jobs, ["x"] * 200)
    async with serve(
        jobs, handler, retry=RetryPolicy(max_attempts=2, backoff=fixed(100, jitter=True))
    ):
        await clock.advance(101)
    assert len(waits) == 200
    assert 0 <= min(waits) < 10
    assert 90 < max(waits) <= 100


@pytest.mark.parametrize("delay", [300, timedelta(minutes=5)], ids=["seconds", "timedelta"])
async def test_retry_asks_for_its_own_delay(
    broker: Broker, clock: VirtualClock, serve: Any, delay: float | timedelta
) -> None:
    handler = Failing(clock, Retry(delay=delay), None)
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=THREE):
        await clock.advance(300)
    assert handler.waits == [300]
    assert handler.attempts == [1, 2]


async def test_retry_does_not_override_max_attempts(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    handler = Failing(clock, always=Retry(delay=1))
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=THREE):
        await clock.advance(100)
    assert handler.attempts == [1, 2, 3]
    assert [letter.reason for letter in await dead(jobs)] == ["retries_exhausted"]


@pytest.mark.parametrize(
    "delay", ["soon", float("nan"), -5, object()], ids=["text", "nan", "negative", "object"]
)
async def test_a_senseless_delay_is_a_failure_like_any_other(
    broker: Broker, clock: VirtualClock, serve: Any, delay: Any
) -> None:
    handler = Failing(clock, Retry(delay=delay), None)
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=THREE):
        await clock.advance(11)
        assert (await broker.counts(jobs))[0].leased == 0
    assert handler.attempts == [1, 2]


async def test_an_endless_delay_is_cut_to_what_the_backend_can(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    handler = Failing(clock, Retry(delay=float("inf")))
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=THREE):
        await clock.settle()
    assert (await broker.counts(jobs))[0].delayed == 1


async def test_reject_goes_straight_to_the_dead_letters(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    handler = Failing(clock, Reject("bad customer"))
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=THREE):
        await clock.advance(60)
    assert handler.attempts == [1]
    (letter,) = await dead(jobs)
    assert (letter.reason, letter.attempts, letter.death.error) == ("rejected", 1, "bad customer")


async def test_only_what_is_in_retry_on_is_retried(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    handler = Failing(clock, ConnectionResetError(), KeyError("k"))
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=RetryPolicy(5, fixed(1), retry_on=(OSError,))):
        await clock.advance(10)
    assert handler.attempts == [1, 2]  # a ConnectionResetError is an OSError, a KeyError is not
    (letter,) = await dead(jobs)
    assert (letter.reason, letter.death.error_type) == ("rejected", "KeyError")


async def test_what_is_in_give_up_on_is_not_retried(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    handler = Failing(clock, FileNotFoundError())
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=RetryPolicy(5, fixed(1), give_up_on=(OSError,))):
        await clock.advance(10)
    assert handler.attempts == [1]


async def test_an_explicit_retry_is_not_subject_to_retry_on(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    handler = Failing(clock, Retry(delay=1), None)
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=RetryPolicy(5, fixed(1), retry_on=(OSError,))):
        await clock.advance(10)
    assert handler.attempts == [1, 2]


@pytest.mark.parametrize("age", [25, timedelta(seconds=25)], ids=["seconds", "timedelta"])
async def test_max_age_gives_up_earlier(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead, age: float | timedelta
) -> None:
    handler = Failing(clock, always=ValueError())
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=RetryPolicy(100, fixed(10), max_age=age)):
        await clock.advance(1000)
    assert handler.times == [0, 10, 20]
    assert [letter.reason for letter in await dead(jobs)] == ["retries_exhausted"]


async def test_retry_does_not_reset_the_expiry(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    handler = Failing(clock, always=ValueError())
    await broker.publish(jobs, "x", ttl=25)
    async with serve(jobs, handler, retry=RetryPolicy(100, fixed(10))):
        await clock.advance(20)
        assert handler.times == [0, 10, 20]
        (letter,) = await dead(jobs)  # the next would start at 30: dead-lettered at once
    assert (letter.reason, letter.attempts) == ("expired", 3)
    assert letter.death.error_type == "ValueError"


async def test_the_queues_ttl_does_not_begin_anew(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    brief = Queue("brief", str, ttl=25)
    handler = Failing(clock, always=ValueError())
    await broker.publish(brief, "x")
    async with serve(brief, handler, retry=RetryPolicy(100, fixed(10))):
        await clock.advance(100)
    assert handler.times == [0, 10, 20]
    assert [letter.reason for letter in await dead(brief)] == ["expired"]


async def test_what_a_retry_keeps(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    handler = Failing(clock, ValueError(), None)
    await broker.publish(
        jobs, "x", id="me", priority=9, headers={"tenant": "t", "traceparent": "00-ab"}
    )
    async with serve(jobs, handler, retry=THREE):
        await clock.advance(10)
    first, second = handler.seen
    for name in ("id", "priority", "headers", "published_at", "content_type", "correlation_id"):
        assert getattr(first, name) == getattr(second, name), name
    assert (first.redelivered, second.redelivered) == (False, True)


async def test_nobody_waits_in_a_worker(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    handler = Failing(clock, ValueError(), always=None)
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=THREE, concurrency=1, prefetch=1):
        await clock.settle()
        counts = (await broker.counts(jobs))[0]
        assert (counts.delayed, counts.leased) == (1, 0)
        await broker.publish(jobs, "y")
        await clock.settle()
        assert len(handler.seen) == 2


async def test_a_wait_survives_the_worker(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    handler = Failing(clock, ValueError(), None)
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=THREE):
        await clock.settle()
    await clock.advance(60)
    assert handler.attempts == [1]
    async with serve(jobs, handler, retry=THREE):
        await clock.settle()
    assert handler.attempts == [1, 2]


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Deadly(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        StopIteration(),
        StopAsyncIteration(),
        ExceptionGroup("two", [ValueError("a"), Retry(delay=3)]),
        BaseExceptionGroup("base", [SystemExit(1)]),
        Mute(),
        Deadly(),
        TimeoutError("its own"),
        MemoryError(),
        RecursionError(),
        UnicodeError("\ud800 lone"),
        ValueError("x" * 100_000),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("kind", ["async", "thread", "batch"])
async def test_any_exception_is_one_attempt_of_its_message_and_nothing_else(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead, error: BaseException, kind: str
) -> None:
    handled: list[str] = []
    options: dict[str, Any] = {"retry": RetryPolicy(2, fixed(1)), "concurrency": 1}

    def run(payload: str) -> None:
        if payload == "bad":
            raise error
        handled.append(payload)

    async def run_async(payload: str) -> None:
        run(payload)

    async def run_batch(items: list[Any]) -> None:
        for item in items:
            run(item.value)

    await broker.publish_many(jobs, ["bad", "good"])
    if kind == "batch":
        options |= {"batch": 1}
    handler: Any = {"async": run_async, "thread": run, "batch": run_batch}[kind]
    async with serve(jobs, handler, **options):
        await clock.advance(5)
        counts = (await broker.counts(jobs))[0]
        assert (counts.ready, counts.leased, counts.delayed) == (0, 0, 0)
    assert handled == ["good"]
    (letter,) = await dead(jobs)
    assert (letter.reason, letter.attempts) == ("retries_exhausted", 2)
    assert len(letter.death.error) <= 2000
    assert len(letter.death.traceback) <= 4000


async def test_the_pull_api_retries_by_the_policy(
    broker: Broker, clock: VirtualClock, dead: Dead
) -> None:
    await broker.publish(jobs, "x")
    async with broker.consume(jobs, retry=THREE) as deliveries:
        await (await anext(deliveries)).retry(error=ValueError("because"))
        assert await deliveries.get(timeout=0) is None
        await clock.advance(10)
        second = await anext(deliveries)
        assert second.attempt == 2
        await second.retry(delay=timedelta(seconds=3))
        await clock.advance(3)
        third = await anext(deliveries)
        await third.retry(error=KeyError("last"))
    (letter,) = await dead(jobs)
    assert (letter.attempts, letter.death.error_type) == (3, "KeyError")


async def test_configuration_wins_over_code(clock: VirtualClock, url: str) -> None:
    settings = Settings.model_validate(
        {"queues": {"jobs": {"retry": {"max_attempts": 2, "backoff": "fixed", "base": 5.0}}}}
    )
    handler = Failing(clock, always=ValueError())
    app = App("test")
    app.consumer(jobs, retry=RetryPolicy(10, exponential(100)))(handler)
    async with Broker.connect(url, clock=clock, settings=settings) as broker:
        await broker.publish(jobs, "x")
        async with Worker(app, broker):
            await clock.advance(100)
    assert handler.times == [0, 5]


async def test_the_consumers_policy_wins_over_the_queues(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    patient = Queue("patient", str, retry=RetryPolicy(4, fixed(2)))
    handler = Failing(clock, always=ValueError())
    await broker.publish(patient, "x")
    async with serve(patient, handler):
        await clock.advance(100)
    assert handler.times == [0, 2, 4, 6]
    handler.times.clear()
    await broker.publish(patient, "y")
    async with serve(patient, handler, retry=RetryPolicy(1)):
        await clock.advance(100)
    assert len(handler.times) == 1


def test_a_policy_that_would_never_run_a_handler_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        RetryPolicy(max_attempts=0)
