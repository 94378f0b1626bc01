"""`Leftovers`: attempts that a worker has left, and that the store may still show as running.

An attempt that has begun ends with a change that the store confirms. Where it does not (the store
was away, the attempt was cancelled while it began), the worker leaves the task until the store
answers. The token of the attempt makes that harmless: an attempt that no longer holds its task
changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.tasks.model.changes import Back

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

__all__ = ["Leftovers"]


class Leftovers:
    """The attempts of one connection whose ends are not confirmed."""

    def __init__(self) -> None:
        self._begun: dict[Back, asyncio.Future[object] | None] = {}

    def add(self, back: Back, begun: asyncio.Future[object] | None) -> None:
        """Take an attempt. `begun` is the answer to its beginning, which may be under way."""
        self._begun[back] = begun

    def due(self, task: str | None = None) -> Sequence[Back]:
        """Return what is to be applied, of one task or of all."""
        return [
            back
            for back, begun in self._begun.items()
            if task in {None, back.task} and (begun is None or begun.done())
        ]

    def confirm(self, backs: Iterable[Back]) -> None:
        """Forget what the store has answered."""
        for back in backs:
            self._begun.pop(back, None)
