"""An application that publishes at a fixed rate while its broker is killed and started again."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from support.waiting import eventually

from mqcore import Broker, MqcoreError, Queue, Settings

if TYPE_CHECKING:
    from mqcore.contract.brokers.server import Server

__all__ = ["Outage", "outage", "summary"]

_TICK = 0.02
_SETTLED = 1.0
"""Seconds of publishing before the outage, and after the spool is empty."""
_GIVE_UP = 120.0


@dataclass
class Outage:
    """What came of it."""

    published: list[int] = field(default_factory=list)
    """What the application has a receipt for, in the order in which it published."""
    arrived: list[int] = field(default_factory=list)
    spooled: int = 0
    begun: int = 0
    """How many publishes the application has begun."""
    began_at: dict[int, float] = field(default_factory=dict)
    ended_at: dict[int, float] = field(default_factory=dict)
    """When each publish began, and when its receipt came."""
    begun_before: int = 0
    """How many of them it had begun when the server was gone."""
    errors: list[str] = field(default_factory=list)
    deepest: int = 0
    slowest: float = 0.0
    """Seconds of the longest publish."""
    empty_after: float | None = None
    """Seconds from the server's return until the spool was empty."""

    @property
    def lost(self) -> int:
        """How many confirmed messages did not arrive."""
        return len(set(self.published) - set(self.arrived))

    @property
    def doubled(self) -> int:
        """How many messages arrived more than once."""
        return len(self.arrived) - len(set(self.arrived))

    @property
    def overtaken(self) -> int:
        """How many messages came after one whose publish began when they had their receipt.

        Only of publishes that began after the kill. Those that were on the way go to the spool
        behind others that the server had confirmed, and its order of those is its own matter.
        """
        first = [each for each in dict.fromkeys(self.arrived) if each >= self.begun_before]
        return sum(self.ended_at[other] < self.began_at[one] for one, other in pairwise(first))


async def outage(
    url: str, server: Server, spool: str, *, rate: float, away: float, name: str = "numbers"
) -> Outage:
    """Publish, kill the server for `away` seconds, and publish on until the spool is empty."""
    result, queue = Outage(), Queue(name, int)
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(
            Broker.connect(url, fallback=spool, settings=Settings())
        )
        stop = asyncio.Event()
        publishing = asyncio.create_task(_publish(app, queue, rate, result, stop))
        await asyncio.sleep(_SETTLED)
        await asyncio.to_thread(server.kill)
        result.begun_before = result.begun
        await asyncio.sleep(away)
        await asyncio.to_thread(server.start)

        returned = time.monotonic()
        with suppress(TimeoutError):
            await eventually(lambda: not app.health().degraded, _GIVE_UP)
            result.empty_after = time.monotonic() - returned
        await asyncio.sleep(_SETTLED)
        stop.set()
        await publishing
        await _drain(app, queue, result)
        await app.delete(queue)
    return result


async def _publish(
    app: Broker, queue: Queue[int], rate: float, result: Outage, stop: asyncio.Event
) -> None:
    """Start publishes at the rate, whatever becomes of the earlier ones."""
    began = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()

    async def publish(value: int) -> None:
        at = result.began_at[value] = time.monotonic()
        try:
            receipt = await app.publish(queue, value)
        except MqcoreError as error:
            result.errors.append(f"{type(error).__name__}: {error}")
            return
        result.published.append(value)
        result.ended_at[value] = time.monotonic()
        result.spooled += receipt.spooled
        result.slowest = max(result.slowest, result.ended_at[value] - at)

    while not stop.is_set():
        while result.begun < (time.monotonic() - began) * rate:
            task = asyncio.create_task(publish(result.begun))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            result.begun += 1
        health = app.health().spool
        result.deepest = max(result.deepest, health.depth if health is not None else 0)
        await asyncio.sleep(_TICK)
    await asyncio.gather(*tasks)


async def _drain(app: Broker, queue: Queue[int], result: Outage) -> None:
    acks: set[asyncio.Task[None]] = set()
    async with app.consume(queue, prefetch=100) as deliveries:
        while (delivery := await deliveries.get(timeout=3.0)) is not None:
            result.arrived.append(delivery.value)
            ack = asyncio.create_task(delivery.ack())
            acks.add(ack)
            ack.add_done_callback(acks.discard)
        await asyncio.gather(*acks)


def summary(result: Outage) -> str:
    """Return the figures in one line."""
    empty = "never" if result.empty_after is None else f"{result.empty_after:.1f} s"
    return (
        f"published {len(result.published):,} (spooled {result.spooled:,}, at most "
        f"{result.deepest:,} at once), lost {result.lost}, errors {len(result.errors)}, twice "
        f"{result.doubled}, overtaken {result.overtaken}, slowest publish {result.slowest:.2f} s, "
        f"spool empty {empty} after the server's return"
    )
