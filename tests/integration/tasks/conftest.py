"""For the tests of tasks: an app on a private broker and store in memory, and its worker."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mqcore import App, Broker, DeadLetter, PublishFailed, Settings, Worker
from mqcore.tasks import Tasks
from mqcore.testing import VirtualClock, memory_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class Shop:
    """An application with tasks."""

    def __init__(self, clock: VirtualClock, **options: Any) -> None:
        self.clock = clock
        self.url = memory_url()
        self.tasks = Tasks("shop", store=memory_url(), **options)
        self.app = App("shop", tasks=[self.tasks])

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Broker]:
        """Connect, without a worker."""
        async with self.app.connect(self.url, clock=self.clock, settings=Settings()) as broker:
            yield broker

    @asynccontextmanager
    async def serve(self, **options: Any) -> AsyncIterator[Worker]:
        """Connect, and run a worker."""
        async with self.open() as broker, Worker(self.app, broker, grace=0, **options) as worker:
            yield worker


@pytest.fixture
def shop(clock: VirtualClock) -> Shop:
    return Shop(clock)


@contextmanager
def broker_away(broker: Broker) -> Iterator[None]:
    """Let every publish fail for certain, as while a broker is away."""

    async def refuse(*_: object, **__: object) -> None:
        raise PublishFailed("away")

    with pytest.MonkeyPatch.context() as away:
        away.setattr(broker, "publish", refuse)
        yield


async def letters(broker: Broker, queue: str = "default") -> list[DeadLetter]:
    """Return the dead letters of a queue."""
    return await broker.dead_letters(queue).list()
