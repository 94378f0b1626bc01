"""A connection that breaks again and again leaves nothing behind in the process (G14)."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.waiting import eventually

from mqcore import App, PublishUnknown, Queue, Settings, Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from support.tls_proxy import TlsProxy

pytestmark = pytest.mark.timeout(120)
CUTS, FIRST = 60, 15


async def test_what_a_process_holds_does_not_grow_with_its_reconnects(
    broker_url: str, tls_proxy: Callable[[str], Awaitable[TlsProxy]], name: str
) -> None:
    way = await tls_proxy(broker_url)
    queue, app = Queue(name, int), App("tireless")
    handled: set[int] = set()

    @app.consumer(queue)
    async def handle(number: int) -> None:
        handled.add(number)

    def held() -> tuple[int, ...]:
        gc.collect()
        return (
            len(list(Path("/proc/self/fd").iterdir())),
            threading.active_count(),
            len(asyncio.all_tasks()),
        )

    async with app.connect(way.url(), settings=Settings()) as broker, Worker(app, broker):
        most = held()
        for number in range(CUTS):
            await way.cut()
            with suppress(
                PublishUnknown
            ):  # it may have been under way; then it was stored, or the next one is
                await broker.publish(queue, number, timeout=20)
            await broker.publish(queue, number, timeout=20)
            await eventually(lambda number=number: number in handled, 20)
            if number <= FIRST:  # at some moments a connection is not open again yet
                most = tuple(map(max, most, held()))
        try:
            await eventually(
                lambda: all(now <= then + 2 for now, then in zip(held(), most, strict=True)), 10
            )
        except TimeoutError:
            tasks = [str(task.get_coro()) for task in asyncio.all_tasks()]
            pytest.fail(f"files, threads and tasks were at most {most}, and are {held()}: {tasks}")
    assert handled == set(range(CUTS))
