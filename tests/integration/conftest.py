"""For the integration tests: a virtual clock, a private `memory://`, and helpers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.faulty import Faults, plugin_for
from support.programs import Program, Start

from mqcore import App, Broker, DeadLetter, Queue, Settings, Worker
from mqcore.config.plugins import Plugins
from mqcore.testing import VirtualClock, memory_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    Serve = Callable[..., AbstractAsyncContextManager[Worker]]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def url() -> str:
    return memory_url()


@pytest.fixture
async def broker(clock: VirtualClock, url: str) -> AsyncIterator[Broker]:
    async with Broker.connect(url, clock=clock, settings=Settings()) as broker:
        yield broker


@pytest.fixture
async def other(clock: VirtualClock, url: str) -> AsyncIterator[Broker]:
    """A second client of the same broker."""
    async with Broker.connect(url, clock=clock, settings=Settings()) as broker:
        yield broker


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def faulty(clock: VirtualClock, url: str, faults: Faults) -> AsyncIterator[Broker]:
    """A broker on the same memory whose backend misbehaves as the test says."""
    plugins = Plugins()
    plugins.register(plugin_for(faults))
    where = url.replace("memory://", "faulty://")
    async with Broker.connect(where, clock=clock, settings=Settings(), plugins=plugins) as broker:
        yield broker


@pytest.fixture
def serve(broker: Broker) -> Serve:
    """Run one handler on one queue: `async with serve(queue, handler, concurrency=1):`.

    `on=` is another broker.
    """

    @asynccontextmanager
    async def serve(
        queue: Queue[Any] | str,
        handler: Callable[..., Any],
        *,
        on: Broker | None = None,
        run: dict[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[Worker]:
        app = App("test")
        app.register(queue, handler, options)  # type: ignore[arg-type]  # a test names real options
        async with Worker(app, on or broker, **(run or {})) as worker:
            try:
                yield worker
            except BaseException:
                await worker.drain(0)  # nobody moves the clock any more: a grace would never end
                raise

    return serve


@pytest.fixture
def dead(broker: Broker) -> Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]:
    """Return the dead letters of a queue."""

    async def dead(queue: Queue[Any] | str) -> list[DeadLetter]:
        return await broker.dead_letters(queue).list()

    return dead


@pytest.fixture
def held() -> Held:
    return Held()


class Held:
    """A handler that begins, says so, and ends when the test lets it."""

    def __init__(self) -> None:
        self.began: list[Any] = []
        self.ended: list[Any] = []
        self.cancelled: list[Any] = []
        self.go = asyncio.Event()

    async def __call__(self, payload: Any) -> None:
        self.began.append(payload)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(payload)
            raise
        self.ended.append(payload)


async def kill(worker: Worker) -> None:
    """End a worker as SIGKILL would: its connection goes first, so it can do nothing more."""
    await worker.broker._session.connection.backend.close()
    await worker.drain(0)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Worker], Awaitable[None]]:
    monkeypatch.setattr(
        "mqcore.consuming.subscription.ANSWERED", 0.001
    )  # real seconds, and nobody answers here
    return kill


@pytest.fixture
def suspect(broker: Broker) -> Callable[[Queue[Any], int], Awaitable[None]]:
    """Let two consumers die with the next messages of a queue handed out, one after the other."""

    async def suspect(queue: Queue[Any], count: int) -> None:
        for _ in range(2):
            subscription = await broker._session.connection.backend.subscribe(
                queue.name, prefetch=count, lease=30
            )
            assert len(await subscription.receive(count, 0)) == count
            await subscription.close()

    return suspect


@pytest.fixture
async def client(clock: VirtualClock, url: str) -> AsyncIterator[Callable[[], Awaitable[Broker]]]:
    """Return a function that connects one more client of the same broker."""
    clients: list[Broker] = []

    async def connect() -> Broker:
        clients.append(Broker.connect(url, clock=clock, settings=Settings()))
        await clients[-1].open()
        return clients[-1]

    yield connect
    for one in clients:
        await one.close()


@pytest.fixture
def program_of(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a program from its source; all are dead when the test ends."""
    started: list[Program] = []

    def start(source: str, *, as_module: bool = False) -> Program:
        (tmp_path / "program.py").write_text(source)
        started.append(Program(["-m", "program"] if as_module else ["program.py"], tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()
