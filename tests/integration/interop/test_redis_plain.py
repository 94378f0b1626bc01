"""Plain Redis clients on our queues: redis-cli and redis-py (G17)."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import redis

from mqcore import App, Broker, Context, Queue, Settings, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

JSON = dict[str, int]
WITHIN = 10.0


def by_redis_py(url: str, queue: str, *bodies: bytes) -> None:
    with redis.Redis.from_url(url) as client:
        client.rpush(f"mq:{{{queue}}}:in", *bodies)


def by_redis_cli(url: str, queue: str, *bodies: bytes) -> None:
    if (program := shutil.which("redis-cli")) is None:
        pytest.skip("redis-cli is not installed")
    parts = urlsplit(url)
    words = [program, "-h", str(parts.hostname), "-p", str(parts.port), "-n", parts.path[1:] or "0"]
    subprocess.run(
        [*words, "RPUSH", f"mq:{{{queue}}}:in", *bodies],
        check=True,
        capture_output=True,
        timeout=10,
    )


@pytest.mark.parametrize("push", [by_redis_py, by_redis_cli])
async def test_what_is_pushed_is_handled_as_a_first_attempt(
    redis_url: str, push: Callable[..., None], name: str
) -> None:
    queue = Queue(name, str, codec="text")
    async with Broker.connect(redis_url, settings=Settings()) as broker:
        await broker.declare(queue)
        await asyncio.to_thread(push, redis_url, queue.name, b"Hello World!", "häh?".encode())
        async with broker.consume(queue) as deliveries:
            first, second = [await deliveries.get(timeout=WITHIN) for _ in range(2)]
            assert first is not None
            assert second is not None
            await first.ack()
            await second.ack()
        [counts] = await broker.counts(queue)
    assert [first.value, second.value] == ["Hello World!", "häh?"]
    assert (first.attempt, first.redelivered, first.priority, first.published_at) == (
        1,
        False,
        5,
        None,
    )
    assert first.id != second.id
    assert (counts.ready, counts.leased, counts.delayed) == (0, 0, 0)


async def test_an_idle_worker_wakes_for_it_and_its_failures_are_kept_like_ours(
    redis_url: str, name: str
) -> None:
    app = App("interop")
    attempts: list[int] = []

    @app.consumer(Queue(name, JSON))
    async def fail(value: JSON, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ValueError(f"not {value}")

    settings = Settings.model_validate(
        {"queues": {name: {"retry": {"backoff": "fixed", "base": 0.1}}}}
    )
    async with app.connect(redis_url, settings=settings) as broker, Worker(app, broker):
        await asyncio.sleep(0.5)  # it has nothing to do by now, and waits to be woken
        await asyncio.to_thread(by_redis_py, redis_url, name, b'{"n": 1}', b"{n: 1}")
        letters = {}
        async with asyncio.timeout(WITHIN):
            while len(letters) < 2:
                letters = {letter.body: letter for letter in await broker.dead_letters(name).list()}
                await asyncio.sleep(0.05)
    assert (letters[b'{"n": 1}'].reason, attempts) == ("retries_exhausted", [1, 2, 3])
    assert letters[b"{n: 1}"].reason == "undecodable"
