"""`Reader`: reads the rows of tasks, those of one turn of the event loop with one request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.store.seam import TaskStore

__all__ = ["Reader"]

_AT_ONCE = 1_000
"""Rows that one request reads."""


class Reader:
    """Reads rows: all that are asked for in one turn of the loop with one request."""

    def __init__(self, store: TaskStore) -> None:
        self._store = store
        self._asked: list[tuple[str, asyncio.Future[Node | None]]] = []
        self._reading: set[asyncio.Task[None]] = set()

    async def read(self, id: str) -> Node | None:
        """Return the row, None if there is none."""
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._flush)
        answer: asyncio.Future[Node | None] = loop.create_future()
        self._asked.append((id, answer))
        return await answer

    def _flush(self) -> None:
        asked, self._asked = self._asked, []
        for start in range(0, len(asked), _AT_ONCE):
            work = self._read(asked[start : start + _AT_ONCE])
            task = asyncio.get_running_loop().create_task(work)
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _read(self, asked: Sequence[tuple[str, asyncio.Future[Node | None]]]) -> None:
        try:
            nodes = await self._store.nodes([id_ for id_, _ in asked])
        except Exception as error:  # noqa: BLE001 - it is the answer to each caller
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), node in zip(asked, nodes, strict=True):
            if not answer.done():
                answer.set_result(node)
