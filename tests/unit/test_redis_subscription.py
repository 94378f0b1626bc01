"""A consumer on Redis, while its calls are answered in any order."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from mqcore.spi import DONE, Ack
from mqcore_redis.subscription import RedisSubscription


async def test_a_settlement_beside_the_check_of_a_full_consumer_does_not_end_it() -> None:
    """The check of a full consumer only asks whether its queue still exists."""
    checked, settled = asyncio.Event(), asyncio.Event()
    consumer: Any = full_consumer(checked, settled)

    receiving = asyncio.create_task(consumer.receive(1, 0.2))
    async with asyncio.timeout(10):
        await checked.wait()
        await consumer.settle([Ack(b"r")], timeout=1)
        settled.set()
        assert await receiving == []


def full_consumer(checked: asyncio.Event, settled: asyncio.Event) -> RedisSubscription:
    """Return a consumer of one message, which it holds; its check ends after the settlement."""
    consumer: Any = object.__new__(RedisSubscription)
    loop = asyncio.get_running_loop()

    async def fetch(room: int) -> None:
        if room == 0:
            checked.set()
            await settled.wait()
        consumer._claimed_at, consumer._next = loop.time(), float("inf")

    async def settle(_queue: str, batch: list[Ack], _deadline: float) -> list[object]:
        return [DONE] * len(batch)

    def ignore(*_: object) -> None: ...

    waker = SimpleNamespace(phase=0.0, forget=ignore, pass_on=ignore, enter=ignore, leave=ignore)
    consumer.__dict__.update(
        queue="q",
        closed=ignore,
        _awake=asyncio.Event(),
        _arrived=[],
        _batches=SimpleNamespace(settle=settle),
        _claimed_at=float("-inf"),
        _claiming=None,
        _fetch=fetch,
        _held={b"r": loop.time() + 30},
        _lease=30.0,
        _loop=loop,
        _open=True,
        _prefetch=1,
        _session=SimpleNamespace(check=ignore),
        _waker=waker,
    )
    return consumer
