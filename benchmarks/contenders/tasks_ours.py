"""Tasks of mqcore with Redis as broker and store. `worker` runs a worker."""

import asyncio
import os
import sys

from contenders.task_client import serve

from mqcore import App, Worker
from mqcore.tasks import Tasks, group

URL = os.environ["BENCH_REDIS"]
tasks = Tasks("bench", store=URL)
app = App("bench", tasks=[tasks])


@tasks.task()
async def add(x: int, y: int) -> int:
    """Add."""
    return x + y


@tasks.task()
async def total(numbers: list[int]) -> int:
    """Add many."""
    return sum(numbers)


async def send_and_read(count: int) -> int:
    """Send tasks, then read their results."""
    async with app.connect(URL):
        jobs = await asyncio.gather(*[add.send(number, 1) for number in range(count)])
        return sum(await asyncio.gather(*[job.result(timeout=120) for job in jobs]))


async def chord(size: int) -> int:
    """Run a chord."""
    async with app.connect(URL):
        body = group(add.s(number, 1) for number in range(size)) | total.step()
        return await (await body.send()).result(timeout=120)


async def work() -> None:
    """Run a worker until standard input ends."""
    async with app.connect(URL) as broker, Worker(app, broker, concurrency=100):
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    serve(
        lambda: asyncio.run(work()),
        lambda count: asyncio.run(send_and_read(count)),
        lambda size: asyncio.run(chord(size)),
    )
