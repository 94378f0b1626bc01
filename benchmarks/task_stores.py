"""What a store of tasks costs: each change one by one and 50 together, and a group of 100,000.

    python benchmarks/task_stores.py memory://bench sqlite:////tmp/bench.db [--tasks 3000]
                                     [--group 100000] [--rounds 3]

EVERYTHING IN THE STORES IS REMOVED. The seam is driven directly: no broker, no worker, no codec.
A figure is microseconds a task of the best transaction, then of the middle one, and in brackets of
CPU of this process. The stores take turns. Of a group it is seconds: adding its members 1,000 at a
time, with their outbox entries read and removed, then beginning and ending each; and the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from mqcore.config.url import BrokerUrl
from mqcore.tasks.model.changes import Add, Begin, Change, End, More, Sent
from mqcore.tasks.model.nodes import Kind, Node, child_id
from mqcore.tasks.model.outcomes import Started
from mqcore.tasks.model.states import State
from mqcore.tasks.store.plugins import default_store_plugins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.tasks.store.seam import TaskStore

TOGETHER, BATCH, AT_ONCE = 50, 1_000, 100
PAYLOAD = b'{"order_id": 1234}'
Figures = dict[str, list[tuple[float, float]]]


def store_of(url: str) -> TaskStore:
    """Return a store that is not open."""
    return default_store_plugins().store_for(BrokerUrl(url).scheme)(url)


def task(name: str, parent: str = "", index: int = 0) -> Node:
    """Return a row."""
    return Node(
        id=name, parent=parent, index=index, name="shop.send", queue="mail", payload=PAYLOAD
    )


def phases(names: Sequence[str]) -> dict[str, list[Change]]:
    """Return the four changes of each task's life."""
    return {
        "add": [Add([task(name)]) for name in names],
        "sent": [Sent([f"{name}:0"]) for name in names],
        "begin": [Begin(name, 0, 1, "token", "worker") for name in names],
        "end": [End(name, 0, "token", State.SUCCEEDED, b"1") for name in names],
    }


async def one_round(store: TaskStore, count: int, figures: Figures) -> None:
    """Measure each change, one by one and together."""
    for size in (1, TOGETHER):
        await store.clear()
        names = [f"{number:x}-{size}" for number in range(count if size > 1 else count // 5)]
        for name, changes in phases(names).items():
            for start in range(0, len(changes), size):
                some = changes[start : start + size]
                wall, cpu = time.perf_counter(), time.process_time()
                await asyncio.gather(*[store.apply([change]) for change in some])
                taken = time.perf_counter() - wall, time.process_time() - cpu
                wall, cpu = (1e6 * seconds / len(some) for seconds in taken)
                figures[f"{name} {size}"].append((wall, cpu))


async def group(store: TaskStore, size: int) -> tuple[float, float, float]:
    """Send a group in batches, and run its members; return the seconds of both, and of CPU."""
    await store.clear()
    began, cpu = time.perf_counter(), time.process_time()
    await store.apply([Add([Node(id="g", kind=Kind.GROUP, is_sealed=False)])])
    for start in range(0, size, BATCH):
        stop = min(start + BATCH, size)
        rows = [task(child_id("g", index), "g", index) for index in range(start, stop)]
        applied = await store.apply([More("g", rows, seal=stop == size)])
        pending = await store.entries(applied.keys)
        await store.apply([Sent([item.entry.key for item in pending])])
    sent = time.perf_counter() - began

    async def run(name: str) -> None:
        answer = await store.apply([Begin(name, 0, 1, name, "worker")])
        if type(answer.outcomes[0]) is not Started:
            raise AssertionError(answer)
        await store.apply([End(name, 0, name, State.SUCCEEDED, b"1")])

    for start in range(0, size, AT_ONCE):
        stop = min(start + AT_ONCE, size)
        await asyncio.gather(*[run(child_id("g", index)) for index in range(start, stop)])
    (node,) = await store.nodes(["g"])
    if node is None or node.state is not State.SUCCEEDED:
        raise AssertionError(node)
    return sent, time.perf_counter() - began - sent, time.process_time() - cpu


async def main(urls: Sequence[str], tasks: int, members: int, rounds: int) -> None:
    """Measure the stores in turns, and print the best of each."""
    stores = {url.partition(":")[0]: store_of(url) for url in urls}
    figures: dict[str, Figures] = {name: defaultdict(list) for name in stores}
    for store in stores.values():
        await store.open()

    for _ in range(rounds):
        for name, store in stores.items():
            await one_round(store, tasks, figures[name])
    for name, found in figures.items():
        for what, values in found.items():
            walls, cpus = map(sorted, zip(*values, strict=True))
            middle = walls[len(walls) // 2]
            print(f"{name:12} {what:8} {walls[0]:8.1f} {middle:8.1f} ({cpus[0]:.1f})")

    for name, store in stores.items():
        if members:
            sent, done, cpu = await group(store, members)
            parts = f"sent in {sent:.1f} s, done in {done:.1f} s ({cpu:.1f} of CPU)"
            print(f"{name:12} a group of {members:,}: {parts}")
        await store.clear()
        await store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--tasks", type=int, default=3_000)
    parser.add_argument("--group", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    asyncio.run(main(given.urls, given.tasks, given.group, given.rounds))
