"""Lists and deletes queues, with the driver of the URL's scheme.

It runs in a thread with its own event loop, so that it works whatever loop a test has.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from mqcore.clock import SystemClock
from mqcore.config.plugins import default_plugins
from mqcore.config.settings import Settings, open_backend
from mqcore.spi import QueueNotFound, SupportsCount, SupportsDelete

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from collections.abc import Set as AbstractSet

    from mqcore.spi import Backend

__all__ = ["delete_queues", "queues"]

T = TypeVar("T")
_WITHIN = 15.0


def queues(url: str) -> set[str]:
    """Return the names of a broker's queues; empty where it cannot list them.

    Raises what the driver raises.
    """

    async def names(backend: Backend) -> set[str]:
        return (
            {counts.name for counts in await backend.count()}
            if isinstance(backend, SupportsCount)
            else set()
        )

    return _with(url, names)


def delete_queues(url: str, names: AbstractSet[str]) -> None:
    """Delete queues with their messages.

    Raises what the driver raises, except for a queue that is gone already.
    """
    if not names:
        return

    async def delete(backend: Backend) -> None:
        if isinstance(backend, SupportsDelete):
            for name in sorted(names):
                try:
                    await backend.delete(name)
                except Exception as error:
                    if (
                        not isinstance(error, QueueNotFound)
                        and backend.classify(error).value != "not_found"
                    ):
                        raise

    _with(url, delete)


def _with(url: str, work: Callable[[Backend], Awaitable[T]]) -> T:
    async def run() -> T:
        backend = open_backend(url, Settings(), default_plugins(), SystemClock())
        async with asyncio.timeout(_WITHIN):
            await backend.open(lambda _: None)
            try:
                return await work(backend)
            finally:
                await backend.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(run())).result()
