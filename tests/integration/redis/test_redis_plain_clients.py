"""Clients without mqcore: how they publish, and how they look inside, as the docs say."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis as plain_redis
from support.waiting import eventually

from mqcore import App, Broker, Queue, Worker
from mqcore.spi import Ack, Message, Outgoing, QueueSpec, new_id

from .conftest import a_queue, opened, outgoing

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Private

PAGE = Path(__file__).parents[3] / "docs" / "backends" / "redis.md"


async def test_what_a_plain_client_pushes_comes_as_a_first_attempt(redis_url: str) -> None:
    async with opened(redis_url) as backend:
        queue = await a_queue(backend, ttl=60.0)
        await backend.publish(
            [Outgoing(queue, Message(id=new_id(), body=b"high", priority=9))], timeout=5
        )
        await backend.publish(
            [Outgoing(queue, Message(id=new_id(), body=b"low", priority=1))], timeout=5
        )
        with plain_redis.Redis.from_url(redis_url) as client:
            client.rpush(f"mq:{{{queue}}}:in", b"one\n\xff", b"")
        (count,) = await backend.count([queue])
        assert count.ready == 4
        consumer = await backend.subscribe(queue, prefetch=10, lease=30)
        got = [*await consumer.receive(10, 2)]
        assert [it.message.body for it in got] == [b"high", b"one\n\xff", b"", b"low"]
        for delivery in got[1:3]:
            message = delivery.message
            assert (
                message.attempt,
                message.priority,
                message.content_type,
                message.published_at,
            ) == (1, 5, None, None)
            assert (delivery.redelivered, delivery.takeovers) == (False, False)
            assert delivery.expires_in is not None
            assert 50 < delivery.expires_in <= 60
        assert len({it.message.id for it in got}) == 4


async def test_many_pushed_bodies_all_come_and_in_order(redis_url: str) -> None:
    async with opened(redis_url) as backend:
        queue = await a_queue(backend)
        bodies = [f"{number:04}".encode() for number in range(1200)]
        with plain_redis.Redis.from_url(redis_url) as client:
            client.rpush(f"mq:{{{queue}}}:in", *bodies)
        consumer = await backend.subscribe(queue, prefetch=100, lease=30)
        got: list[bytes] = []
        while len(got) < len(bodies):
            page = await consumer.receive(100, 2)
            assert page
            got += [it.message.body for it in page]
            await consumer.settle([Ack(it.receipt) for it in page], timeout=5)
        assert got == bodies


async def test_what_a_plain_client_pushed_is_shown_before_anybody_claims_it(redis_url: str) -> None:
    async with opened(redis_url) as backend:
        queue = await a_queue(backend)
        await backend.publish(
            [Outgoing(queue, Message(id=new_id(), body=b"low", priority=1))], timeout=5
        )
        with plain_redis.Redis.from_url(redis_url) as client:
            client.rpush(f"mq:{{{queue}}}:in", b"one", b"two", b"three")
        shown, after = [], None
        while page := await backend.browse(queue, 2, after):
            shown += page
            after = page[-1].key
        assert [it.message.body for it in shown] == [b"one", b"two", b"three", b"low"]
        (count,) = await backend.count([queue])
        assert (count.ready, count.published) == (4, 4)
        (taken,) = await backend.take(queue, [shown[1].key], 30)
        consumer = await backend.subscribe(queue, prefetch=10, lease=30)
        got = await consumer.receive(10, 2)
        assert [it.message.body for it in [*got, taken]] == [b"one", b"three", b"low", b"two"]
        assert [it.message.id for it in got] == [shown[index].message.id for index in (0, 2, 3)]


async def test_a_worker_handles_what_a_plain_client_pushed(redis_url: str) -> None:
    app, orders = App("shop"), Queue(f"t.{new_id()[:12]}", dict)
    came: asyncio.Queue[dict[str, int]] = asyncio.Queue()

    @app.consumer(orders)
    async def on_order(order: dict[str, int]) -> None:
        await came.put(order)

    async with app.connect(redis_url) as broker, Worker(app, broker):
        with plain_redis.Redis.from_url(redis_url) as client:
            client.rpush(f"mq:{{{orders.name}}}:in", json.dumps({"order_id": 1}))
        async with asyncio.timeout(10):
            assert await came.get() == {"order_id": 1}


async def test_a_record_that_a_hand_has_spoiled_is_dead_lettered_and_stops_nobody(
    redis_url: str,
) -> None:
    app, orders = App("shop"), Queue(f"t.{new_id()[:12]}", dict)
    came = asyncio.Event()

    @app.consumer(orders)
    async def on_order(_: dict[str, int]) -> None:
        came.set()

    async with app.connect(redis_url) as broker:
        await broker.publish(orders, {"order_id": 1})
        key = f"mq:{{{orders.name}}}:m"
        with plain_redis.Redis.from_url(redis_url) as client:
            (entry,) = client.hkeys(key)
            client.hset(key, entry, b"nothing of ours")
        await broker.publish(orders, {"order_id": 2})
        async with Worker(app, broker):
            async with asyncio.timeout(10):
                await came.wait()
            letters = broker.dead_letters(orders)
            await eventually(letters.list, 10)
            found = await letters.list()
        assert [(letter.reason, letter.body) for letter in found] == [
            ("undecodable", b"nothing of ours")
        ]


def commands() -> list[str]:
    """The redis-cli lines of the docs."""
    return re.findall(
        r"^\$ redis-cli (.+?)(?:\s+#.*)?$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )


def ask(port: int, line: str) -> str:
    """Type a line of the docs, and return what comes."""
    program = shutil.which("redis-cli") or "redis-cli"
    words = [program, "-p", str(port), "--no-raw", *shlex.split(line)]
    return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout


async def test_every_redis_cli_line_of_the_docs_shows_what_it_says(
    private: Callable[..., Private],
) -> None:
    server = private()
    async with opened(server.url) as backend:
        spec = QueueSpec(name="orders", dead_letter="orders.dlq")
        await backend.declare([spec, QueueSpec(name="orders.dlq", role="dead_letter")])
        batch = [outgoing("orders", body=b"ready"), outgoing("orders", delay=60)]
        batch.append(Outgoing("orders", Message(id="mortal", body=b"mortal"), ttl=60))
        await backend.publish([*batch, outgoing("orders.dlq", body=b"dead")], timeout=5)
        consumer = await backend.subscribe("orders", prefetch=1, lease=30)
        assert await consumer.receive(1, 2)
        assert len(commands()) >= 6
        for line in commands():
            said = await asyncio.to_thread(ask, server.port, line)
            assert said.strip(), line
            assert "(empty" not in said, line
            assert "(nil)" not in said, line
            assert "ERR" not in said, line
        (count,) = await backend.count(["orders"])
        assert (count.ready, count.leased, count.delayed) == (2, 1, 1)


@pytest.mark.parametrize("options", ["?tag=shop", "?prefix=other"])
async def test_queues_of_another_prefix_or_tag_are_others(redis_url: str, options: str) -> None:
    name = f"t.{new_id()[:12]}"
    async with Broker.connect(redis_url) as one, Broker.connect(f"{redis_url}{options}") as two:
        queue = Queue(name)
        await one.publish(queue, b"one")
        await two.publish(queue, b"two")
        assert [it.message.body for it in await two.peek(queue)] == [b"two"]
        await two.delete(queue)
        assert [it.message.body for it in await one.peek(queue)] == [b"one"]
