"""The progress of one run: in order, at most four writes a second, never after the end (T6)."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mqcore.tasks.model.changes import Progress
from mqcore.tasks.store.seam import StoreError

if TYPE_CHECKING:
    from mqcore.clock import Clock
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.writer import Writer

__all__ = ["ProgressReports"]

_PAUSE = 0.25


class ProgressReports:
    """Takes reports from any thread, and stores the newest one."""

    def __init__(self, node: Node, writer: Writer, clock: Clock) -> None:
        """`node` is the row of the run that has begun."""
        self._node = node
        self._writer = writer
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._number = node.progress_number
        self._newest: deque[bytes] = deque(maxlen=1)
        self._writing: asyncio.Task[None] | None = None

    def report(self, value: dict[str, Any]) -> None:
        """Store a report soon."""
        self.keep(value)
        with suppress(RuntimeError):  # the loop is closed: the worker has gone
            self._loop.call_soon_threadsafe(self._wake)

    def keep(self, value: dict[str, Any]) -> None:
        """Have a report stored in one transaction with the end of the attempt."""
        self._newest.append(json.dumps(value, allow_nan=False).encode())

    def _wake(self) -> None:
        if self._writing is None or self._writing.done():
            self._writing = self._loop.create_task(self._write())

    async def _write(self) -> None:
        while changes := self.last():
            with suppress(StoreError):  # the next report says more
                await self._writer.apply(*changes)
            await self._clock.sleep(_PAUSE)

    def last(self) -> list[Progress]:
        """Return the change for a report that is not stored yet, to be made before the ending."""
        if not self._newest:
            return []
        value = self._newest.pop()
        self._number += 1
        node = self._node
        return [Progress(node.id, node.run, node.token, self._number, value)]

    def close(self) -> None:
        """End the pause after the last report."""
        if self._writing is not None:
            self._writing.cancel()
