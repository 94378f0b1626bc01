"""The worker: its lifespan, its queues, how it stops, and what it reports."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.faulty import Faults

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    Context,
    Queue,
    QueueNotFound,
    RetryPolicy,
    Settings,
    Worker,
)
from mqcore.spi import Capability, Level, Support
from mqcore.testing import VirtualClock

one, two = Queue("one", str), Queue("two", str)


def an_app(*queues: Queue[str], **options: Any) -> tuple[App, list[tuple[str, str]]]:
    """Return an app that notes what its consumers handle."""
    app, handled = App("test"), []
    for queue in queues:

        async def handler(text: str, ctx: Context) -> None:
            handled.append((ctx.queue, text))

        app.register(queue, handler, options)  # type: ignore[arg-type]  # a test names real options
    return app, handled


async def test_the_lifespan_is_around_everything(broker: Broker, clock: VirtualClock) -> None:
    notes: list[str] = []

    @asynccontextmanager
    async def lifespan(given: Broker) -> AsyncIterator[dict[str, str]]:
        assert given is broker
        notes.append("opened")
        yield {"pool": "open"}
        notes.append("closed")

    app = App("test", lifespan=lifespan)

    @app.consumer(one)
    async def handler(_: str, ctx: Context) -> None:
        notes.append(f"handled with {ctx.state['pool']}")
        await clock.sleep(5)
        notes.append("done")

    @app.consumer(two)
    def blocking(_: str, ctx: Any) -> None:
        notes.append(f"in a thread with {ctx.state['pool']}")

    await broker.declare(one, two)
    await broker.publish(two, "y")
    async with Worker(app, broker) as worker:
        await clock.settle()
        await broker.publish(one, "x")
        await clock.settle()
        drain = asyncio.create_task(worker.drain())
        await clock.advance(5)
        await drain
    assert notes == ["opened", "in a thread with open", "handled with open", "done", "closed"]


async def test_a_lifespan_that_fails_prevents_the_start(broker: Broker) -> None:
    @asynccontextmanager
    async def lifespan(_: Broker) -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    app = App("test", lifespan=lifespan)
    app.consumer(one)(lambda _: None)
    with pytest.raises(OSError, match="no database"):
        await Worker(app, broker).start()
    assert broker.health().consuming == {}


async def test_what_prevents_the_start_leaves_nothing_running(
    broker: Broker, clock: VirtualClock
) -> None:
    closed: list[bool] = []

    @asynccontextmanager
    async def lifespan(_: Broker) -> AsyncIterator[None]:
        yield
        closed.append(True)

    app = App("test", lifespan=lifespan)
    app.consumer(one)(lambda _: None)
    app.consumer(Queue("missing", str, declare=False))(lambda _: None)
    await broker.publish(one, "x")
    before = asyncio.all_tasks()
    with pytest.raises(QueueNotFound, match="'missing'"):
        await Worker(app, broker).start()
    await clock.settle()
    assert closed == [True]
    assert asyncio.all_tasks() <= before
    assert broker.health().consuming == {}
    counts = (await broker.counts(one))[0]
    assert (counts.ready, counts.leased) == (1, 0)


async def test_it_consumes_the_queues_that_are_named(broker: Broker, clock: VirtualClock) -> None:
    app, handled = an_app(one, two)
    await broker.publish(one, "x")
    await broker.publish(two, "y")
    async with Worker(app, broker, queues=["two"]) as worker:
        await clock.settle()
        assert worker.health().consuming == {"two": True}
    assert handled == [("two", "y")]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"queues": ["three", "one"]}, "does not consume three; it consumes one, two"),
        ({"queues": []}, "would consume nothing"),
        ({"quues": ["one"]}, "did you mean 'queues'"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"lease": 0}, "lease=0"),
    ],
    ids=["unknown", "none", "typo", "zero", "no lease"],
)
async def test_what_makes_no_sense_is_refused(
    broker: Broker, options: dict[str, Any], text: str
) -> None:
    app, _ = an_app(one, two)
    with pytest.raises(ConfigurationError, match=text):
        Worker(app, broker, **options)


async def test_an_app_without_consumers_is_refused(broker: Broker) -> None:
    with pytest.raises(ConfigurationError, match="has no consumers"):
        Worker(App("empty"), broker)


async def test_concurrency_can_be_overridden(
    broker: Broker, clock: VirtualClock, held: Any
) -> None:
    app = App("test")
    app.consumer(one, concurrency=1)(held)
    await broker.publish_many(one, [str(n) for n in range(10)])
    async with Worker(app, broker, concurrency=3):
        await clock.settle()
        assert len(held.began) == 3
        assert (await broker.counts(one))[0].leased == 6  # prefetch follows
        held.go.set()


async def test_the_lease_can_be_overridden(
    broker: Broker, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, backend = App("test"), broker._session.connection.backend
    app.consumer(one, lease=60)(held)
    app.consumer(two)(held)
    leases: dict[str, float] = {}
    subscribe = backend.subscribe

    async def spied(queue: str, **options: Any) -> Any:
        leases[queue] = options["lease"]
        return await subscribe(queue, **options)

    monkeypatch.setattr(backend, "subscribe", spied)
    async with Worker(app, broker, lease=3):
        assert (leases["one"], leases["two"]) == (3, 3)


async def test_two_workers_share_the_work(
    broker: Broker, other: Broker, clock: VirtualClock
) -> None:
    by: dict[str, list[str]] = {"a": [], "b": []}

    def app(name: str) -> App:
        app = App(name)

        @app.consumer(one, concurrency=1, prefetch=1)
        async def handler(text: str) -> None:
            by[name].append(text)
            await clock.sleep(1)

        return app

    await broker.publish_many(one, [str(n) for n in range(20)])
    async with Worker(app("a"), broker), Worker(app("b"), other):
        await clock.advance(10)
    assert sorted(by["a"] + by["b"], key=int) == [str(n) for n in range(20)]
    assert len(by["a"]) == len(by["b"]) == 10


async def test_health_tells_connected_and_consuming_apart(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    app, _ = an_app(one)
    async with Worker(app, faulty) as worker:
        health = worker.health()
        assert (health.connected, health.consuming, health.ok) == (True, {"one": True}, True)
        faults.lose()
        health = worker.health()
        assert (health.connected, health.consuming, health.ok) == (False, {"one": False}, False)
        assert "reset" in health.error
        await clock.advance(5)
        assert worker.health().ok


async def test_one_of_two_consumers_of_a_queue_that_stands_still_is_seen(
    broker: Broker, other: Broker, clock: VirtualClock
) -> None:
    app, _ = an_app(Queue("one", str, declare=False))
    await broker.declare(one)
    worker = Worker(app, broker)
    await worker.start()
    await other.delete(one)
    await clock.settle()
    assert broker.health().connected
    assert not broker.health().ok
    with pytest.raises(QueueNotFound):
        async with worker_block(worker):
            pass


@asynccontextmanager
async def worker_block(worker: Worker) -> AsyncIterator[None]:
    """End a worker that was started by hand as its own block would."""
    yield
    await worker.__aexit__(None, None, None)


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_the_health_file(broker: Broker, clock: VirtualClock, tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    app, _ = an_app(one)
    async with Worker(app, broker, health_file=path):
        await clock.settle()
        found = json.loads(path.read_text())
    assert (found["connected"], found["consuming"], found["ok"]) == (True, {"one": True}, True)
    assert sorted(file.name for file in files(tmp_path)) == ["health.json"]


async def test_a_health_file_that_cannot_be_written_stops_nothing(
    broker: Broker, clock: VirtualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app, handled = an_app(one)
    async with Worker(
        app, broker, health_file=tmp_path / "missing" / "health.json", max_messages=1
    ) as worker:
        await broker.publish(one, "x")
        await clock.settle()
        assert worker.recycle
    assert handled == [("one", "x")]
    assert "cannot be written" in caplog.text


async def test_after_so_many_messages_it_wants_a_fresh_process(
    broker: Broker, clock: VirtualClock
) -> None:
    app, handled = an_app(one, two)
    worker = Worker(app, broker, max_messages=3)
    running = asyncio.create_task(worker.run())
    await clock.settle()
    await broker.publish(one, "a")
    await broker.publish(two, "b")
    await clock.settle()
    assert not worker.recycle
    assert not running.done()
    await broker.publish(one, "c")
    await clock.settle()
    await running
    assert worker.recycle
    assert len(handled) == 3


async def test_stop_ends_run_and_is_no_recycling(broker: Broker, clock: VirtualClock) -> None:
    app, _ = an_app(one)
    worker = Worker(app, broker)
    running = asyncio.create_task(worker.run())
    await clock.settle()
    worker.stop()
    await running
    assert not worker.recycle
    assert broker.health().consuming == {}


async def test_cancelling_run_leaves_nothing_running(
    broker: Broker, clock: VirtualClock, held: Any
) -> None:
    app = App("test")
    app.consumer(one)(held)
    await broker.publish(one, "x")
    before = asyncio.all_tasks()
    running = asyncio.create_task(Worker(app, broker).run())
    await clock.settle()
    assert held.began == ["x"]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await clock.advance(30)  # the lease keeper, which is the broker's, finds nothing to renew
    assert held.cancelled == ["x"]
    assert asyncio.all_tasks() <= before
    counts = (await broker.counts(one))[0]
    assert (counts.ready, counts.leased) == (1, 0)


async def test_what_ends_consuming_ends_the_worker(
    broker: Broker, other: Broker, clock: VirtualClock
) -> None:
    app, _ = an_app(Queue("one", str, declare=False), two)
    await broker.declare(one)
    running = asyncio.create_task(Worker(app, broker).run())
    await clock.settle()
    await other.delete(one)
    await clock.settle()
    with pytest.raises(QueueNotFound):
        await running
    assert broker.health().consuming == {}


async def test_retries_from_the_file_win_over_code(
    clock: VirtualClock, url: str, tmp_path: Path
) -> None:
    (tmp_path / "mqcore.toml").write_text(
        "[queues.one.retry]\nmax_attempts = 2\nbackoff = 'fixed'\nbase = 7.0\n"
    )
    times: list[float] = []
    app = App("test")

    @app.consumer(one, retry=RetryPolicy(max_attempts=9))
    async def handler(_: str) -> None:
        times.append(clock.monotonic())
        raise ValueError

    async with app.connect(url, clock=clock, settings=Settings.load(directory=tmp_path)) as broker:
        await broker.publish(one, "x")
        async with Worker(app, broker):
            await clock.advance(100)
        (letter,) = await broker.dead_letters(one).list()
    assert times == [0, 7]
    assert letter.attempts == 2


async def test_a_worker_runs_once(broker: Broker) -> None:
    app, _ = an_app(one)
    worker = Worker(app, broker)
    async with worker:
        pass
    with pytest.raises(ConfigurationError, match="runs once"):
        await worker.start()
    await worker.drain()


@pytest.mark.parametrize("wrong", [OSError, [OSError], ("OSError",)], ids=["class", "list", "name"])
@pytest.mark.parametrize("option", ["retry_on", "give_up_on"])
def test_a_policy_takes_tuples_of_classes(option: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=option):
        RetryPolicy(**{option: wrong})


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, False),
        ({"timeout": 901}, True),
        ({"timeout": None}, True),
        ({"prefetch": 100, "timeout": 181}, True),
    ],
    ids=["default", "two rounds", "no limit", "ten rounds"],
)
async def test_a_worker_says_when_the_broker_would_not_bear_its_handlers(
    options: dict[str, Any],
    *,
    warned: bool,
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = {Capability.LEASE: Support(Level.NONE, {"held_at_most": 1800.0})}
    capabilities = replace(broker.capabilities, supports={**broker.capabilities.supports, **held})
    monkeypatch.setattr(Broker, "capabilities", property(lambda _: capabilities))
    app, _ = an_app(one, **options)
    async with Worker(app, broker):
        assert ("Give it a shorter timeout or a smaller prefetch" in caplog.text) is warned
