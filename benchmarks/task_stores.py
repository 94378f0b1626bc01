"""What a store of tasks costs: each change one by one and 50 together, and a group of 100,000.

    python benchmarks/task_stores.py memory://bench sqlite:////tmp/bench.db redis://127.0.0.1:6379/9
                                     [--tasks 3000] [--group 100000] [--rounds 3]

EVERYTHING IN THE STORES IS REMOVED. The seam is driven directly: no broker, no worker, no codec.
A figure is microseconds a task of the best transaction, then of the middle one, in parentheses of
CPU of this process, and in brackets of the CPU of a Redis or Valkey. The stores take turns.

Of a group it is seconds: adding its members in batches, with their outbox entries read and removed,
then beginning and ending each; then a group that is the later step of a chain, released slice by
slice and cancelled. On Redis the slow log and the CPU time around each large call say for how long
one call occupied the server.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis import Redis

from mqcore.config.url import BrokerUrl
from mqcore.tasks.model.changes import Add, Begin, Cancel, Change, End, More, Sent, Spread
from mqcore.tasks.model.nodes import Kind, Node, child_id
from mqcore.tasks.model.outcomes import Started
from mqcore.tasks.model.states import State
from mqcore.tasks.store.plugins import default_store_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mqcore.tasks.store.seam import Applied, TaskStore

TOGETHER, AT_ONCE = 50, 100
PAYLOAD = b'{"order_id": 1234}'
Figures = dict[str, list[tuple[float, float, float]]]


class Server:
    """The Redis behind a store; of any other store it knows nothing, and says 0."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url) if url.startswith("redis://") else None
        self.longest = 0.0
        """Seconds of CPU of the longest call that ran alone."""

    def cpu(self) -> float:
        """Return the seconds of CPU that the server has used."""
        if self._redis is None:
            return 0.0
        info = self._redis.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    async def apply(self, store: TaskStore, changes: Sequence[Change]) -> Applied:
        """Make changes while no other call is on its way."""
        before = self.cpu()
        applied = await store.apply(changes)
        self.longest = max(self.longest, self.cpu() - before)
        return applied

    @contextmanager
    def slow_log(self) -> Iterator[None]:
        """Print the longest calls of the block."""
        client = self._redis
        if client is None:
            yield
            return

        before = client.config_get("slowlog-*")
        client.config_set("slowlog-log-slower-than", 2_000)
        client.config_set("slowlog-max-len", 100_000)
        client.slowlog_reset()
        self.longest = 0.0
        try:
            yield
            calls = [entry["duration"] / 1000 for entry in client.slowlog_get(100_000)]
        finally:
            for name, value in before.items():
                client.config_set(str(name), str(value))
        longest = ", ".join(f"{call:.1f}" for call in sorted(calls, reverse=True)[:3])
        print(
            f"    longest calls by the clock, ms: {longest or 'below 2'}; the longest large call "
            f"took {self.longest * 1000:.1f} ms of CPU"
        )


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


async def one_round(store: TaskStore, server: Server, count: int, figures: Figures) -> None:
    """Measure each change, one by one and together."""
    for size in (1, TOGETHER):
        await store.clear()
        names = [f"{number:x}-{size}" for number in range(count if size > 1 else count // 5)]
        for name, changes in phases(names).items():
            before, taken = server.cpu(), list[tuple[float, float]]()
            for start in range(0, len(changes), size):
                some = changes[start : start + size]
                wall, cpu = time.perf_counter(), time.process_time()
                await asyncio.gather(*[store.apply([change]) for change in some])
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                taken.append((1e6 * wall / len(some), 1e6 * cpu / len(some)))
            theirs = 1e6 * (server.cpu() - before) / len(changes)
            figures[f"{name} {size}"] += [(wall, cpu, theirs) for wall, cpu in taken]


async def add_members(store: TaskStore, server: Server, name: str, size: int) -> list[str]:
    """Add the members of a group in batches; return the keys of what is to be published."""
    keys: list[str] = []
    for start in range(0, size, store.slice_size):
        stop = min(start + store.slice_size, size)
        rows = [task(child_id(name, index), name, index) for index in range(start, stop)]
        keys += (await server.apply(store, [More(name, rows, seal=stop == size)])).keys
    return keys


async def relay(store: TaskStore, server: Server, keys: Sequence[str]) -> None:
    """Do what a relay does, but publish nothing: read the entries, and remove them."""
    waiting = list(keys)
    while waiting:
        some, waiting = waiting[: store.slice_size], waiting[store.slice_size :]
        entries = [item.entry for item in await store.entries(some)]
        slices = [Spread(each.node, each.start) for each in entries if each.start is not None]
        sent = Sent([each.key for each in entries if each.start is None])
        waiting += (await server.apply(store, [sent, *slices])).keys


async def run_members(store: TaskStore, name: str, size: int) -> None:
    """Begin and end each member, a hundred at a time."""

    async def run(member: str) -> None:
        answer = await store.apply([Begin(member, 0, 1, member, "worker")])
        if type(answer.outcomes[0]) is not Started:
            raise AssertionError(answer)
        await store.apply([End(member, 0, member, State.SUCCEEDED, b"1")])

    for start in range(0, size, AT_ONCE):
        stop = min(start + AT_ONCE, size)
        await asyncio.gather(*[run(child_id(name, index)) for index in range(start, stop)])


async def check(store: TaskStore, name: str, state: State) -> None:
    """Stop when a workflow has not ended as it should."""
    (node,) = await store.nodes([name])
    if node is None or node.state is not state:
        raise AssertionError(node)


async def group(store: TaskStore, server: Server, size: int) -> str:
    """Send a group in batches, and run its members."""
    await store.clear()
    began, cpu = time.perf_counter(), time.process_time()
    await store.apply([Add([Node(id="g", kind=Kind.GROUP, is_sealed=False)])])
    await relay(store, server, await add_members(store, server, "g", size))
    sent = time.perf_counter()
    await run_members(store, "g", size)
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    await check(store, "g", State.SUCCEEDED)
    return f"sent in {sent - began:.1f} s, done in {ended - sent:.1f} s ({cpu:.1f} of CPU)"


async def later_group(store: TaskStore, server: Server, size: int) -> str:
    """Release a group as the second step of a chain, slice by slice, and cancel it."""
    await store.clear()
    first, name = task("c.0", "c"), "c.1"
    later = Node(id=name, kind=Kind.GROUP, parent="c", index=1, is_sealed=False)
    await store.apply([Add([Node(id="c", kind=Kind.CHAIN, size=2), first, later])])
    await add_members(store, server, name, size)
    await store.apply([Begin(first.id, 0, 1, "token", "worker")])

    began = time.perf_counter()
    ending = End(first.id, 0, "token", State.SUCCEEDED, b"1")
    await relay(store, server, (await store.apply([ending])).keys)
    released = time.perf_counter()
    await relay(store, server, (await store.apply([Cancel("c")])).keys)
    cancelled = time.perf_counter()
    await check(store, "c", State.CANCELLED)
    return f"released in {released - began:.1f} s, cancelled in {cancelled - released:.1f} s"


async def main(urls: Sequence[str], tasks: int, members: int, rounds: int) -> None:
    """Measure the stores in turns, and print the best of each."""
    stores = {url.partition(":")[0]: (store_of(url), Server(url)) for url in urls}
    figures: dict[str, Figures] = {name: defaultdict(list) for name in stores}
    for store, _ in stores.values():
        await store.open()

    for _ in range(rounds):
        for name, (store, server) in stores.items():
            await one_round(store, server, tasks, figures[name])
    for name, found in figures.items():
        for what, values in found.items():
            walls, cpus, servers = map(sorted, zip(*values, strict=True))
            theirs = f" [{servers[0]:.1f}]" if servers[-1] else ""
            middle = walls[len(walls) // 2]
            print(f"{name:12} {what:8} {walls[0]:8.1f} {middle:8.1f} ({cpus[0]:.1f}){theirs}")

    for name, (store, server) in stores.items():
        for kind, measure in (("a group", group), ("a later group", later_group)):
            if members:
                with server.slow_log():
                    told = await measure(store, server, members)
                    print(f"{name:12} {kind} of {members:,}: {told}", flush=True)
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
