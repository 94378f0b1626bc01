"""What a task costs in a task store, and how a group of 100,000 goes through it.

    python benchmarks/task_store.py redis://127.0.0.1:6379/9 [--tasks 5000] [--members 100000]

EVERYTHING IN THE STORE IS REMOVED. The calls are those of a sender, a relay and a worker, without a
broker between them. A single call waits for the one before it; in batches, fifty callers call at
the same time. In brackets: the CPU time of this process, and on Redis and Valkey of the server,
which say more than the clock does on a machine with other work. There the slow log and the CPU time
around each large call say for how long one call occupied the server.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis import Redis

from mqcore.config.url import BrokerUrl
from mqcore.messages.message import new_id
from mqcore.tasks.model.changes import Add, Begin, Cancel, Change, End, More, Sent, Spread
from mqcore.tasks.model.nodes import Kind, Node, child_id
from mqcore.tasks.model.states import State
from mqcore.tasks.store.plugins import default_store_plugins
from mqcore.tasks.store.seam import Applied, TaskStore

CALLERS = 50
BATCH = 500
PAYLOAD, RESULT = b'{"args": [42]}', b'{"paid": true}'
WORKER = f"worker-{new_id()}"


def task(root: str) -> Node:
    """Return the row of a single task."""
    return Node(id=root, name="shop.send_invoice", queue="mail", payload=PAYLOAD)


def token_of(node: str) -> str:
    """Return the token of an attempt."""
    return f"{node[:16]}{node[-16:]}"


def begin(node: str) -> Change:
    """Return the change that begins a task."""
    return Begin(node, 0, 1, token_of(node), WORKER)


def end(node: str) -> Change:
    """Return the change that ends a task."""
    return End(node, 0, token_of(node), State.SUCCEEDED, RESULT)


async def with_callers(
    count: int, work: Sequence[Any], call: Callable[[Any], Awaitable[Any]]
) -> None:
    """Call for each piece of work, with this many callers at the same time."""
    left = iter(work)

    async def caller() -> None:
        for piece in left:
            await call(piece)

    await asyncio.gather(*(caller() for _ in range(count)))


class Meter:
    """Measures wall time, and CPU time of this process and of a Redis server."""

    def __init__(self, url: str) -> None:
        self.redis = Redis.from_url(url) if url.startswith("redis://") else None
        self.longest = 0.0
        """Seconds of the server's CPU that the longest measured call has taken."""
        self.start()

    def start(self) -> None:
        """Begin again."""
        self._began = (time.perf_counter(), time.process_time(), self.server())

    def server(self) -> float:
        """Return the seconds of CPU that the server has used."""
        if self.redis is None:
            return 0.0
        info = self.redis.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    def told(self, count: int = 1, unit: float = 1.0) -> str:
        """Return what passed since the start, for each of `count`."""
        now = (time.perf_counter(), time.process_time(), self.server())
        wall, own, server = (
            (is_ - was) / count / unit for is_, was in zip(now, self._began, strict=True)
        )
        self.start()
        return f"{wall:.{1 if unit == 1 else 0}f} [{own:.1f} + {server:.1f}]"

    async def apply(self, store: TaskStore, changes: Sequence[Change]) -> Applied:
        """Make changes while no other call is on its way."""
        before = self.server()
        applied = await store.apply(changes)
        self.longest = max(self.longest, self.server() - before)
        return applied


async def costs(store: TaskStore, meter: Meter, tasks: int, callers: int) -> None:
    """Print the microseconds of each change."""
    ids = [new_id() for _ in range(tasks)]
    steps: dict[str, Callable[[str], Change]] = {
        "add": lambda node: Add([task(node)]),
        "sent": lambda node: Sent([f"{node}:0"]),
        "begin": begin,
        "end": end,
    }
    shown = []
    for name, change in steps.items():
        meter.start()
        await with_callers(callers, [[change(node)] for node in ids], store.apply)
        shown.append(f"{name} {meter.told(tasks, 1e-6)}")
    who = "single" if callers == 1 else f"{callers} callers"
    print(f"{who}, µs: {', '.join(shown)}", flush=True)


async def add_members(
    store: TaskStore, meter: Meter, group: str, members: int, *, publish: bool
) -> None:
    """Add members in batches, and publish what is released."""
    for start in range(0, members, BATCH):
        stop = min(start + BATCH, members)
        rows = [task(child_id(group, index)) for index in range(start, stop)]
        for index, row in enumerate(rows, start):
            row.parent, row.index = group, index
        applied = await meter.apply(store, [More(group, rows, seal=stop == members)])
        if publish:
            await relay(store, meter, applied.keys)


async def relay(store: TaskStore, meter: Meter, keys: Sequence[str]) -> None:
    """Do what a relay does, but publish nothing: read the entries, and remove them."""
    waiting = list(keys)
    while waiting:
        entries = [item.entry for item in await store.entries(waiting)]
        slices = [Spread(it.node, it.start) for it in entries if it.start is not None]
        sent = [it.key for it in entries if it.start is None]
        applied = await meter.apply(store, [Sent(sent), *slices])
        waiting = list(applied.keys)


async def run_members(store: TaskStore, group: str, members: int) -> None:
    """Begin and end each member; a hundred run at the same time."""

    async def run(node: str) -> None:
        await store.apply([begin(node)])
        await store.apply([end(node)])

    await with_callers(100, [child_id(group, index) for index in range(members)], run)


async def large_group(store: TaskStore, meter: Meter, members: int) -> None:
    """Send a group in batches, and run its members."""
    root = new_id()
    meter.start()
    await store.apply([Add([Node(id=root, kind=Kind.GROUP, is_sealed=False)])])
    await add_members(store, meter, root, members, publish=True)
    sent = meter.told()
    await run_members(store, root, members)
    print(f"group of {members}, s: sent in {sent}, done in {meter.told()}", end="")
    await show(store, root)


async def later_group(store: TaskStore, meter: Meter, members: int) -> None:
    """Release a group as the second step of a chain, slice by slice, and cancel it."""
    root = new_id()
    first, group = task(child_id(root, 0)), child_id(root, 1)
    first.parent = root
    later = Node(id=group, kind=Kind.GROUP, parent=root, index=1, is_sealed=False)
    await store.apply([Add([Node(id=root, kind=Kind.CHAIN, size=2), first, later])])
    await add_members(store, meter, group, members, publish=False)
    await store.apply([begin(first.id)])

    meter.start()
    await relay(store, meter, (await store.apply([end(first.id)])).keys)
    released = meter.told()
    await relay(store, meter, (await store.apply([Cancel(root)])).keys)
    print(f"as a later step, s: released in {released}, cancelled in {meter.told()}", end="")
    await show(store, root)


async def show(store: TaskStore, root: str) -> None:
    """Print how a workflow has ended."""
    node = (await store.nodes([root]))[0]
    print(f", {node.state if node else 'missing'}", flush=True)


async def main() -> None:
    """Measure one store."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--tasks", type=int, default=5_000)
    parser.add_argument("--members", type=int, default=100_000)
    given = parser.parse_args()

    store = default_store_plugins().store_for(BrokerUrl(given.url).scheme)(given.url)
    meter = Meter(given.url)
    await store.open()
    try:
        for callers in (1, CALLERS):
            await store.clear()
            await costs(store, meter, given.tasks, callers)
        for measure in (large_group, later_group):
            await store.clear()
            with slow_log(meter):
                await measure(store, meter, given.members)
        await store.clear()
    finally:
        await store.close()


@contextmanager
def slow_log(meter: Meter) -> Iterator[None]:
    """Print the longest calls of a Redis."""
    client = meter.redis
    if client is None:
        yield
        return

    before = client.config_get("slowlog-*")
    client.config_set("slowlog-log-slower-than", 2_000)
    client.config_set("slowlog-max-len", 100_000)
    client.slowlog_reset()
    meter.longest = 0.0
    try:
        yield
        calls = sorted((it["duration"] / 1000 for it in client.slowlog_get(100_000)), reverse=True)
    finally:
        for name, value in before.items():
            client.config_set(str(name), str(value))
    longest = ", ".join(f"{call:.1f}" for call in calls[:3])
    print(
        f"    longest calls by the clock, ms: {longest or 'below 2'}; "
        f"the longest large call took {meter.longest * 1000:.1f} ms of CPU",
        flush=True,
    )


if __name__ == "__main__":
    asyncio.run(main())
