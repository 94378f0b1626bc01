"""An outbox or a spool that does not answer holds up no end of a worker (G13)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.waiting import eventually

from mqcore import App, Fallback, Queue, Settings, Worker
from mqcore.broker import session_of
from mqcore.config.plugins import Plugins
from mqcore.spi import Backend, Subscription, hookimpl
from mqcore.testing import memory_url
from mqcore_memory import MemoryBackend
from mqcore_sql import SqliteBackend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mqcore.spi import Delivery, Outcome, Outgoing, Settled, Settlement

pytestmark = pytest.mark.timeout(120)
jobs = Queue("jobs", int)
LONG = 40.0
"""Seconds within which everything has ended, or never does."""


class _Silence:
    """Whether the stores of a test answer."""

    def __init__(self) -> None:
        self.begun = False
        self.calls: set[str] = set()

    async def meet(self, call: str) -> None:
        if self.begun:
            self.calls.add(call)
            await asyncio.Event().wait()


class _SilentSubscription(Subscription):
    def __init__(self, silence: _Silence, inner: Subscription) -> None:
        self._silence = silence
        self._inner = inner

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        await self._silence.meet("receive")
        return await self._inner.receive(limit, timeout)

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        await self._silence.meet("settle")
        return await self._inner.settle(batch, timeout=timeout)

    async def close(self) -> None:
        await self._silence.meet("unsubscribe")
        await self._inner.close()


def _silent(base: type[Backend], name: str, silence: _Silence) -> type[Backend]:
    """Return a backend that answers until the silence begins."""

    class Silent(base):  # type: ignore[misc, valid-type]
        scheme = name

        async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
            await silence.meet("publish")
            outcomes: Sequence[Outcome] = await super().publish(batch, timeout=timeout)
            return outcomes

        async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
            await silence.meet("subscribe")
            inner = await super().subscribe(queue, prefetch=prefetch, lease=lease)
            return _SilentSubscription(silence, inner)

        async def close(self) -> None:
            await silence.meet("close")
            await super().close()

    return Silent


@pytest.fixture
def silence() -> _Silence:
    return _Silence()


def _plugins(*backends: type[Backend]) -> Plugins:
    class Plugin:
        @hookimpl
        def mqcore_register_backends(self) -> list[type[Backend]]:
            return list(backends)

    plugins = Plugins()
    plugins.register(Plugin())
    return plugins


def _app(**options: Any) -> App:
    app = App("shop")

    @app.consumer(jobs, **options)
    async def handle(_: int) -> None: ...

    return app


async def test_an_outbox_that_does_not_answer(silence: _Silence, tmp_path: Path) -> None:
    app = _app()
    plugins = _plugins(_silent(SqliteBackend, "silent", silence))
    outbox = f"silent:///{tmp_path / 'shop.db'}"
    broker = app.connect(memory_url(), outbox=outbox, plugins=plugins, settings=Settings())
    await broker.open()
    worker = Worker(app, broker, grace=0)
    running = asyncio.create_task(worker.run())
    source = session_of(broker).outbox
    assert source is not None
    await eventually(lambda: "jobs" in worker.queues, 30)

    silence.begun = True
    await eventually(lambda: "receive" in silence.calls, 30)
    worker._on_signal()
    await asyncio.wait_for(running, LONG)
    assert "unsubscribe" in silence.calls
    await asyncio.wait_for(broker.close(), LONG)
    assert "close" in silence.calls


@pytest.mark.parametrize("consume", [True, False], ids=["consumed", "relayed"])
async def test_a_spool_that_does_not_answer(silence: _Silence, *, consume: bool) -> None:
    app = _app()
    plugins = _plugins(_silent(MemoryBackend, "silent", silence))
    spool = memory_url().replace("memory:", "silent:")
    fallback = Fallback(url=spool, consume=consume)  # type: ignore[arg-type]  # a text is a URL
    broker = app.connect(
        "redis://127.0.0.1:1/0", fallback=fallback, plugins=plugins, settings=Settings()
    )
    await broker.open()
    worker = Worker(app, broker, grace=0)
    running = asyncio.create_task(worker.run())
    await broker.publish(jobs, 1)
    if consume:
        await eventually(lambda: worker.health().consuming["jobs"], 30)

    silence.begun = True
    publishing = asyncio.create_task(broker.publish(jobs, 2))
    await eventually(lambda: "publish" in silence.calls, 30)
    worker._on_signal()
    await asyncio.wait_for(running, LONG)
    await asyncio.wait_for(broker.close(), LONG)
    assert "close" in silence.calls
    await asyncio.wait([publishing])
    assert publishing.exception() is not None
