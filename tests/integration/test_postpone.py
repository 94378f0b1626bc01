"""G10: a handler postpones its message, and nothing is counted."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.process_handlers import app as in_processes
from support.process_handlers import jobs as of_processes
from support.waiting import eventually

import mqcore.sync
from mqcore import (
    App,
    BlockingContext,
    Broker,
    ConfigurationError,
    Context,
    DeadLetter,
    Postpone,
    Queue,
    Received,
    RetryPolicy,
    Settings,
    Worker,
    fixed,
)
from mqcore.testing import VirtualClock, memory_url

Dead = Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]
Suspect = Callable[[Queue[Any], int], Awaitable[None]]
jobs = Queue("jobs", str)
ONCE = RetryPolicy(1)


class Postponing:
    """A handler that records its runs, and raises what it is given, in turn."""

    def __init__(self, clock: VirtualClock, *errors: BaseException | None) -> None:
        self.clock, self.errors = clock, list(errors)
        self.times: list[float] = []
        self.seen: list[Context] = []
        self.names: list[str] = []

    async def __call__(self, job: str, ctx: Context) -> str:
        self.times.append(round(self.clock.monotonic(), 2))
        self.seen.append(ctx)
        self.names.append(job)
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        return f"{job} done"


async def test_a_postponed_message_comes_again_as_it_was(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    handler = Postponing(clock, Postpone(10), Postpone(0), Postpone(5))
    await broker.publish(jobs, "x", id="me", headers={"a": "b"}, priority=8)
    async with serve(jobs, handler, retry=ONCE):
        await clock.advance(9)
        assert (await broker.counts(jobs))[0].delayed == 1
        await clock.advance(30)
    began = handler.times[0]
    assert [moment - began for moment in handler.times] == [0, 10, 10, 15]
    assert [ctx.attempt for ctx in handler.seen] == [1, 1, 1, 1], "one attempt is all there is"
    assert {(ctx.id, ctx.priority, ctx.headers["a"]) for ctx in handler.seen} == {("me", 8, "b")}
    assert not await dead(jobs)
    assert broker.events.counts["message.postponed"] == 3
    assert broker.events.counts["message.done"] == 1


async def test_failures_before_and_after_are_counted_as_without_it(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    handler = Postponing(clock, ValueError(), Postpone(5), ValueError())
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=RetryPolicy(2, fixed(3))):
        await clock.advance(60)
    assert [ctx.attempt for ctx in handler.seen] == [1, 2, 2]
    (letter,) = await dead(jobs)
    assert (letter.attempts, letter.reason) == (2, "retries_exhausted")
    assert letter.death.last_at - letter.death.first_at == pytest.approx(8, abs=0.1)


async def test_a_wait_beyond_the_expiry_ends_there_and_not_before(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    handler = Postponing(clock, Postpone(3600))
    await broker.publish(jobs, "x", ttl=60)
    async with serve(jobs, handler):
        await clock.advance(59)
        assert not await dead(jobs)
        assert (await broker.counts(jobs))[0].delayed == 1
        await clock.advance(3)
        (letter,) = await dead(jobs)
    assert (letter.reason, len(handler.times)) == ("expired", 1)


async def test_max_age_ends_what_is_postponed_again_and_again(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    handler = Postponing(clock, *[Postpone(10)] * 20)
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=RetryPolicy(3, max_age=35)):
        await clock.advance(100)
    (letter,) = await dead(jobs)
    assert (letter.reason, len(handler.times)) == ("retries_exhausted", 4)


async def test_what_is_postponed_goes_behind_the_others_and_holds_no_place(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    handler = Postponing(clock, Postpone(0))
    await broker.publish_many(jobs, ["a", "b", "c"])
    async with serve(jobs, handler, concurrency=1, prefetch=1):
        await clock.settle()
        assert handler.names == ["a", "b", "c", "a"]
        assert (await broker.counts(jobs))[0].leased == 0


async def test_a_blocking_handler_postpones(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    seen: list[int] = []

    def handler(_: str, ctx: BlockingContext) -> None:
        seen.append(ctx.attempt)
        if len(seen) == 1:
            raise Postpone(10)

    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=ONCE):
        await clock.advance(11)
    assert seen == [1, 1]


async def test_a_process_postpones(tmp_path: Path) -> None:
    async with (
        Broker.connect(memory_url(), settings=Settings()) as broker,
        Worker(in_processes, broker, queues=["jobs"], grace=0),
    ):
        await broker.publish(of_processes, f"postpone {tmp_path / 'began'}")
        counts = broker.events.counts
        await eventually(lambda: counts["message.done"] == 1, 10)
    assert (counts["message.postponed"], counts["message.retried"]) == (1, 0)
    assert (tmp_path / "began").read_text() == "11", "attempt 1, twice"


async def test_a_batch_that_postpones_postpones_what_it_has_not_settled(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    batches: list[list[tuple[str, int]]] = []

    async def handler(items: list[Received[str]]) -> None:
        batches.append([(item.value, item.attempt) for item in items])
        if len(batches) == 1:
            await items[0].ack()
            await items[1].postpone(20)
            raise Postpone(10)

    await broker.publish_many(jobs, ["a", "b", "c", "d"])
    async with serve(jobs, handler, batch=4, linger=0.1, retry=ONCE):
        await clock.advance(30)
    assert batches == [
        [("a", 1), ("b", 1), ("c", 1), ("d", 1)],
        [("c", 1), ("d", 1)],
        [("b", 1)],
    ], "they come in batches again: nothing has failed"


async def test_the_pull_api_postpones(broker: Broker, clock: VirtualClock) -> None:
    await broker.publish(jobs, "x")
    async with broker.consume(jobs, retry=ONCE) as deliveries:
        first = await anext(deliveries)
        with pytest.raises(ConfigurationError, match="delay"):
            await first.postpone(-1)
        await first.postpone(10)
        assert await deliveries.get(timeout=0) is None
        await clock.advance(11)
        again = await anext(deliveries)
        assert (again.id, again.attempt) == (first.id, 1)
        await again.ack()


def test_the_blocking_pull_api_postpones() -> None:
    with mqcore.sync.Broker.connect(memory_url(), settings=Settings()) as broker:
        broker.publish(jobs, "x")
        with broker.consume(jobs, retry=ONCE) as deliveries:
            first = next(deliveries)
            first.postpone(0.05)
            again = next(deliveries)
            assert (again.id, again.attempt, first.finished) == (first.id, 1, True)
            again.ack()


async def test_a_suspect_that_postpones_stays_in_the_quarantine(
    broker: Broker, clock: VirtualClock, serve: Any, suspect: Suspect
) -> None:
    handler = Postponing(clock, Postpone(30))
    await broker.publish(jobs, "x")
    await suspect(jobs, 1)
    async with serve(jobs, handler):
        await clock.advance(10)
        (quarantine,) = await broker.counts("jobs.quarantine")
        assert quarantine.delayed == 1
        await broker.publish(jobs, "beside")
        await clock.settle()
        assert handler.names == ["x", "beside"], "others run while it waits"
        await clock.advance(31)
    assert handler.names == ["x", "beside", "x"]
    assert [(ctx.attempt, ctx.redelivered) for ctx in handler.seen] == [
        (1, True),
        (1, False),
        (1, True),
    ]


async def test_a_request_is_answered_when_its_message_has_ended(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    handler = Postponing(clock, Postpone(5))
    async with serve(jobs, handler, retry=ONCE):
        asked = asyncio.create_task(broker.request(jobs, "x", result=str))
        await clock.advance(6)
        assert await asked == "x done"
    assert len(handler.times) == 2


async def test_with_ack_first_a_message_is_gone_before_it_could_be_postponed(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    handler = Postponing(clock, Postpone(5))
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, ack_first=True):
        await clock.advance(60)
    assert len(handler.times) == 1
    assert not await dead(jobs)


async def test_middleware_may_postpone(broker: Broker, clock: VirtualClock, url: str) -> None:
    """As a limit of a rate does: the handler is not called before its turn."""
    from mqcore.middleware import Middleware  # noqa: PLC0415 - what this test alone uses

    class Turn(Middleware):
        async def handle(self, ctx: Context, call_next: Any) -> object:
            if clock.monotonic() < due:
                raise Postpone(due - clock.monotonic())
            return await call_next(ctx)

    due = clock.monotonic() + 20
    app, handler = App("shop", middleware=[Turn()]), Postponing(clock)
    app.register(jobs, handler, {})
    async with app.connect(url, clock=clock, settings=Settings()) as own, Worker(app, own):
        await broker.publish(jobs, "x")
        await clock.advance(25)
    assert handler.times == [pytest.approx(due, abs=0.1)]
