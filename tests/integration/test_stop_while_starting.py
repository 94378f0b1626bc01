"""G13 while a worker starts: nothing starts after the stop, and the start delays nothing."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.faulty import Faults, slow

from mqcore import App, Broker, Queue, Worker
from mqcore.testing import VirtualClock

first, second = Queue("first", str), Queue("second", str)


def an_app(**options: Any) -> tuple[App, list[str]]:
    """Return an app of two consumers that notes what they start."""
    app, started = App("test"), list[str]()

    async def handler(text: str) -> None:
        started.append(text)

    app.register(first, handler, options)  # type: ignore[arg-type]  # a test names real options
    app.register(second, handler, options)  # type: ignore[arg-type]  # a test names real options
    return app, started


async def waiting(broker: Broker) -> list[tuple[str, int]]:
    """Return body and attempt of what is ready in the first queue, and see that nothing is held."""
    (counts,) = await broker.counts(first)
    assert counts.leased == 0
    return [
        (entry.message.body.decode(), entry.message.attempt) for entry in await broker.peek(first)
    ]


async def test_a_stop_between_two_consumers_starts_nothing(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    app, started = an_app()
    await faulty.publish_many(first, ["a", "b"])
    faults.next(
        "subscribe", slow(0), slow(0), slow(5)
    )  # the queue, its quarantine, then the second queue
    worker = Worker(app, faulty)
    running = asyncio.create_task(worker.run())
    await clock.advance(1)
    assert worker.health().consuming == {"first": True, "second": False}

    worker.stop()
    async with asyncio.timeout(10):  # no moving of the clock: the start is not waited for
        await running
    assert started == []
    assert await waiting(faulty) == [("a", 1), ("b", 1)]
    assert faulty.health().consuming == {}


async def test_a_stop_at_the_last_step_of_the_start_starts_nothing(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    app, started = an_app()
    await faulty.publish_many(first, ["a", "b"])
    worker = Worker(app, faulty)

    async def stopping(_backend: object, do: Any, batch: Any) -> Any:
        worker.stop()
        return await do(batch)

    faults.next("subscribe", slow(0), slow(0), slow(0), stopping)
    running = asyncio.create_task(worker.run())
    await clock.advance(1)
    await running
    assert started == []
    assert await waiting(faulty) == [("a", 1), ("b", 1)]


async def test_nothing_starts_in_the_turn_of_the_loop_that_stops(
    broker: Broker, clock: VirtualClock
) -> None:
    app, started = App("test"), list[str]()

    @app.consumer(first, concurrency=2, prefetch=10)
    async def handler(text: str) -> None:
        started.append(text)
        worker.stop()

    worker = Worker(app, broker)
    running = asyncio.create_task(worker.run())
    await clock.settle()
    await broker.publish_many(first, ["a", "b", "c", "d"])
    await clock.settle()
    await running
    assert started == ["a"]
    assert await waiting(broker) == [("b", 1), ("c", 1), ("d", 1)]


@pytest.mark.parametrize("deaf", [False, True], ids=["cancellable", "deaf"])
async def test_a_lifespan_that_opens_slowly_is_interrupted(
    broker: Broker, clock: VirtualClock, *, deaf: bool
) -> None:
    """One that ignores its cancellation may reach its yield; it is closed, nothing is consumed."""
    notes: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Broker) -> AsyncIterator[None]:
        try:
            await clock.sleep(3600)
        except asyncio.CancelledError:
            notes.append("interrupted")
            if not deaf:
                raise
        yield
        notes.append("closed")

    app, started = an_app()
    app.lifespan = lifespan
    await broker.publish(first, "a")
    worker = Worker(app, broker)
    running = asyncio.create_task(worker.run())
    await clock.settle()
    worker.stop()
    async with asyncio.timeout(10):
        await running
    assert notes == ["interrupted", *["closed"] * deaf]
    assert started == []
    assert running.cancelling() == 0


async def test_a_worker_that_was_stopped_before_it_started_opens_nothing(broker: Broker) -> None:
    opened: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Broker) -> AsyncIterator[None]:
        opened.append("lifespan")
        yield

    app, started = an_app()
    app.lifespan = lifespan
    worker = Worker(app, broker)
    worker.stop()
    await worker.run()
    assert (opened, started) == ([], [])


async def test_a_block_whose_worker_was_stopped_while_it_started_runs_and_consumes_nothing(
    broker: Broker, clock: VirtualClock
) -> None:
    @asynccontextmanager
    async def lifespan(_: Broker) -> AsyncIterator[None]:
        worker.stop()
        yield

    app, started = an_app()
    app.lifespan = lifespan
    await broker.publish(first, "a")
    worker = Worker(app, broker)
    async with worker:
        await clock.settle()
    assert started == []
    assert await waiting(broker) == [("a", 1)]


async def test_a_lifespan_that_closes_slowly_gets_what_the_drain_has_left(
    broker: Broker, clock: VirtualClock
) -> None:
    notes: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Broker) -> AsyncIterator[None]:
        yield
        try:
            await clock.sleep(20)
            notes.append("flushed")
            await clock.sleep(3600)
        finally:
            notes.append("interrupted")

    app, _ = an_app()
    app.lifespan = lifespan
    worker = Worker(app, broker, grace=30)
    running = asyncio.create_task(worker.run())
    await clock.settle()
    worker.stop()
    await clock.advance(29)
    assert notes == ["flushed"]
    await clock.advance(2)
    await running
    assert notes == ["flushed", "interrupted"]


SLOW = """
import sys, time
from mqcore import App, Queue

app = App("slow")

if not hasattr(sys.modules["__main__"], "__file__"):  # in the handler's process
    open({began!r}, "w").close()
    time.sleep(600)

@app.consumer(Queue("fast", str))
async def fast(text: str) -> None: ...

@app.consumer(Queue("slow", str), process=True)
def slow(text: str) -> None: ...
"""
"""Its process slot takes ten minutes to come up."""
LATE = """
import asyncio
from contextlib import asynccontextmanager
from mqcore import App, Queue

@asynccontextmanager
async def lifespan(broker):
    open({began!r}, "w").close()
    await asyncio.sleep(600)
    yield

app = App("late", lifespan=lifespan)

@app.consumer(Queue("fast", str))
async def fast(text: str) -> None: ...
"""
DEAF = """
import asyncio
from contextlib import asynccontextmanager
from mqcore import App, Queue

@asynccontextmanager
async def lifespan(broker):
    open({began!r}, "w").close()
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass
    yield

app = App("deaf", lifespan=lifespan)

@app.consumer(Queue("fast", str))
async def fast(text: str) -> None: ...
"""
BLOCKS = """
import time
from contextlib import asynccontextmanager
from mqcore import App, Queue

@asynccontextmanager
async def lifespan(broker):
    open({began!r}, "w").close()
    time.sleep(600)
    yield

app = App("blocks", lifespan=lifespan)

@app.consumer(Queue("fast", str))
async def fast(text: str) -> None: ...
"""


@pytest.mark.parametrize(
    ("source", "codes"),
    [(SLOW, {0}), (LATE, {0}), (DEAF, {1}), (BLOCKS, {1})],
    ids=[
        "process slot",
        "lifespan",
        "lifespan that cannot be cancelled",
        "lifespan that blocks the loop",
    ],
)
def test_the_command_ends_in_time_whatever_is_being_started(
    tmp_path: Path, source: str, codes: set[int]
) -> None:
    began = tmp_path / "began"
    (tmp_path / "starting.py").write_text(source.format(began=str(began)))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MQCORE_")
    }
    command = [
        sys.executable,
        "-m",
        "mqcore",
        "worker",
        "starting:app",
        "--grace",
        "0.5",
        "--url",
        "memory://",
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline = time.monotonic() + 40
            while not began.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            at = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=10)
        finally:
            process.kill()
    assert time.monotonic() - at < 1.5 + 3, (
        said
    )  # the promise is 1.5; the rest is for a noisy machine
    assert process.returncode in codes, said
    assert "Traceback" not in said
