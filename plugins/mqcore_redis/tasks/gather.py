"""Puts the changes of several callers into one script call.

While a call is on its way, further changes wait for its answer and leave together. A caller that is
alone waits for no other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mqcore.spi import ErrorKind
from mqcore.tasks.spi import Applied, StoreError, changes
from mqcore_redis.classify import refusal_of
from mqcore_redis.tasks.words import INSERTS, outcome_of, words_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqcore.tasks.spi import Change

__all__ = ["Gatherer"]

_MOST = 1_000
"""Rows that the changes of one call insert or treat, unless one caller alone has more.

It bounds for how long a call occupies the server.
"""
_BYTES = 1_048_576
"""Bytes of one call, unless one caller alone has more."""


@dataclass(eq=False)
class _Request:
    """The changes of one caller."""

    changes: Sequence[Change]
    words: list[Any]
    rows: int
    """About how many rows they touch."""
    future: asyncio.Future[Applied]
    inserts: bool
    size: int
    """Bytes of its payloads and results."""


class Gatherer:
    """Makes the changes of all callers, in the order in which they came."""

    def __init__(
        self, send: Callable[[str, Sequence[Any]], Awaitable[Any]], slice_size: int
    ) -> None:
        """Take what runs a script with these words, and returns its answer."""
        self._send = send
        self._slice_size = slice_size
        self._waiting: deque[_Request] = deque()
        self._task: asyncio.Task[None] | None = None

    async def apply(self, given: Sequence[Change]) -> Applied:
        """Make the changes of one caller."""
        if not given:
            return Applied([])

        words: list[Any] = ["next"]
        for change in given:
            words += words_of(change)
        self._waiting.append(
            request := _Request(
                tuple(given),
                words,
                sum(map(self._rows_of, given)),
                asyncio.get_running_loop().create_future(),
                any(isinstance(change, INSERTS) for change in given),
                sum(len(word) for word in words if isinstance(word, bytes)),
            )
        )
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await request.future

    def _rows_of(self, change: Change) -> int:
        match change:
            case changes.Spread():
                return self._slice_size
            case changes.Sent(keys=keys):
                return len(keys)
        return 1 + len(getattr(change, "rows", ()))

    async def _run(self) -> None:
        """Send what waits, until nothing does."""
        try:
            while self._waiting:
                await self._make(self._next_batch())
        finally:
            self._task = None

    def _next_batch(self) -> list[_Request]:
        batch = [self._waiting.popleft()]
        rows, size = batch[0].rows, batch[0].size
        while self._waiting:
            rows, size = rows + self._waiting[0].rows, size + self._waiting[0].size
            if rows > _MOST or size > _BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _make(self, batch: list[_Request]) -> None:
        """Make the changes of several callers in one transaction.

        After an error that concerns the changes of one caller nothing was changed. Then each caller
        gets a transaction of its own, so that the error of one is not that of another.
        """
        script = "tasks/send" if any(request.inserts for request in batch) else "tasks/change"
        words = [word for request in batch for word in request.words]
        try:
            self._tell(batch, await self._send(script, words))
        except Exception as error:  # noqa: BLE001 - a caller raises it
            if len(batch) > 1 and _is_of_one(error):
                for request in batch:
                    await self._make([request])
            else:
                self._fail(batch, error)

    def _tell(self, batch: list[_Request], answer: Any) -> None:
        found, *keys = answer
        place = 0
        for request, made in zip(batch, keys, strict=True):
            mine = found[place : place + len(request.changes)]
            place += len(mine)
            if not request.future.done():
                outcomes = list(map(outcome_of, request.changes, mine))
                request.future.set_result(Applied(outcomes, [key.decode() for key in made]))

    def _fail(self, batch: list[_Request], error: Exception) -> None:
        for request in batch:
            if not request.future.done():
                request.future.set_exception(error)


def _is_of_one(error: Exception) -> bool:
    """Whether an error may concern one caller only. A full server refuses only what inserts."""
    cause = error.__cause__
    is_full = cause is not None and refusal_of(cause) is ErrorKind.FULL
    return is_full or not isinstance(error, StoreError)
