"""What a message costs, and what a worker takes, with 1,000 to 1,000,000 messages in the queue.

    python benchmarks/depth.py [--only redis] [--deepest 1000000]

At each depth a process of its own publishes 2,000 messages in bulk, and another one starts a worker
that handles 2,000. Compare the rows of one run. Memory is the most MiB that the worker's process
has had, its interpreter included.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "contenders"))

from common import PREFETCH, Job, end
from ours import fill

from mqcore import App, Broker, Queue, Worker
from mqcore.contract.brokers import Brokers

MESSAGES = 2000


async def publish(job: Job) -> None:
    """Publish in bulk."""
    queue: Queue[dict[str, object]] = Queue(job.queue, dict)
    async with Broker.connect(job.url, queues=[queue]) as broker:
        job.start()
        await fill(broker, queue, job.count)
        job.stop()


async def drain(job: Job) -> None:
    """Handle so many messages, and leave the rest."""
    queue: Queue[dict[str, object]] = Queue(job.queue, dict)
    app, ended = App("depth"), asyncio.Event()

    @app.consumer(queue, concurrency=PREFETCH // 2, prefetch=PREFETCH)
    async def handle(payload: dict[str, object]) -> None:
        if job.count_one():
            ended.set()

    async with app.connect(job.url) as broker:
        job.start()
        async with Worker(app, broker):
            await ended.wait()
            end(job)


def probe(step: str, url: str, queue: str, count: int) -> tuple[float, float]:
    """Run one step in a process of its own; CPU in microseconds a message, and MiB."""
    words = [sys.executable, __file__, "--step", step, url, queue, str(count)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["cpu"] / count * 1e6, found["memory"]


def measure(kind: str, url: str, deepest: int) -> None:
    """Print a row for each depth."""
    queue = f"depth-{uuid.uuid4().hex[:12]}"
    there, depth = 0, 1000
    print(f"{kind}: depth, us a message published, us a message handled, worker's MiB")
    while depth <= deepest:
        probe("publish", url, queue, depth - there)
        there = depth
        published, _ = probe("publish", url, queue, MESSAGES)
        handled, memory = probe("drain", url, queue, MESSAGES)
        print(f"{depth:9,} {published:7.1f} {handled:7.1f} {memory:6.1f}", flush=True)
        depth *= 10


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("redis", "rabbitmq"), action="append")
    parser.add_argument("--deepest", type=int, default=1_000_000)
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.step:
        step, url, queue, count = options.step
        job = Job(url, queue, int(count))
        asyncio.run({"publish": publish, "drain": drain}[step](job))
        end(job)

    with Brokers("local") as brokers:
        for kind in options.only or ("redis", "rabbitmq"):
            measure(brokers.server(kind).title, brokers.server(kind).url, options.deepest)


if __name__ == "__main__":
    main()
