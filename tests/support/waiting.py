"""Waiting in real time for what a thread or a process brings about."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def eventually(
    condition: Callable[[], object | Awaitable[object]], within: float = 5.0
) -> None:
    """Return when the condition holds. Raises `TimeoutError` after so many seconds."""
    async with asyncio.timeout(within):
        while not await _asked(condition):  # noqa: ASYNC110 - what happens in a thread or a process sets no event here
            await asyncio.sleep(0.001)


async def _asked(condition: Callable[[], object | Awaitable[object]]) -> object:
    answer = condition()
    return await answer if inspect.isawaitable(answer) else answer
