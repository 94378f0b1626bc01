"""The progress of one run: in order, at most four writes a second, never after the end (T6)."""

from __future__ import annotations

import asyncio
import json
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
        self._newest: bytes | None = None
        self._writing: asyncio.Task[None] | None = None

    def report(self, value: dict[str, Any]) -> None:
        """Store a report soon."""
        text = json.dumps(value, allow_nan=False).encode()
        with suppress(RuntimeError):  # the loop is closed: the worker has gone
            self._loop.call_soon_threadsafe(self._take, text)

    def _take(self, text: bytes) -> None:
        self._newest = text
        if self._writing is None or self._writing.done():
            self._writing = self._loop.create_task(self._write())

    async def _write(self) -> None:
        while changes := self.last():
            with suppress(StoreError):  # the next report says more
                await self._writer.apply(*changes)
            await self._clock.sleep(_PAUSE)

    def last(self) -> list[Progress]:
        """Return the change for a report that is not stored yet, to be made before the ending."""
        if self._newest is None:
            return []
        value, self._newest = self._newest, None
        self._number += 1
        node = self._node
        return [Progress(node.id, node.run, node.token, self._number, value)]

    def close(self) -> None:
        """End the pause after the last report."""
        if self._writing is not None:
            self._writing.cancel()
