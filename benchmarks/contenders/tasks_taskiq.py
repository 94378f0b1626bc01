"""Tasks of taskiq with a stream of Redis as broker and Redis as result backend."""

import asyncio
import os

from contenders.task_client import serve
from taskiq.api import run_receiver_task
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

URL = os.environ["BENCH_REDIS"]
broker = RedisStreamBroker(URL).with_result_backend(RedisAsyncResultBackend(URL))


@broker.task(task_name="add")
async def add(x: int, y: int) -> int:
    """Add."""
    return x + y


async def work() -> None:
    """Run a worker until it is terminated."""
    await broker.startup()
    await run_receiver_task(broker, max_async_tasks=100, run_startup=False)


async def send_and_read(count: int) -> int:
    """Send tasks, then read their results."""
    await broker.startup()
    sent = [await add.kiq(number, 1) for number in range(count)]
    results = [await task.wait_result(check_interval=0.005, timeout=120) for task in sent]
    await broker.shutdown()
    return sum(result.return_value for result in results)


def no_chord(_size: int) -> int:
    """There are none."""
    raise NotImplementedError


if __name__ == "__main__":
    serve(lambda: asyncio.run(work()), lambda count: asyncio.run(send_and_read(count)), no_chord)
