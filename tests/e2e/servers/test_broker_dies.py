"""The broker is killed: nothing confirmed is lost, and work goes on by itself (G1, G7, G14)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from support.waiting import eventually

from mqcore import App, Broker, MqcoreError, Queue, Worker
from mqcore.messages.message import new_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.contract.brokers import Server

pytestmark = [pytest.mark.timeout(240), pytest.mark.every_server]


async def test_confirmed_delayed_messages_outlive_the_broker(
    server: Server, url: str, measured: Callable[[str, float], None]
) -> None:
    """4,000 of them, due while it is dead and after; duplicates are allowed, a loss is not."""
    queue = Queue(f"later.{new_id()[:12]}", str)
    words = [f"word-{number}" for number in range(4000)]
    came: list[str] = []
    async with Broker.connect(url) as broker:
        await broker.declare(queue)
        await asyncio.sleep(
            2.5
        )  # a young quorum queue that is killed may stay without a leader for good
        for start in range(0, len(words), 500):
            delay = 4.0 + start / 1000
            receipts = await broker.publish_many(queue, words[start : start + 500], delay=delay)
            assert not any(isinstance(receipt, Exception) for receipt in receipts)
        await asyncio.to_thread(server.restart)
        died = time.monotonic()
        async with broker.consume(queue, prefetch=500) as consumer:
            missing = set(words)
            while missing and time.monotonic() - died < 200:
                if (delivery := await consumer.get(timeout=5)) is not None:
                    came.append(delivery.value)
                    missing.discard(delivery.value)
                    await delivery.ack()
    measured(
        "duplicates that came before the last of them, after a broker kill",
        len(came) - len(set(came)),
    )
    measured(
        "seconds until the last of 4,000 delayed messages came after a broker kill",
        round(time.monotonic() - died, 1),
    )
    assert missing == set()


async def test_publishing_and_consuming_go_on_after_a_restart(
    server: Server, url: str, measured: Callable[[str, float], None]
) -> None:
    queue = Queue(f"steady.{new_id()[:12]}", int)
    app = App("steady")
    handled: set[int] = set()

    @app.consumer(queue)
    async def handle(number: int) -> None:
        handled.add(number)

    confirmed: set[int] = set()
    stop = asyncio.Event()

    async def publish(broker: Broker) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                await broker.publish(queue, number, timeout=1.0)
            except MqcoreError:
                continue
            confirmed.add(number)
            await asyncio.sleep(0.005)

    async with app.connect(url) as broker, Worker(app, broker):
        publishing = asyncio.create_task(publish(broker))
        await eventually(lambda: len(handled) > 50, 30)
        await asyncio.to_thread(server.restart)
        accepted = time.monotonic()
        before = max(confirmed)
        await eventually(lambda: max(confirmed) > before and max(handled) > before, 30)
        measured(
            "seconds until work went on after a restart", round(time.monotonic() - accepted, 2)
        )
        await eventually(lambda: broker.health().ok, 30)
        stop.set()
        await publishing
        await eventually(lambda: handled >= confirmed, 60)
