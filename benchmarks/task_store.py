"""What a task costs in a task store, and how a group of 100,000 goes through it.

    python benchmarks/task_store.py redis://127.0.0.1:6379/9 [--tasks 5000] [--members 100000]

EVERYTHING IN THE STORE IS REMOVED. The calls are those of a sender, a relay and a worker, without a
broker between them. A single call waits for the one before it; in batches, fifty callers call at
the same time. On Redis and Valkey the slow log says which call occupied the server for longest.
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
from mqcore.tasks.store.seam import TaskStore

CALLERS = 50
BATCH = 1_000
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


async def costs(store: TaskStore, tasks: int, callers: int) -> None:
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
        began = time.perf_counter()
        await with_callers(callers, ids, lambda node, change=change: store.apply([change(node)]))
        shown.append(f"{name} {(time.perf_counter() - began) / tasks * 1e6:.0f} µs")
    print(f"{'single' if callers == 1 else f'{callers} callers'}: {', '.join(shown)}", flush=True)


async def add_members(store: TaskStore, group: str, members: int, *, publish: bool) -> None:
    """Add members in batches, and publish what is released."""
    for start in range(0, members, BATCH):
        stop = min(start + BATCH, members)
        rows = [task(child_id(group, index)) for index in range(start, stop)]
        for index, row in enumerate(rows, start):
            row.parent, row.index = group, index
        applied = await store.apply([More(group, rows, seal=stop == members)])
        if publish:
            await relay(store, applied.keys)


async def relay(store: TaskStore, keys: Sequence[str]) -> None:
    """Do what a relay does, but publish nothing: read the entries, and remove them."""
    waiting = list(keys)
    while waiting:
        entries = [item.entry for item in await store.entries(waiting)]
        slices = [Spread(it.node, it.start) for it in entries if it.start is not None]
        sent = [it.key for it in entries if it.start is None]
        applied = await store.apply([Sent(sent), *slices])
        waiting = list(applied.keys)


async def run_members(store: TaskStore, group: str, members: int) -> None:
    """Begin and end each member; a hundred run at the same time."""

    async def run(node: str) -> None:
        await store.apply([begin(node)])
        await store.apply([end(node)])

    await with_callers(100, [child_id(group, index) for index in range(members)], run)


async def large_group(store: TaskStore, members: int) -> None:
    """Send a group in batches, and run its members."""
    root, began = new_id(), time.perf_counter()
    await store.apply([Add([Node(id=root, kind=Kind.GROUP, is_sealed=False)])])
    await add_members(store, root, members, publish=True)
    sent = time.perf_counter()
    await run_members(store, root, members)
    done = time.perf_counter()
    print(f"group of {members}: sent in {sent - began:.1f} s, done in {done - sent:.1f} s", end="")
    await show(store, root)


async def later_group(store: TaskStore, members: int) -> None:
    """Release a group as the second step of a chain, slice by slice, and cancel it."""
    root = new_id()
    first, group = task(child_id(root, 0)), child_id(root, 1)
    first.parent = root
    later = Node(id=group, kind=Kind.GROUP, parent=root, index=1, is_sealed=False)
    await store.apply([Add([Node(id=root, kind=Kind.CHAIN, size=2), first, later])])
    await add_members(store, group, members, publish=False)
    await store.apply([begin(first.id)])

    began = time.perf_counter()
    await relay(store, (await store.apply([end(first.id)])).keys)
    released = time.perf_counter()
    await relay(store, (await store.apply([Cancel(root)])).keys)
    cancelled = time.perf_counter()
    print(
        f"as a later step: released in {released - began:.1f} s, "
        f"cancelled in {cancelled - released:.1f} s",
        end="",
    )
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
    await store.open()
    try:
        for callers in (1, CALLERS):
            await store.clear()
            await costs(store, given.tasks, callers)
        for measure in (large_group, later_group):
            await store.clear()
            with slow_log(given.url):
                await measure(store, given.members)
        await store.clear()
    finally:
        await store.close()


@contextmanager
def slow_log(url: str) -> Iterator[None]:
    """Print the longest calls of a Redis, without those of another server's users."""
    if not url.startswith("redis://"):
        yield
        return

    with Redis.from_url(url) as client:
        before = client.config_get("slowlog-*")
        client.config_set("slowlog-log-slower-than", 2_000)
        client.config_set("slowlog-max-len", 100_000)
        client.slowlog_reset()
        try:
            yield
            calls = sorted(client.slowlog_get(100_000), key=lambda it: -it["duration"])
        finally:
            for name, value in before.items():
                client.config_set(name, value)
    longest = ", ".join(f"{call['duration'] / 1000:.1f} ms" for call in calls[:5])
    print(f"    longest calls: {longest or 'below 2 ms'}; {len(calls)} above 2 ms", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
