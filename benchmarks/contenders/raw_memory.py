"""The raw means inside one process: an asyncio.Queue with JSON both ways."""

import asyncio
import json

from common import PAYLOAD, Job, run


async def one_by_one(job: Job) -> None:
    """Put, one by one."""
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    job.start()
    for _ in range(job.count):
        await queue.put(json.dumps(PAYLOAD).encode())
    job.stop()


async def drain(job: Job) -> None:
    """Get, one by one."""
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    for _ in range(job.count):
        queue.put_nowait(json.dumps(PAYLOAD).encode())
    job.start()
    for _ in range(job.count):
        json.loads(await queue.get())
        job.count_one()


SCENARIOS = {"one by one": one_by_one, "bulk": one_by_one, "drain": drain}

if __name__ == "__main__":
    run(SCENARIOS)
