"""`process=True` through a Worker: a dead process costs one attempt of one message."""

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from support.process_handlers import Point, app, jobs, points
from support.waiting import eventually

from mqcore import App, Broker, DeadLetter, Queue, RemoteError, Settings, Worker
from mqcore.spi import Message, Outgoing
from mqcore.testing import memory_url

Dead = Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]


@pytest.fixture
async def real() -> AsyncIterator[Broker]:
    """A broker in real time: a process takes what it takes."""
    async with Broker.connect(memory_url(), settings=Settings()) as broker:
        yield broker


@pytest.fixture
def working(real: Broker) -> Callable[..., AbstractAsyncContextManager[Worker]]:
    @asynccontextmanager
    async def working(queue: str = "jobs", **options: Any) -> AsyncIterator[Worker]:
        async with Worker(app, real, queues=[queue], grace=0, **options) as worker:
            yield worker

    return working


async def done(broker: Broker, queue: str, **wanted: int) -> None:
    """Wait until this has happened."""
    counts = broker.events.counts
    await eventually(
        lambda: all(counts[f"message.{name}"] >= count for name, count in wanted.items()), 10
    )

    async def settled() -> bool:
        return not (await broker.counts(queue))[0].leased

    await eventually(settled)


async def test_a_value_comes_back_from_another_process(real: Broker, working: Any) -> None:
    async with working():
        reply = await real.request(jobs, "echo hello", result=str)
    assert reply.startswith("hello by ")
    assert f"by {os.getpid()} " not in reply
    async with working("points"):
        assert await real.request(points, Point(x=4), result=Point) == Point(x=8)


@pytest.mark.parametrize(
    ("job", "reason", "error"),
    [
        ("raise oh", "retries_exhausted", "ValueError: oh"),
        ("system-exit", "retries_exhausted", "SystemExit: 3"),
        ("interrupt", "retries_exhausted", "KeyboardInterrupt"),
        ("publish", "retries_exhausted", "publish from process=True"),
        ("exit 0", "crashed", "exit code 0"),
        ("exit 7", "crashed", "exit code 7"),
        ("segfault", "crashed", "SIGSEGV"),
    ],
)
async def test_every_ending_costs_one_attempt_and_not_the_worker(
    real: Broker, working: Any, capfd: pytest.CaptureFixture[str], job: str, reason: str, error: str
) -> None:
    await real.publish_many(jobs, [job, "echo next"])
    async with working():
        await done(real, "jobs", dead=1, done=1)
        assert await real.request(jobs, "echo alive")
    (letter,) = await real.dead_letters(jobs).list()
    assert (letter.reason, letter.attempts, letter.body) == (reason, 2, job.encode())
    assert error in letter.error
    assert real.events.counts["message.quarantined"] == 0, (
        "its own process died: nobody has to guess"
    )


async def test_a_reject_is_final(real: Broker, working: Any) -> None:
    await real.publish(jobs, "reject bad one")
    async with working():
        await done(real, "jobs", dead=1)
    (letter,) = await real.dead_letters(jobs).list()
    assert (letter.reason, letter.attempts, letter.death.error) == ("rejected", 1, "bad one")


async def test_past_its_limit_it_is_killed(real: Broker) -> None:
    short = App("short")
    for spec in app.handlers:
        if spec.queue is jobs:
            short.handlers.append(replace(spec, timeout=0.4))
    await real.publish(jobs, "hang")
    began = time.monotonic()
    async with Worker(short, real, grace=0):
        await done(real, "jobs", dead=1)
    assert time.monotonic() - began < 20
    (letter,) = await real.dead_letters(jobs).list()
    assert (letter.reason, letter.attempts) == ("timeout", 2)


async def test_a_drain_kills_and_releases(real: Broker, working: Any) -> None:
    await real.publish(jobs, "hang")
    async with working():
        await eventually(lambda: real.events.counts["message.started"])
    counts = (await real.counts(jobs))[0]
    assert (counts.ready, counts.leased) == (1, 0)
    async with real.consume(jobs) as deliveries:
        assert (await anext(deliveries)).attempt == 1


async def test_a_body_that_cannot_be_read_is_told_apart(real: Broker, working: Any) -> None:
    await real.declare(points)
    for name, body in (("undecodable", b"{"), ("invalid", b"{}")):
        await real._session.connection.publish([Outgoing("points", Message(id=name, body=body))], 1)
    async with working("points"):
        await done(real, "points", dead=2)
    letters = await real.dead_letters(points).list()
    assert {(letter.id, letter.reason, letter.attempts) for letter in letters} == {
        ("undecodable", "undecodable", 0),
        ("invalid", "invalid", 0),
    }


async def test_a_crash_is_told_to_who_asked(
    real: Broker, working: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async with working():
        with pytest.raises(RemoteError) as caught:
            await real.request(jobs, "exit 4")
    assert caught.value.reason == "crashed"
