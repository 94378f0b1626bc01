"""Two workers on a server, and commands to them, for the tests of each server."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from support.waiting import eventually

from mqcore import App, Broker, Queue, Settings, Worker
from mqcore.control.client import Control
from mqcore.spi import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def two_workers(url: str) -> AsyncIterator[list[Worker]]:
    """Run two workers with a queue of their own, each on its own connection."""
    queue = Queue(f"t.{new_id()[:12]}", str)
    app = App("controlled")

    @app.consumer(queue, concurrency=4)
    async def handle(_: str) -> None: ...

    async with AsyncExitStack() as stack:
        workers = []
        for _ in range(2):
            broker = await stack.enter_async_context(app.connect(url, settings=Settings()))
            worker = Worker(app, broker, grace=0, control=True)
            workers.append(await stack.enter_async_context(worker))
        yield workers


def names_of(workers: list[Worker]) -> list[str]:
    """Return the names under which the workers get commands."""
    return sorted(worker.control.name for worker in workers if worker.control is not None)


async def check_chosen(url: str) -> None:
    """Workers that are named answer, whatever the broker can bind."""
    async with (
        two_workers(url) as workers,
        Broker.connect(url, settings=Settings()) as broker,
        Control(broker) as control,
    ):
        names = names_of(workers)

        async def all_answer() -> bool:
            answers = await control.send("ping", workers=names, timeout=60)
            return all(answer.ok for answer in answers)

        await eventually(all_answer, within=60)
        await control.send("grow", {"count": 2}, workers=names[:1], timeout=60)
        sizes = [next(iter(worker.queues.values())) for worker in workers]
        assert sorted(sizes) == [4, 6]
        (gone,) = await control.send("ping", workers=["nowhere:1:none"], timeout=60)
        assert "no queue for commands" in gone.error


async def check_all(url: str) -> None:
    """All workers answer a command that names none of them."""
    async with (
        two_workers(url) as workers,
        Broker.connect(url, settings=Settings()) as broker,
        Control(broker) as control,
    ):
        names = set(names_of(workers))

        async def all_answer() -> bool:
            answers = await control.send("ping", timeout=60)
            return names <= {answer.worker for answer in answers if answer.ok}

        await eventually(all_answer, within=60)
