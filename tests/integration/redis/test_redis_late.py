"""Redis whose answers are late, or never come, when a worker is told to end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from urllib.parse import urlsplit

import pytest
from support.slow_proxy import SlowProxy
from support.waiting import eventually

from mqcore import App, Broker, Queue, Reject, Settings, Worker
from mqcore.messages.message import new_id

pytestmark = pytest.mark.timeout(90)
COUNT = 20


class Site:
    """One queue, and a handler that waits until the test lets it go."""

    def __init__(self) -> None:
        self.queue = Queue(f"t.{new_id()[:12]}", str)
        self.started: Counter[str] = Counter()
        self.go = asyncio.Event()
        self.app = App("late")
        self.app.consumer(self.queue, concurrency=COUNT, prefetch=COUNT)(self.handle)

    async def handle(self, what: str) -> None:
        self.started[what] += 1
        await self.go.wait()
        raise Reject("as the test says")


@pytest.mark.parametrize("silent", [False, True], ids=["late", "silent"])
async def test_a_worker_ends_in_time_whatever_redis_answers(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, *, silent: bool
) -> None:
    """Late answers are waited for; answers that never come hold up nothing beyond grace + 1 s.

    One of three has to be in time.
    """
    monkeypatch.setattr("support.slow_proxy.STEADY_AFTER", 0.0)
    parts, took = urlsplit(redis_url), list[float]()
    assert parts.hostname is not None
    assert parts.port is not None
    loop, grace = asyncio.get_running_loop(), 0.2 if silent else 20.0
    for turn in range(3 if silent else 1):
        site = Site()
        async with (
            SlowProxy(parts.hostname, parts.port, 0.0, turn) as proxy,
            Broker.connect(redis_url, settings=Settings()) as direct,
        ):
            names = [f"{number}" for number in range(COUNT)]
            await direct.publish_many(site.queue, [*names, "unseen"])
            slow = redis_url.replace(f":{parts.port}", f":{proxy.port}", 1)
            async with site.app.connect(slow, settings=Settings()) as broker:
                running = asyncio.create_task(Worker(site.app, broker, grace=grace).run())
                await eventually(lambda site=site: len(site.started) == COUNT, 20)
                proxy.least, proxy.late = (3600.0, 3600.0) if silent else (0.3, 0.6)
                site.go.set()
                began = loop.time()
                os.kill(os.getpid(), signal.SIGTERM)
                await running
            took.append(loop.time() - began)
            (counts,) = await direct.counts(site.queue)
            letters = Counter(
                letter.body for letter in await direct.dead_letters(site.queue).list(1000)
            )
            assert set(letters.values()) <= {1}
            assert counts.ready + counts.leased + len(letters) == COUNT + 1
            if not silent:
                assert (counts.ready, counts.leased) == (1, 0)
            await direct.delete(site.queue)
    if silent:
        assert min(took) <= grace + 1.0, took
