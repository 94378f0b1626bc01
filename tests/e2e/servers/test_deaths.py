"""Processes die on real brokers: no message is lost, and none is blamed for another (G4, G5)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.deaths import LEASE, Workers
from support.waiting import eventually

from mqcore import Broker, Capability, Queue
from mqcore.messages.message import new_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.timeout(180), pytest.mark.every_server]

LONG = 90.0
SLACK = 15.0
"""Seconds that a busy test machine may add to a takeover; the figure itself is told to the report.

Wide, and still less than the default lease, which a takeover would wait for without ours.
"""


@pytest.fixture
def queue() -> str:
    return f"deaths.{new_id()[:12]}"


async def test_a_message_that_kills_its_process_takes_no_neighbour_with_it(
    url: str, queue: str, tmp_path: Path
) -> None:
    innocents = {f"innocent-{number}" for number in range(199)}
    deaths = Queue(queue, str)
    async with Broker.connect(url) as broker:
        await broker.declare(deaths)
        words = [*sorted(innocents)[:100], "poison", *sorted(innocents)[100:]]
        await broker.publish_many(deaths, words)
        with Workers(url, queue, tmp_path, prefetch=50) as workers:

            async def over() -> bool:
                if not workers.running or workers.reap():
                    workers.start()
                return workers.did() >= innocents and bool(
                    await broker.dead_letters(deaths).list(1)
                )

            await eventually(over, LONG)
            starts = [attempt for _, what, attempt in workers.lines("started") if what == "poison"]
            assert len(starts) <= 5, workers.output()  # max_attempts and two (G4)
        letters = await broker.dead_letters(deaths).list()
        assert [(letter.reason, letter.body) for letter in letters] == [("crashed", b"poison")]


async def test_another_process_takes_over(
    url: str, queue: str, tmp_path: Path, measured: Callable[[str, float], None]
) -> None:
    deaths = Queue(queue, str)
    async with Broker.connect(url) as broker:
        await broker.declare(deaths)
        leased = broker.capabilities.has(Capability.LEASE)
        with Workers(url, queue, tmp_path) as first, Workers(url, queue, tmp_path) as second:
            first.start()
            await broker.publish(deaths, "sleep")
            await eventually(lambda: len(first.lines("started")) == 1, LONG)
            second.start()
            await broker.publish_many(deaths, [f"warm-{number}" for number in range(30)])
            await eventually(lambda: len(first.did()) == 30, LONG)
            first.kill()
            died = time.time()
            await eventually(lambda: len(first.lines("started")) >= 32, LONG)
            took = (
                max(moment for moment, what, _ in first.lines("started") if what == "sleep") - died
            )
        measured("seconds until another process took over", round(took, 3))
        assert took <= (LEASE if leased else 0.0) + 1.0 + SLACK


async def test_ten_processes_that_die_at_once_lose_nothing(
    url: str, queue: str, tmp_path: Path, measured: Callable[[str, float], None]
) -> None:
    unharmed, words = (
        {f"{kind}-{number}" for number in range(600)} for kind in ("unharmed", "word")
    )
    deaths = Queue(queue, str)
    async with Broker.connect(url) as broker:
        await broker.declare(deaths)
        with Workers(url, queue, tmp_path, prefetch=50, concurrency=5) as workers:
            await broker.publish_many(deaths, sorted(unharmed))
            began = time.time()
            workers.start(10)
            await eventually(lambda: workers.did() == unharmed, LONG)
            measured(
                "seconds until ten processes had run 600 messages", round(time.time() - began, 1)
            )
            await broker.publish_many(deaths, sorted(words))
            await eventually(lambda: len(workers.did()) >= len(unharmed) + 50, LONG)
            workers.kill()
            began = time.time()
            workers.start(10)
            await eventually(lambda: workers.did() == words | unharmed, LONG)
            measured(
                "seconds until ten killed processes had caught up", round(time.time() - began, 1)
            )
        assert await broker.dead_letters(deaths).list() == []


async def test_an_urgent_message_overtakes_five_thousand(url: str, queue: str) -> None:
    line = Queue(queue, str)
    async with Broker.connect(url) as broker:
        await broker.declare(line)
        await broker.publish_many(line, [f"low-{number}" for number in range(5000)], priority=1)
        handled: list[str] = []
        async with broker.consume(line, prefetch=1) as consumer:
            async for delivery in consumer:
                handled.append(delivery.value)
                if len(handled) == 3:
                    await broker.publish(line, "urgent", priority=9)
                await delivery.ack()
                if len(handled) == 6:
                    break
        assert handled[3] == "urgent" or handled[4] == "urgent", handled
        await broker.delete(line)
