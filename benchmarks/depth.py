"""What a message costs, and what a worker takes, with 1,000 to 1,000,000 messages in the queue.

    python benchmarks/depth.py [--only redis] [--deepest 1000000] [--rounds 5]

There is a queue of each depth. In a round and at each of them, a process of its own publishes 5,000
messages in bulk, and another one starts a worker that handles 5,000. What is printed is CPU time,
as the median of the rounds: compare the rows of one run. Memory is the most MiB that the worker's
process has had, its interpreter included.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import uuid
from collections import defaultdict
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent / "contenders"))

from common import PREFETCH, Job, end
from ours import fill

from mqcore import App, Broker, Queue, Worker
from mqcore.contract.brokers import Brokers

MESSAGES = 5000


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


def measure(kind: str, url: str, depths: list[int], rounds: int) -> None:
    """Print a row for each depth."""
    queues = {depth: f"depth-{uuid.uuid4().hex[:12]}" for depth in depths}
    for depth, queue in queues.items():
        probe("publish", url, queue, depth)

    published, handled, memory = (defaultdict[int, list[float]](list) for _ in range(3))
    for _ in range(rounds):
        for depth, queue in queues.items():
            published[depth].append(probe("publish", url, queue, MESSAGES)[0])
            cpu, mebibytes = probe("drain", url, queue, MESSAGES)
            handled[depth].append(cpu)
            memory[depth].append(mebibytes)

    print(f"{kind}: depth, us a message published, us a message handled, worker's MiB")
    for depth in depths:
        print(
            f"{depth:9,} {median(published[depth]):7.1f} {median(handled[depth]):7.1f} "
            f"{max(memory[depth]):6.1f}",
            flush=True,
        )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("redis", "rabbitmq"), action="append")
    parser.add_argument("--deepest", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.step:
        step, url, queue, count = options.step
        job = Job(url, queue, int(count))
        asyncio.run({"publish": publish, "drain": drain}[step](job))
        end(job)

    depths = [10**power for power in range(3, 9) if 10**power <= options.deepest]
    with Brokers("local") as brokers:
        for kind in options.only or ("redis", "rabbitmq"):
            server = brokers.server(kind)
            measure(server.title, server.url, depths, options.rounds)


if __name__ == "__main__":
    main()
