"""G12: core refuses a payload above the driver's `max_payload` before any I/O."""

from dataclasses import replace
from typing import Any

import pytest

from mqcore import (
    App,
    Broker,
    Limits,
    MessageTooLarge,
    Queue,
    RemoteError,
    RetryPolicy,
    Settings,
    Worker,
)
from mqcore.spi import Capabilities
from mqcore.testing import memory_url
from mqcore_memory import MemoryBackend, MemoryOptions

raw = Queue("raw")


def stating(limit: int, url: str) -> Any:
    """Return what makes a memory backend that states a limit."""

    class Small(MemoryBackend):
        async def open(self, lost: Any) -> Capabilities:
            return replace(await super().open(lost), max_payload=limit)

    return lambda: Small(url, MemoryOptions())


async def test_publish_and_publish_many_refuse_before_any_io() -> None:
    async with Broker.connect(
        make_backend=stating(10, memory_url()), settings=Settings()
    ) as broker:
        with pytest.raises(MessageTooLarge, match=r"11 bytes.*'memory' takes 10") as caught:
            await broker.publish(raw, b"x" * 11, id="mine")
        assert caught.value.id == "mine"
        with pytest.raises(MessageTooLarge):
            await broker.publish_many(raw, [b"x", b"x" * 11])

        assert await broker.counts() == []
        await broker.publish(raw, b"x" * 10)


async def test_the_lower_of_both_limits_holds() -> None:
    make = stating(10, memory_url())
    async with Broker.connect(
        make_backend=make, settings=Settings(), limits=Limits(payload=5)
    ) as broker:
        with pytest.raises(MessageTooLarge, match="5 are allowed"):
            await broker.publish(raw, b"x" * 6)


async def test_a_reply_is_held_to_it_too() -> None:
    app = App("replies")

    @app.consumer(Queue("jobs", int), retry=RetryPolicy(1))
    async def handle(size: int) -> str:
        return "x" * size

    make = stating(1_000, memory_url())
    async with app.connect(make_backend=make, settings=Settings()) as broker, Worker(app, broker):
        with pytest.raises(RemoteError, match="MessageTooLarge"):
            await broker.request("jobs", 1_001, timeout=10)
