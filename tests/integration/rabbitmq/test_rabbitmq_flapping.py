"""A connection that is reset repeatedly is not a crash: no message is dead-lettered for it (G4)."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest
from support.waiting import eventually

from mqcore import App, Broker, Queue, RetryPolicy, Worker, fixed
from mqcore.contract.brokers.proxy import Proxy
from mqcore.messages.message import new_id

pytestmark = pytest.mark.timeout(120)
RESETS, HANDLER = 8, 2.0
"""More than the five starts that a killer has.

The connection is reset as soon as a handler has started, so that none ends.
"""


@pytest.mark.parametrize("processes", [1, 2])
async def test_innocents_survive_a_connection_that_is_reset_again_and_again(
    rabbitmq_url: str, processes: int
) -> None:
    jobs = Queue(f"flap.{new_id()[:12]}", str, retry=RetryPolicy(3, fixed(0)))
    done: Counter[str] = Counter()
    app = App("flap")

    @app.consumer(jobs, concurrency=2, prefetch=4)
    async def slow(job: str) -> None:
        await asyncio.sleep(HANDLER)
        done[job] += 1

    words = {f"job-{number}" for number in range(6)}
    server = urlsplit(rabbitmq_url)
    assert server.hostname is not None
    assert server.port is not None
    proxies = [Proxy(server.hostname, server.port) for _ in range(processes)]

    async with AsyncExitStack() as stack:
        direct = await stack.enter_async_context(Broker.connect(rabbitmq_url))
        await direct.publish_many(jobs, sorted(words))
        brokers = []
        for proxy in proxies:
            url = rabbitmq_url.replace(
                f"{server.hostname}:{server.port}", f"127.0.0.1:{proxy.port}"
            )
            brokers.append(await stack.enter_async_context(Broker.connect(url)))
            await stack.enter_async_context(Worker(app, brokers[-1], grace=0))

        def starts() -> int:
            return sum(broker.events.counts["message.started"] for broker in brokers)

        for _ in range(RESETS):
            before = starts()
            await eventually(lambda before=before: starts() > before, 20)
            for proxy in proxies:
                await asyncio.to_thread(proxy.cut)
        await eventually(lambda: set(done) == words, 60)

        assert await direct.dead_letters(jobs).list() == []
        if processes == 1:
            counts = brokers[0].events.counts
            assert counts["message.quarantined"] == 0, "this process knows that it has not died"
        await direct.delete(jobs)
    for proxy in proxies:
        proxy.close()
