"""A profile for each message: its own mode, time limit and retry policy."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.process_handlers import mixed, mixed_app
from support.waiting import eventually

from mqcore import (
    App,
    BlockingContext,
    Broker,
    ConfigurationError,
    Context,
    DeadLetter,
    HandlerTimeout,
    Message,
    Middleware,
    Profile,
    Queue,
    RetryPolicy,
    Settings,
    Worker,
    fixed,
)
from mqcore.testing import VirtualClock, memory_url

Dead = Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]
Suspect = Callable[[Queue[Any], int], Awaitable[None]]
jobs = Queue("jobs", str)
PROFILES = {
    "once": Profile(retry=RetryPolicy(1)),
    "often": Profile(retry=RetryPolicy(5, fixed(1))),
    "short": Profile(timeout=2, retry=RetryPolicy(1)),
    "endless": Profile(timeout=None),
    "thread": Profile(mode="thread"),
    "process": Profile(mode="process"),
}


def by_header(message: Message) -> Profile | None:
    return PROFILES.get(message.headers.get("profile", ""))


async def publish(broker: Broker, *names: str) -> None:
    for name in names:
        await broker.publish(jobs, name, id=name, headers={"profile": name})


async def fail(_: str) -> None:
    raise ValueError("oh")


async def test_each_message_is_tried_as_often_as_its_own_policy_says(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    await publish(broker, "once", "often", "other")
    async with serve(jobs, fail, retry=RetryPolicy(2, fixed(1)), profile=by_header):
        await clock.advance(30)
    letters = {letter.id: letter.attempts for letter in await dead(jobs)}
    assert letters == {"once": 1, "often": 5, "other": 2}


async def test_each_message_has_its_own_time_limit(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    ended: list[str] = []

    async def handler(job: str) -> None:
        try:
            await clock.sleep(1000)
        finally:
            ended.append(f"{job} at {round(clock.monotonic() - began)}")

    began = clock.monotonic()
    await publish(broker, "short", "endless", "other")
    async with serve(jobs, handler, timeout=10, retry=RetryPolicy(1), profile=by_header):
        await clock.advance(1001)
    assert ended == ["short at 2", "other at 10", "endless at 1000"]
    assert {letter.id: letter.reason for letter in await dead(jobs)} == {
        "short": "timeout",
        "other": "timeout",
    }


async def test_a_killer_is_started_as_often_as_its_own_policy_allows(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    """With after_crash="count", which decides before the handler is chosen."""
    runs: list[str] = []

    async def handler(job: str) -> None:
        runs.append(job)

    backend = broker._session.connection.backend
    await publish(broker, "once", "often")
    subscription = await backend.subscribe("jobs", prefetch=2, lease=30)
    held = await subscription.receive(2, 0)
    await backend.note_start("jobs", [delivery.receipt for delivery in held])
    await subscription.close()
    async with serve(jobs, handler, profile=by_header, after_crash="count"):
        await clock.settle()
    assert runs == ["often"]
    assert [(letter.id, letter.reason) for letter in await dead(jobs)] == [("once", "crashed")]


async def test_each_message_runs_in_its_own_mode() -> None:
    async with (
        Broker.connect(memory_url(), settings=Settings()) as broker,
        Worker(mixed_app, broker, grace=0),
    ):
        found = {
            mode: await broker.request(mixed, mode, headers={"profile": mode}, result=list[int])
            for mode in ("thread", "process", "async")
        }
    here = [os.getpid(), threading.get_ident()]
    assert found["async"] == here
    assert found["thread"][0] == here[0]
    assert found["thread"][1] != here[1]
    assert found["process"][0] != here[0]


async def test_a_process_that_dies_costs_one_attempt_of_its_message_alone() -> None:
    async with Broker.connect(memory_url(), settings=Settings()) as broker:
        async with Worker(mixed_app, broker, grace=0):
            await broker.publish(mixed, "exit", headers={"profile": "process"})
            await broker.publish(mixed, "async", headers={"profile": "async"})
            counts = broker.events.counts
            await eventually(lambda: counts["message.dead"] == counts["message.done"] == 1, 10)
        (letter,) = await broker.dead_letters(mixed).list()
    assert (letter.reason, letter.attempts) == ("crashed", 1)


async def test_a_time_limit_of_a_profile_kills_a_process() -> None:
    async with Broker.connect(memory_url(), settings=Settings()) as broker:
        async with Worker(mixed_app, broker, grace=0):
            await broker.publish(mixed, "hang", headers={"profile": "short process"})
            counts = broker.events.counts
            await eventually(lambda: counts["message.dead"] == 1, 20)
        (letter,) = await broker.dead_letters(mixed).list()
    assert letter.reason == "timeout"


async def test_middleware_runs_around_every_mode(clock: VirtualClock, url: str) -> None:
    seen: list[str] = []

    class Around(Middleware):
        async def handle(self, ctx: Context, call_next: Any) -> object:
            try:
                return await call_next(ctx)
            except HandlerTimeout:
                seen.append(f"{ctx.id} timed out")
                raise
            finally:
                seen.append(ctx.id)

    async def handler(job: str) -> None:
        if job == "short":
            await asyncio.Event().wait()

    def blocking(_: str, ctx: BlockingContext) -> None:
        seen.append(f"blocking {ctx.id}")

    app = App("shop", middleware=[Around()])
    app.register(
        jobs, handler, {"profile": by_header, "modes": {"thread": blocking}, "concurrency": 1}
    )
    async with app.connect(url, clock=clock, settings=Settings()) as broker, Worker(app, broker):
        await publish(broker, "thread", "short", "other")
        await clock.advance(5)
    assert seen == ["blocking thread", "thread", "short timed out", "short", "other"]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda _: {"timeout": 1}, "profile= returned dict"),
        (lambda _: Profile(mode="process"), "modes={'process': ...}"),
        (lambda _: 1 / 0, "division by zero"),
    ],
    ids=["not a profile", "mode without a handler", "raises"],
)
async def test_a_profile_that_cannot_be_used_dead_letters_its_message(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead, wrong: Any, error: str
) -> None:
    async def handler(_: str) -> None: ...

    def choose(message: Message) -> Profile | None:
        return wrong(message) if message.id == "wrong" else None  # type: ignore[no-any-return]  # the mistake

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    await broker.publish(jobs, "x", id="wrong")
    await broker.publish(jobs, "x", id="right")
    async with serve(jobs, handler, profile=choose):
        await clock.advance(1)
    (letter,) = await dead(jobs)
    assert (letter.id, letter.reason) == ("wrong", "rejected")
    assert error in letter.error
    assert broker.events.counts["message.done"] == 1


async def test_the_drain_does_not_wait_for_a_process_that_starts(tmp_path: Any) -> None:
    async with Broker.connect(memory_url(), settings=Settings()) as broker:
        worker = Worker(mixed_app, broker, grace=30)
        await worker.start()
        runner = worker._runners[0]
        blocked = asyncio.Event()

        async def never(_: int) -> None:
            blocked.set()
            await asyncio.Event().wait()

        runner._courses._executors["process"].ready = never  # type: ignore[method-assign]  # a start that takes long
        await broker.publish(mixed, "late", headers={"profile": "process"})
        await blocked.wait()
        async with asyncio.timeout(10):
            await worker.drain()
        (counts,) = await broker.counts(mixed)
        assert (counts.ready, counts.leased) == (1, 0)
        assert broker.events.counts["message.released"] == 1


async def test_the_conclusion_has_the_outcome_by_the_profile(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    seen: list[tuple[str, int]] = []

    async def hook(conclusions: Any) -> None:
        seen.extend((each.id, each.attempt) for each in conclusions)

    await publish(broker, "once", "often")
    async with serve(jobs, fail, profile=by_header, conclusion=hook):
        await clock.advance(30)
    assert seen == [("once", 1), ("often", 5)]


async def _run(_: str) -> None: ...


def _block(_: str) -> None: ...


async def _batch(_: list[Any]) -> None: ...


@pytest.mark.parametrize(
    ("handler", "options", "error"),
    [
        (_batch, {"profile": by_header, "batch": 5}, "does not go with a batch"),
        (_run, {"profile": 5}, "function of one message"),
        (_run, {"modes": {"thread": _block}}, "no effect without profile="),
        (_run, {"profile": by_header, "modes": {"thread": _run}}, "handler of mode 'async'"),
        (_run, {"profile": by_header, "modes": {"async": _run}}, "of that mode itself"),
        (_run, {"profile": by_header, "modes": {"fibre": _block}}, "async, thread, process"),
        (_run, {"profile": by_header, "modes": [_block]}, "dict of handlers"),
        (_run, {"profile": by_header, "modes": {"process": lambda _: None}}, "top level"),
    ],
    ids=range(8),
)
def test_profiles_that_could_not_work_are_refused(handler: Any, options: Any, error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        App("shop").register(Queue("jobs", str), handler, options)


@pytest.mark.parametrize(
    "wrong", [{"mode": "fibre"}, {"timeout": -1}, {"timeout": "x"}, {"retry": 3}], ids=str
)
def test_a_profile_with_a_wrong_value_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="profile"):
        Profile(**wrong)
