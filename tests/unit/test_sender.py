"""Publishes that share batches are all answered, also beside a close or a driver's fault (G1)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from mqcore.clock import SystemClock
from mqcore.connection.sender import Sender
from mqcore.spi import ErrorKind, Failed, Unknown


def sender_on(publish: Any) -> tuple[Sender, Any]:
    """Return a sender on a connected backend that has this `publish`, and its connection."""
    connected = asyncio.Event()
    connected.set()
    connection: Any = SimpleNamespace(
        clock=SystemClock(),
        connected_event=connected,
        is_closed=False,
        generation=1,
        error=None,
        backend=SimpleNamespace(publish=publish),
    )
    return Sender(connection), connection


async def test_a_publish_beside_a_close_is_answered_and_so_is_the_next() -> None:
    never = asyncio.get_running_loop().create_future()

    async def publish(_: Any, timeout: float) -> Any:
        await never

    sender, connection = sender_on(publish)
    first = asyncio.create_task(sender.publish([Any], 30.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    connection.is_closed = True
    closing = asyncio.create_task(sender.close(0.0))
    during = asyncio.create_task(sender.publish([Any], 30.0))
    async with asyncio.timeout(10):
        await closing
        last = await sender.publish([Any], 30.0)
        answers = [await first, await during]

    assert isinstance(answers[0][0], Unknown)
    assert answers[1] == last == [Failed(ErrorKind.PERMANENT, "this broker is closed")]


async def test_a_driver_that_answers_too_few_is_asked_once() -> None:
    calls = 0

    async def publish(_: Any, timeout: float) -> list[Any]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return []

    sender, _ = sender_on(publish)
    (outcome,) = await sender.publish([Any], 0.05)

    assert calls == 1
    assert outcome == Unknown("the driver answered 0 of 1 messages")
