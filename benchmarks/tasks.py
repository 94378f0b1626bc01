"""What a task costs beside a plain message, and beside Celery, taskiq and Dramatiq, in one run.

    python benchmarks/tasks.py [--redis redis://127.0.0.1:6379/9] [--tasks 3000] [--rounds 5]
                               [--others] [--chord 1000]

THE DATABASE OF THE REDIS IS EMPTIED. Client and worker are one process, with the broker and the
store in the same place: memory, an SQLite file, Redis. A figure is microseconds a task, of CPU of
this process and by the clock, of the best round; the ratio is that of the CPU. The scenarios take
turns. `sent and awaited` is until the last result has been read, the others are until the last
handler has ended and the last row is written.

With `--others` it is tasks a second by the clock on Redis, with a worker in a process of its own:
sending all, then reading all results; and a chord of `--chord` members.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from redis import Redis

from mqcore import App, Broker, Queue, Worker
from mqcore.tasks import Tasks
from mqcore.testing import memory_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from mqcore.tasks import Job

HERE = Path(__file__).parent / "contenders"
OTHERS = {
    "mqcore": "tasks_ours",
    "Celery": "tasks_celery",
    "taskiq": "tasks_taskiq",
    "Dramatiq": "tasks_dramatiq",
}
TOGETHER = 500
"""Sends under way at the same time."""
Cost = tuple[float, float]
"""Seconds of CPU and by the clock."""


class Countdown:
    """Counts what is handled."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.done = asyncio.Event()

    def one(self) -> None:
        """Count one."""
        self._left -= 1
        if not self._left:
            self.done.set()


async def together(work: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await some hundreds at a time."""
    found, waiting = list[Any](), list(work)
    for start in range(0, len(waiting), TOGETHER):
        found += await asyncio.gather(*waiting[start : start + TOGETHER])
    return found


async def timed(app: App, url: str, work: Callable[[Broker], Awaitable[None]]) -> Cost:
    """Measure what `work` does while a worker runs."""
    async with app.connect(url) as broker, Worker(app, broker, concurrency=100):
        began, cpu = time.perf_counter(), time.process_time()
        await work(broker)
        return time.process_time() - cpu, time.perf_counter() - began


async def plain(url: str, count: int) -> Cost:
    """Publish messages, and handle them."""
    queue, app, left = Queue("orders", dict[str, int]), App("plain"), Countdown(count)

    @app.consumer(queue)
    async def on_order(order: dict[str, int]) -> None:
        left.one()

    async def work(broker: Broker) -> None:
        await together(broker.publish(queue, {"x": 1, "y": 2}) for _ in range(count))
        await left.done.wait()

    return await timed(app, url, work)


async def task(url: str, count: int, *, stored: bool, awaited: bool = False) -> Cost:
    """Send tasks, and run them; read their results if they are `awaited`."""
    tasks, left = Tasks("bench", store=url if stored else None), Countdown(count)

    @tasks.task()
    async def add(x: int, y: int) -> int:
        left.one()
        return x + y

    async def one() -> int:
        job: Job[int] = await add.send(1, 2)
        return await job.result()

    async def work(broker: Broker) -> None:
        if awaited:
            await together(one() for _ in range(count))
            return
        jobs = await together(add.send(1, 2) for _ in range(count))
        await left.done.wait()
        if stored:
            await together(job.result() for job in jobs[-TOGETHER:])

    return await timed(App("bench", tasks=[tasks]), url, work)


SCENARIOS = {
    "plain message": plain,
    "task without a store": partial(task, stored=False),
    "tracked task": partial(task, stored=True),
    "sent and awaited": partial(task, stored=True, awaited=True),
}


def new_url(kind: str, redis: str, folder: Path, number: int) -> str:
    """Return an empty place for a broker and a store."""
    if kind == "memory":
        return memory_url()
    if kind == "sqlite":
        return f"sqlite:///{folder}/{number}.db"
    Redis.from_url(redis).flushdb()
    return redis


async def costs(redis: str, count: int, rounds: int) -> None:
    """Print what each scenario costs at each place, and its ratio to a plain message."""
    found: dict[str, list[Cost]] = defaultdict(list)
    kinds, numbers = ("memory", "sqlite", "redis"), itertools.count()
    with TemporaryDirectory() as folder:
        for _ in range(rounds):
            for kind, name in itertools.product(kinds, SCENARIOS):
                url = new_url(kind, redis, Path(folder), next(numbers))
                found[f"{kind:7} {name}"].append(await SCENARIOS[name](url, count))

    for kind, name in itertools.product(kinds, SCENARIOS):
        cpu, wall = (
            1e6 * min(each) / count for each in zip(*found[f"{kind:7} {name}"], strict=True)
        )
        base = 1e6 * min(each for each, _ in found[f"{kind:7} plain message"]) / count
        print(f"{kind:7} {name:21} {cpu:7.0f} µs of CPU {wall:7.0f} by the clock {cpu / base:6.2f}")


def rate(name: str, what: str, count: int, redis: str) -> float:
    """Return tasks a second of another library, or of mqcore, with a worker in its own process."""
    Redis.from_url(redis).flushdb()
    command = [sys.executable, str(HERE / f"{OTHERS[name]}.py")]
    setting = os.environ | {"BENCH_REDIS": redis}
    setting["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *sys.path])
    worker = subprocess.Popen(
        [*command, "worker"], env=setting, stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        done = subprocess.run(
            [*command, what, str(count)],
            env=setting,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-1000:]}")
        return float(done.stdout)
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait()


def beside_others(redis: str, count: int, size: int, rounds: int) -> None:
    """Print the best rates of all, and how many times the others' that of mqcore is."""
    for what, number, names in (("tasks", count, [*OTHERS]), ("chord", size, ["mqcore", "Celery"])):
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            for name in names:
                found[name].append(rate(name, what, number, redis))
        for name, rates in found.items():
            ratio = max(found["mqcore"]) / max(rates)
            print(f"{what} of {number:,}: {name:9} {max(rates):7,.0f} a second {ratio:6.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/9")
    parser.add_argument("--tasks", type=int, default=3_000)
    parser.add_argument("--chord", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--others", action="store_true")
    given = parser.parse_args()
    if given.others:
        beside_others(given.redis, given.tasks, given.chord, given.rounds)
    else:
        asyncio.run(costs(given.redis, given.tasks, given.rounds))
