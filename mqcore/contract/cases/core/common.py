"""Time limits that several cases share."""

from __future__ import annotations

import asyncio

CLOSE, WOKEN, LONG = 2.0, 0.5, 600.0
"""Seconds that a close may take, that waking a consumer may take, and that a receive may wait which the case itself ends.
"""


async def loop_turns(count: int) -> None:
    """Let whatever is runnable run, so many times: a cancellation then meets a call at another of its steps."""
    for _ in range(count):
        await asyncio.sleep(0)
