"""An application may run tasks eagerly (`asyncio.eager_task_factory`, Python 3.12 and later)."""

import asyncio
import sys

import pytest

from mqcore import App, Broker, Queue, RetryPolicy, Settings, Worker, fixed
from mqcore.testing import memory_url

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="asyncio has no eager tasks before Python 3.12"
)
jobs = Queue("jobs", str)


async def test_a_sender_keeps_no_task_that_has_ended() -> None:
    async with Broker.connect(memory_url(), settings=Settings()) as broker:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # Python 3.12
        for number in range(20):
            await broker.publish(jobs, f"{number}")
        assert not broker._session.connection._sender._tasks


async def test_messages_are_handled_retried_and_answered() -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # Python 3.12
    handled: list[str] = []
    app = App("shop")

    @app.consumer(jobs, retry=RetryPolicy(2, fixed(0.01)))
    async def handler(text: str) -> str:
        handled.append(text)
        if handled.count(text) == 1:
            raise ValueError(text)
        return text

    async with app.connect(memory_url(), settings=Settings()) as broker:
        async with Worker(app, broker):
            names = [f"{number}" for number in range(20)]
            results = [broker.request(jobs, name, timeout=30) for name in names]
            assert await asyncio.gather(*results) == names
        assert [each.total for each in await broker.counts(jobs)] == [0]
        async with broker.consume(jobs) as deliveries:
            await broker.publish(jobs, "pulled")
            await (await anext(deliveries)).ack()
    assert sorted(handled) == sorted(names * 2)
