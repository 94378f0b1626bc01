"""What a queue remembers of its copies: by time, by number, and by the source of a Move."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from mqcore import Broker, Queue
from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    Move,
    Outgoing,
    QueueSpec,
    Stored,
    TopologyMismatch,
    new_id,
)

from .conftest import a_queue, opened, outgoing

KNOWN = Stored(duplicate=True)


async def test_a_name_is_forgotten_after_two_windows_and_not_before_one(redis_url: str) -> None:
    async with opened(redis_url, dedup_window=0.6) as backend:
        queue = await a_queue(backend)
        assert await backend.publish([outgoing(queue, "a")], timeout=5) == [STORED]
        await asyncio.sleep(0.3)
        assert await backend.publish([outgoing(queue, "a")], timeout=5) == [KNOWN]
        await asyncio.sleep(1.0)
        assert await backend.publish([outgoing(queue, "a")], timeout=5) == [STORED]


async def test_the_last_names_are_remembered_and_no_more_than_twice_as_many(redis_url: str) -> None:
    async with opened(redis_url, dedup_size=10) as backend:
        queue = await a_queue(backend)
        for turn in range(6):
            batch = [outgoing(queue, f"{turn}-{number}") for number in range(10)]
            assert await backend.publish(batch, timeout=5) == [STORED] * 10
            assert await backend.publish(batch, timeout=5) == [KNOWN] * 10
        assert await backend.publish([outgoing(queue, "0-0")], timeout=5) == [STORED]


async def test_a_second_life_of_an_id_does_not_lose_its_dead_letter(redis_url: str) -> None:
    """The id is used again after its window; the dead-letter queue still knows the older letter."""
    window = 1.0
    async with opened(redis_url, dedup_window=window) as backend:
        queue = await a_queue(backend)
        consumer = await backend.subscribe(queue, prefetch=10, lease=30)
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def live_and_die() -> None:
            assert await backend.publish([outgoing(queue, "a")], timeout=5) == [STORED]
            (delivery,) = await consumer.receive(1, 2)
            await asyncio.sleep(began + 0.8 * window - loop.time())
            letter = Outgoing(f"{queue}.dlq", delivery.message.moved(queue))
            assert await consumer.settle([Move(delivery.receipt, letter)], timeout=5) == [DONE]

        await live_and_die()
        await asyncio.sleep(began + 1.5 * window - loop.time())
        await backend.publish(
            [outgoing(f"{queue}.dlq", "other")], timeout=5
        )  # turns the buckets: the letter's name is in the old one
        await asyncio.sleep(began + 2.1 * window - loop.time())
        await live_and_die()
        (count,) = await backend.count([f"{queue}.dlq"])
        assert count.ready == 3


async def test_settings_are_compared_as_what_they_mean(redis_url: str) -> None:
    name = f"t.{new_id()[:12]}"
    async with opened(redis_url) as backend:
        await backend.declare([QueueSpec(name=name, ttl=60, max_length=5, retention=None)])
        await backend.declare([QueueSpec(name=name, ttl=60.0, max_length=5)])
        with pytest.raises(TopologyMismatch, match=r"ttl=60\.0, but the code declares ttl=None"):
            await backend.declare([QueueSpec(name=name, max_length=5)])
        with pytest.raises(
            TopologyMismatch, match="max_length=5, but the code declares max_length=6"
        ):
            await backend.declare(
                [QueueSpec(name=f"{name}.new"), QueueSpec(name=name, ttl=60, max_length=6)]
            )
        assert [count.name for count in await backend.count([f"{name}.new", name])] == [name]
    async with Broker.connect(redis_url) as broker:
        await broker.delete(name)
        await broker.publish(Queue(name, ttl=timedelta(minutes=1)), b"x")
        await broker.publish(Queue(name, ttl=60), b"x")


async def test_a_claim_under_way_at_a_close_goes_back_as_it_was(redis_url: str) -> None:
    async with opened(redis_url) as backend:
        queue = await a_queue(backend)
        names = [f"{number:02}" for number in range(40)]
        await backend.publish([outgoing(queue, name) for name in names], timeout=5)
        handed: list[str] = []
        for turn in range(30):
            consumer = await backend.subscribe(queue, prefetch=5, lease=60)
            receiving = asyncio.create_task(consumer.receive(5, 60))
            for _ in range(1 + turn % 10):
                await asyncio.sleep(0)
            await consumer.close()
            handed += [it.message.id for it in await receiving]
        consumer = await backend.subscribe(queue, prefetch=100, lease=60)
        got = await consumer.receive(100, 2)
        assert [it.message.id for it in got] == names
        assert [it.message.id for it in got if it.takeovers] == sorted(set(handed))
        assert await consumer.settle([Ack(it.receipt) for it in got], timeout=5) == [DONE] * 40
