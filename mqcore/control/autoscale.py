"""`Autoscaler`: lets the concurrency of consumers follow how busy they are."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from mqcore.errors import MqcoreError

if TYPE_CHECKING:
    from mqcore.clock import Clock

__all__ = ["Autoscaler"]

EVERY = 1.0
CALM = 30
"""How many looks in a row must show idle places before a consumer shrinks."""


class _Sizes(Protocol):
    @property
    def queues(self) -> dict[str, int]:
        """The concurrency of each consumer."""

    @property
    def running(self) -> dict[str, int]:
        """How many handlers of each consumer run."""

    async def resize(self, queue: str, concurrency: int, /) -> None:
        """Change the concurrency of a consumer."""


class Autoscaler:
    """Doubles a consumer whose places are all taken, and halves one that is half idle for 30 s."""

    def __init__(self, worker: _Sizes, clock: Clock) -> None:
        """Nothing is scaled yet."""
        self.bounds: dict[str, tuple[int, int]] = {}
        """The smallest and the largest concurrency, by queue."""
        self._worker = worker
        self._clock = clock
        self._calm: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def keep(self, queue: str, low: int, high: int) -> None:
        """Keep the concurrency of a queue between two numbers from now on."""
        self.bounds[queue] = low, high
        self._calm[queue] = 0
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def leave(self, queue: str) -> None:
        """Leave the concurrency of a queue as it is."""
        self.bounds.pop(queue, None)
        if not self.bounds:
            self.close()

    def close(self) -> None:
        """Scale nothing any more."""
        self.bounds.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None  # it has not ended yet, and scales nothing any more

    async def _run(self) -> None:
        while self.bounds:
            await self._clock.sleep(EVERY)
            await self.adjust()

    async def adjust(self) -> None:
        """Compare the consumers with what they run, and resize them."""
        for queue, (low, high) in list(self.bounds.items()):
            size, busy = self._worker.queues.get(queue), self._worker.running.get(queue, 0)
            if size is None:
                continue
            wanted = min(max(self._wanted(queue, size, busy), low), high)
            if wanted != size:
                with suppress(MqcoreError):  # the broker is away, or the worker stops: later
                    await self._worker.resize(queue, wanted)

    def _wanted(self, queue: str, size: int, busy: int) -> int:
        if busy >= size:
            self._calm[queue] = 0
            return size * 2
        self._calm[queue] = self._calm.get(queue, 0) + 1 if busy <= size // 2 else 0
        if self._calm[queue] < CALM:
            return size
        self._calm[queue] = 0
        return max(size // 2, busy)
