"""G13: nothing new starts, what runs may end, what does not is released and not counted."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.faulty import Faults, hung, raised
from support.waiting import eventually

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    Context,
    MqcoreError,
    Queue,
    RetryPolicy,
    Worker,
    fixed,
)
from mqcore.testing import VirtualClock

jobs = Queue("jobs", str)


async def left(broker: Broker) -> tuple[int, int, int]:
    counts = (await broker.counts(jobs))[0]
    return counts.ready, counts.leased, counts.delayed


async def test_nothing_new_starts_and_what_runs_may_end(
    broker: Broker, clock: VirtualClock, serve: Any, held: Any
) -> None:
    await broker.publish_many(jobs, ["a", "b", "c", "d"])
    async with serve(jobs, held, concurrency=2, prefetch=3) as worker:
        await clock.settle()
        draining = asyncio.create_task(worker.drain(30))
        await clock.advance(10)
        assert broker.events.counts["consumer.draining"] == 1, (
            "whoever stopped it sees why it waits"
        )
        await broker.publish(jobs, "e")
        await clock.advance(10)
        assert held.began == ["a", "b"]
        assert await left(broker) == (3, 2, 0), "what had not begun went back at once"
        held.go.set()
        await draining
    assert held.ended == ["a", "b"]
    assert await left(broker) == (3, 0, 0)


async def test_what_is_unfinished_after_the_grace_is_released_and_not_counted(
    broker: Broker, clock: VirtualClock, serve: Any, held: Any
) -> None:
    await broker.publish(jobs, "a")
    async with serve(jobs, held) as worker:
        await clock.settle()
        draining = asyncio.create_task(worker.drain(30))
        await clock.advance(29.9)
        assert not held.cancelled
        await clock.advance(0.2)
        await draining
    assert held.cancelled == ["a"]
    assert await left(broker) == (1, 0, 0)
    async with broker.consume(jobs) as deliveries:
        assert (await anext(deliveries)).attempt == 1


async def test_a_drain_leaves_priority_and_place(
    broker: Broker, clock: VirtualClock, serve: Any, held: Any
) -> None:
    await broker.publish_many(jobs, ["a", "b", "c"])
    await broker.publish(jobs, "high", priority=9)
    async with serve(jobs, held, concurrency=2, prefetch=4, run={"grace": 0}):
        await clock.settle()
    assert [entry.message.body for entry in await broker.peek(jobs)] == [b"high", b"a", b"b", b"c"]


async def test_a_batch_that_lingers_is_not_begun(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    batches: list[list[Any]] = []

    async def handler(items: list[Any]) -> None:
        batches.append(items)

    await broker.publish(jobs, "a")
    async with serve(jobs, handler, batch=10, linger=60):
        await clock.advance(1)
        assert await left(broker) == (0, 1, 0)
    assert batches == []
    assert await left(broker) == (1, 0, 0)


@pytest.mark.parametrize("timeout", [None, 5])
async def test_a_thread_that_never_ends_holds_nothing_up(
    broker: Broker, clock: VirtualClock, serve: Any, timeout: float | None
) -> None:
    started, go = threading.Event(), threading.Event()

    def handler(_: str) -> None:
        started.set()
        go.wait(60)

    clock._patience = 0.01
    await broker.publish(jobs, "a")
    try:
        async with asyncio.timeout(20):
            policy = RetryPolicy(2, fixed(1))
            async with serve(
                jobs, handler, concurrency=1, timeout=timeout, retry=policy, run={"grace": 0}
            ):
                await clock.settle()
                await eventually(started.is_set)
                await clock.advance(6)
        assert await left(broker) == (1, 0, 0)
    finally:
        go.set()


async def test_a_handler_that_swallows_its_cancellation_holds_nothing_up(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    let_go = asyncio.Event()

    async def handler(_: str) -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    await broker.publish(jobs, "a")
    began = time.monotonic()
    async with serve(jobs, handler, run={"grace": 0}):
        await clock.settle()
    assert time.monotonic() - began < 10
    assert await left(broker) == (1, 0, 0)
    let_go.set()
    await asyncio.sleep(0)


async def test_a_handler_may_clean_up_after_the_grace(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    log: list[str] = []

    async def handler(_: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            log.append("clean")

    await broker.publish(jobs, "a")
    async with serve(jobs, handler, run={"grace": 0}):
        await clock.settle()
    assert log == ["clean"]


async def test_a_second_call_ends_the_grace(
    broker: Broker, clock: VirtualClock, serve: Any, held: Any
) -> None:
    await broker.publish(jobs, "a")
    async with serve(jobs, held) as worker:
        await clock.settle()
        draining = asyncio.create_task(worker.drain(3600))
        await clock.advance(1)
        assert not draining.done()
        worker._hurry()
        await draining
    assert held.cancelled == ["a"]
    assert await left(broker) == (1, 0, 0)


async def test_drain_is_idempotent_and_the_broker_stays_open(
    broker: Broker, serve: Any, held: Any
) -> None:
    async with serve(jobs, held) as worker:
        await worker.drain()
        await worker.drain()
    await worker.drain()
    await broker.publish(jobs, "a")
    assert await left(broker) == (1, 0, 0)


async def test_a_worker_is_one_shot(broker: Broker, held: Any) -> None:
    app = App("test")
    app.consumer(jobs)(held)
    worker = Worker(app, broker)
    await worker.start()
    with pytest.raises(MqcoreError, match="started before"):
        await worker.start()
    await broker.publish(jobs, "a")
    await worker.drain(0)
    with pytest.raises(MqcoreError):
        await worker.start()


async def test_a_start_that_fails_leaves_nothing_running(
    faulty: Broker, faults: Faults, held: Any
) -> None:
    other = Queue("other", str)
    ended: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Broker) -> AsyncIterator[str]:
        yield "state"
        ended.append("lifespan")

    app = App("test", lifespan=lifespan)
    app.consumer(jobs)(held)
    app.consumer(other)(held)
    error = ValueError("the third subscription is refused")
    works = faults.calls["subscribe"]
    faults.next("subscribe", *[lambda _b, do, batch: do(batch)] * 2, raised(error))
    with pytest.raises(MqcoreError) as caught:
        await Worker(app, faulty).start()
    assert caught.value.__cause__ is error
    assert faults.calls["subscribe"] == works + 3
    assert ended == ["lifespan"]
    assert not faulty.health().consuming


async def test_a_lifespan_surrounds_the_work(broker: Broker, clock: VirtualClock) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def lifespan(given: Broker) -> AsyncIterator[str]:
        assert given is broker
        log.append("begin")
        yield "state"
        log.append("end")

    app = App("test", lifespan=lifespan)

    @app.consumer(jobs)
    async def handler(_: str, ctx: Context) -> None:
        log.append(ctx.state)

    await broker.publish(jobs, "a")
    async with Worker(app, broker):
        await clock.settle()
    assert log == ["begin", "state", "end"]


async def test_a_driver_that_hangs_does_not_hold_up_the_end(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, held: Any
) -> None:
    await faulty.publish(jobs, "a")
    began = time.monotonic()
    async with serve(jobs, held, on=faulty, run={"grace": 0}):
        await clock.settle()
        faults.next("settle", hung(), hung(), hung())
    assert time.monotonic() - began < 5


def test_a_worker_of_nothing_is_refused() -> None:
    broker = Broker("memory://")
    with pytest.raises(ConfigurationError, match="no consumers"):
        Worker(App("empty"), broker)
    app = App("test")
    app.consumer(jobs)(lambda _: None)
    with pytest.raises(ConfigurationError, match="nowhere"):
        Worker(app, broker, queues=["nowhere"])


PROGRAM = """
import asyncio, sys, time
from mqcore import App, Broker, Queue, Settings, Worker

jobs = Queue("jobs", str)
app = App("test")

@app.consumer(jobs)
{handler}

async def main():
    async with Broker.connect("memory://", settings=Settings()) as broker:
        await broker.publish(jobs, "x")
        await Worker(app, broker, grace={grace}).run()
        counts = (await broker.counts(jobs))[0]
        print("left", counts.ready, counts.leased, flush=True)

asyncio.run(main())
"""
ENDS = """
async def handler(_):
    print("began", flush=True)
    await asyncio.sleep(0.1)
    print("ended", flush=True)
"""
HANGS = """
async def handler(_):
    print("began", flush=True)
    await asyncio.sleep(60)
"""
BLOCKS = """
def handler(_):
    print("began", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("handler", "grace", "signals", "said"),
    [
        (ENDS, 10, [signal.SIGTERM], ["ended", "left 0 0"]),
        (ENDS, 10, [signal.SIGINT], ["ended", "left 0 0"]),
        (HANGS, 0.1, [signal.SIGTERM], ["left 1 0"]),
        (HANGS, 30, [signal.SIGTERM, signal.SIGTERM], ["left 1 0"]),
        (BLOCKS, 0.1, [signal.SIGTERM], ["left 1 0"]),
        (BLOCKS, 30, [signal.SIGTERM, signal.SIGINT], ["left 1 0"]),
    ],
    ids=["ends", "ends-int", "hangs", "hangs-twice", "blocks", "blocks-twice"],
)
def test_signals(
    tmp_path: Path, handler: str, grace: float, signals: list[int], said: list[str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(handler=handler.strip(), grace=grace))
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "began\n"
        began = time.monotonic()
        for number in signals:
            os.kill(process.pid, number)
            time.sleep(0.03)
        lines = process.stdout.read().split("\n")
        assert process.wait() == 0
    assert (
        time.monotonic() - began < min(grace, 1) + 4
    )  # the promise is 1; the rest is for a noisy machine
    assert lines[:-1] == said
