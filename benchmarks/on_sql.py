"""The seam over SQL: mqcore's driver beside the client library with the very same statements.

    python benchmarks/on_sql.py [--only sqlite] [--count 10000] [--deepest 1000000]

Rates are messages a second, in brackets the CPU time of the client in ms for a thousand messages;
each is the best of interleaved rounds. The statements' side has its rows ready: it makes no
messages, reads none and runs on no thread. huey's side takes one task at a time and does nothing
with it. Then the shortest time of one claim of 100 messages, with so many others in the queue, and
of one page of `browse`.
"""

import argparse
import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huey import SqliteHuey

from mqcore.contract.brokers import Brokers
from mqcore.spi import Ack, Message, Outgoing, QueueSpec, new_id
from mqcore_sql.database import Database
from mqcore_sql.driver import SqlBackend
from mqcore_sql.postgres_backend import PostgresBackend
from mqcore_sql.queues import Queues
from mqcore_sql.records import Row, encode
from mqcore_sql.sqlite_backend import SqliteBackend
from mqcore_sql.statements import DELETE, LOCK, QUEUES

sys.path.insert(0, str(Path(__file__).parent / "contenders"))

from common import BODY

BULK, CLAIM, LEASE, ROUNDS = 500, 100, 30, 5
WINDOW = 600_000_000
TURNS = 25
Way = Callable[[str, int], Awaitable[tuple[float, float]]]


def backend_of(url: str) -> SqlBackend:
    """Return a backend that is not open."""
    kind = SqliteBackend if url.startswith("sqlite") else PostgresBackend
    return kind(url, kind.Options())


@asynccontextmanager
async def queue_of(url: str) -> AsyncIterator[tuple[SqlBackend, str]]:
    """Open a backend with a queue of its own."""
    backend, name = backend_of(url), f"bench.{new_id()[:8]}"
    await backend.open(print)
    await backend.declare([QueueSpec(name=name)])
    yield backend, name
    await backend.delete(name)
    await backend.close()


def message(priority: int = 5) -> Message:
    """Return a message with an id of its own."""
    kind = "application/json"
    return Message(id=new_id(), body=BODY, content_type=kind, published_at=1.7e9, priority=priority)


async def fill(
    backend: SqlBackend, name: str, count: int, *, priority: int = 5, delay: float = 0.0
) -> None:
    """Publish in batches."""
    for start in range(0, count, BULK):
        batch = [
            Outgoing(name, message(priority), delay=delay) for _ in range(min(BULK, count - start))
        ]
        await backend.publish(batch, timeout=60)


class Stopwatch:
    """Wall time and CPU time from its making."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return both, in seconds."""
        return time.perf_counter() - self._began, time.process_time() - self._cpu


async def seam_bulk(url: str, count: int) -> tuple[float, float]:
    """Publish 500 in one call of the driver."""
    async with queue_of(url) as (backend, name):
        watch = Stopwatch()
        await fill(backend, name, count)
        return watch.read()


async def seam_drain(url: str, count: int) -> tuple[float, float]:
    """Claim 100, read their JSON, acknowledge them."""
    async with queue_of(url) as (backend, name):
        await fill(backend, name, count)
        consumer = await backend.subscribe(name, prefetch=CLAIM, lease=LEASE)
        left, watch = count, Stopwatch()
        while left:
            got = await consumer.receive(CLAIM, 5)
            for delivery in got:
                json.loads(delivery.message.body)
            await consumer.settle([Ack(delivery.receipt) for delivery in got], timeout=10)
            left -= len(got)
        return watch.read()


@asynccontextmanager
async def statements_of(url: str) -> AsyncIterator[tuple[Database, int, str]]:
    """Open what the driver runs its statements on."""
    async with queue_of(url) as (_, name):
        driver: Any = backend_of(url).Driver(url, backend_of(url).options)
        driver.open(print)
        database: Database = driver._db  # noqa: SLF001 - to run its statements without it
        queue = Queues(database, "bench").get(name)
        yield database, queue.id, name
        driver.close()


def rows_of(queue: int, count: int) -> list[list[Row]]:
    """Return messages as they are stored, in batches."""
    rows = [
        Row(queue, 5, 0, None, None, uuid.uuid4().bytes, encode(message()), BODY)
        for _ in range(count)
    ]
    return [rows[start : start + BULK] for start in range(0, count, BULK)]


def store(database: Database, name: str, batches: list[list[Row]]) -> None:
    """Insert what is ready."""
    for batch in batches:
        with database.transaction():
            database.query(QUEUES, queues=[name])
            database.store(batch, 0, WINDOW)


async def statements_bulk(url: str, count: int) -> tuple[float, float]:
    """Insert 500 rows that are ready."""
    async with statements_of(url) as (database, queue, name):
        batches = rows_of(queue, count)
        watch = Stopwatch()
        store(database, name, batches)
        return watch.read()


async def statements_drain(url: str, count: int) -> tuple[float, float]:
    """Claim 100 rows, lock and delete them."""
    async with statements_of(url) as (database, queue, name):
        store(database, name, rows_of(queue, count))
        left, watch = count, Stopwatch()
        while left:
            rows = database.claim(queue, CLAIM, 1, LEASE * 1_000_000)
            ids = [row.id for row in rows]
            with database.transaction():
                database.query(LOCK, queue=queue, ids=ids)
                database.change(DELETE, ids=ids)
            left -= len(rows)
        return watch.read()


async def huey_drain(url: str, count: int) -> tuple[float, float]:
    """Take one task after the other out of huey's file."""
    filename = Path(url.removeprefix("sqlite://")).with_name("huey.db")
    huey = SqliteHuey(new_id(), filename=str(filename))
    task = huey.task()(_do_nothing)
    for _ in range(count // 10):
        task({"text": "x" * 170})
    watch = Stopwatch()
    while (found := huey.dequeue()) is not None:
        huey.execute(found)
    seconds, cpu = watch.read()
    return 10 * seconds, 10 * cpu


def _do_nothing(payload: object) -> None:
    """Be a task."""


async def rates(url: str, count: int) -> None:
    """Print the rates, and the ratio to the first line of each part."""
    parts: dict[str, dict[str, Way]] = {
        "publish 500 a batch": {"driver": seam_bulk, "statements": statements_bulk},
        "drain, 100 a claim": {"driver": seam_drain, "statements": statements_drain},
    }
    if url.startswith("sqlite"):
        parts["drain, 100 a claim"]["huey"] = huey_drain
    for title, ways in parts.items():
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                taken[name].append(await way(url, count))
        best = {
            name: [min(column) for column in zip(*took, strict=True)]
            for name, took in taken.items()
        }
        print(title)
        for name, (seconds, cpu) in best.items():
            ratio = seconds / best["driver"][0]
            figures = f"{count / seconds:9,.0f} ({cpu / count * 1e6:6.1f})"
            print(f"  {name:11} {figures}   the driver is {ratio:5.2f} times as fast", flush=True)


async def claims(url: str, deepest: int) -> None:
    """Print the time of a claim: alone, deep in a queue, and behind delayed messages.

    The three queues are in one database, and take turns: what slows one down slows them all.
    """
    kinds = ((1000, 0), (deepest, 0), (1000, deepest))
    async with AsyncExitStack() as stack:
        queues = []
        for depth, delayed in kinds:
            backend, name = await stack.enter_async_context(queue_of(url))
            await fill(backend, name, depth)
            await fill(backend, name, delayed, priority=10, delay=3600.0)
            queues.append((backend, name, list[float](), list[float]()))

        for turn in range(TURNS):
            for backend, name, waits, pages in queues:
                began = time.perf_counter()
                got = await backend.run(partial(_claim, name))
                waits.append(time.perf_counter() - began)
                await backend.run(partial(_give_back, name, got))
                if turn % 5 == 0:
                    began = time.perf_counter()
                    await backend.run(partial(_browse, name))
                    pages.append(time.perf_counter() - began)

        shortest = min(queues[0][2])
        for (depth, delayed), (_, _, waits, pages) in zip(kinds, queues, strict=True):
            print(
                f"  {depth:9,} ready, {delayed:9,} delayed of a higher priority: a claim "
                f"{1000 * min(waits):6.2f} ms, {min(waits) / shortest:.2f} times the first; "
                f"a page of browse {1000 * min(pages):6.2f} ms",
                flush=True,
            )


def _claim(name: str, driver: Any) -> list[bytes]:
    consumer = driver.subscribe(name, prefetch=CLAIM, lease=LEASE)
    return [delivery.receipt for delivery in driver.claim(consumer, CLAIM)]


def _give_back(name: str, receipts: list[bytes], driver: Any) -> None:
    driver.give_back(name, receipts)


def _browse(name: str, driver: Any) -> None:
    driver.browse(name, 50)


async def measure(title: str, url: str, options: argparse.Namespace) -> None:
    """Print all of one database."""
    print(title)
    await rates(url, options.count)
    if options.deepest:
        await claims(url, options.deepest)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("sqlite", "postgresql"), action="append")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--deepest", type=int, default=1_000_000, help="0: rates alone")
    options = parser.parse_args()
    chosen = options.only or ("sqlite", "postgresql")

    with Brokers("local") as brokers, TemporaryDirectory() as folder:
        if "sqlite" in chosen:
            asyncio.run(measure("SQLite", f"sqlite:///{folder}/mqcore.db", options))
        if "postgresql" in chosen:
            server = brokers.server("postgresql")
            asyncio.run(measure(server.title, server.url, options))


if __name__ == "__main__":
    main()
