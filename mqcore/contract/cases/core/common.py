"""Time limits that several cases share."""

from __future__ import annotations

import asyncio

CLOSE, WOKEN, LONG = 2.0, 0.5, 600.0
"""Seconds: limits for a close and for waking a consumer, and a receive that the case ends."""


async def loop_turns(count: int) -> None:
    """Let the event loop run `count` times, so that a cancellation meets a call at another step."""
    for _ in range(count):
        await asyncio.sleep(0)
