"""The cost of waiting: two commands a second, and one blocked connection for all queues."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import redis as plain_redis

from mqcore.spi import Ack

from .conftest import a_queue, opened, outgoing

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Private


def commands(client: plain_redis.Redis) -> int:
    """How many commands clients have sent, without those that scripts call and our own looks."""
    found: dict[str, Any] = client.info("commandstats")
    return sum(
        found.get(f"cmdstat_{name}", {"calls": 0})["calls"]
        for name in ("evalsha", "blpop", "ping", "rpush", "eval")
    )


async def test_an_idle_consumer_costs_at_most_two_commands_a_second(
    private: Callable[..., Private],
) -> None:
    server = private()
    async with opened(server.url) as backend:
        consumer = await backend.subscribe(await a_queue(backend), prefetch=10, lease=30)
        waiting = asyncio.create_task(consumer.receive(10, 60))
        await asyncio.sleep(1)
        with server.client() as client:
            before = commands(client)
            await asyncio.sleep(5)
            used = commands(client) - before
        waiting.cancel()
        assert used <= 2 * 5 + 1


async def test_a_hundred_queues_share_one_blocked_connection_and_all_are_woken(
    private: Callable[..., Private],
) -> None:
    server = private()
    async with opened(server.url) as backend, opened(server.url) as publisher:
        queues = [await a_queue(backend) for _ in range(100)]
        consumers = [await backend.subscribe(queue, prefetch=1, lease=30) for queue in queues]
        waiting = [asyncio.create_task(consumer.receive(1, 60)) for consumer in consumers]
        await asyncio.sleep(0.2)
        with server.client() as client:
            assert [found["cmd"] for found in client.client_list()].count("blpop") == 1
            assert len(client.client_list()) == 4
        loop = asyncio.get_running_loop()
        began = loop.time()
        await publisher.publish([outgoing(queue, queue) for queue in queues], timeout=5)
        got = [
            name
            for deliveries in await asyncio.gather(*waiting)
            for name in [it.message.id for it in deliveries]
        ]
        assert got == queues
        assert (
            loop.time() - began < 0.9
        )  # nobody waited for its own look, which comes once a second


async def test_a_token_that_finds_nobody_idle_goes_to_who_is(
    private: Callable[..., Private],
) -> None:
    """The instance that listens is full; an idle one elsewhere is woken all the same."""
    server = private()
    async with AsyncExitStack() as stack:
        full, idle, publisher = [
            await stack.enter_async_context(opened(server.url)) for _ in range(3)
        ]
        queue = await a_queue(full)
        busy = await full.subscribe(queue, prefetch=1, lease=60)
        first = asyncio.create_task(busy.receive(1, 60))
        await asyncio.sleep(0.1)
        await publisher.publish([outgoing(queue)], timeout=5)
        (held,) = await first
        other = await idle.subscribe(queue, prefetch=1, lease=60)
        loop, late = asyncio.get_running_loop(), []
        for _ in range(20):
            waiting = asyncio.create_task(other.receive(1, 60))
            await asyncio.sleep(0.05)
            began = loop.time()
            await publisher.publish([outgoing(queue)], timeout=5)
            (delivery,) = await waiting
            late.append(loop.time() - began)
            await other.settle([Ack(delivery.receipt)], timeout=5)
        assert sorted(late)[15] < 0.3
        await busy.settle([Ack(held.receipt)], timeout=5)


async def test_a_short_delay_wakes_who_sleeps_longer(private: Callable[..., Private]) -> None:
    server = private()
    async with opened(server.url) as backend, opened(server.url) as publisher:
        queue = await a_queue(backend)
        consumer = await backend.subscribe(queue, prefetch=1, lease=30)
        loop = asyncio.get_running_loop()
        for delay in (0.3, 0.05, 0.12, 0.0):
            waiting = asyncio.create_task(consumer.receive(1, 60))
            await asyncio.sleep(0.05)
            began = loop.time()
            await publisher.publish([outgoing(queue, delay=delay)], timeout=5)
            (delivery,) = await waiting
            assert delay - 0.005 <= loop.time() - began < delay + 0.3
            await consumer.settle([Ack(delivery.receipt)], timeout=5)
