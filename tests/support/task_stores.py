"""Task stores in databases, for the contract: open, and with empty tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore_sql.tasks.sqlite import SqliteTaskStore

if TYPE_CHECKING:
    from pathlib import Path

    from mqcore.contract.store.harness import MakeStore, StepClock
    from mqcore.tasks.store.seam import TaskStore

__all__ = ["in_file", "of_class"]


def of_class(kind: type[TaskStore], url: str) -> MakeStore:
    """Return a function that opens the store of a URL and empties it."""

    async def make(clock: StepClock, slice_size: int) -> TaskStore:
        store = kind(url, clock, slice_size=slice_size)
        await store.open()
        await store.clear()
        return store

    return make


def in_file(path: Path) -> MakeStore:
    """Return a function for a store in an SQLite file, which a power cut may damage."""
    return of_class(SqliteTaskStore, f"sqlite:///{path}?synchronous=off")
