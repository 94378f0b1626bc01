"""How the contract gets at a task store: one with empty tables, and a clock that a test sets."""

from __future__ import annotations

from typing import Protocol

from mqcore.clock import SystemClock
from mqcore.config.url import BrokerUrl
from mqcore.tasks.store.memory import MemoryTaskStore
from mqcore.tasks.store.plugins import default_store_plugins
from mqcore.tasks.store.seam import TaskStore

__all__ = ["MakeStore", "StepClock", "memory_store", "store_of"]

_BEGINNING = 1_000_000.0


class StepClock(SystemClock):
    """A clock that stands still until a test sets it."""

    real = False

    def __init__(self) -> None:
        super().__init__()
        self.time = _BEGINNING

    def now(self) -> float:
        """Return the time that was set."""
        return self.time

    def monotonic(self) -> float:
        """Return the time that was set."""
        return self.time


class MakeStore(Protocol):
    """Returns an open store with empty tables."""

    async def __call__(self, clock: StepClock, slice_size: int) -> TaskStore:
        """Return the store. It takes its times from the clock."""


def store_of(url: str) -> MakeStore:
    """Return a function that opens the store of a URL and empties it.

    Raises `ConfigurationError` for a malformed URL, and for a scheme that no plugin serves.
    """
    store_class = default_store_plugins().store_for(BrokerUrl(url).scheme)

    async def make(clock: StepClock, slice_size: int) -> TaskStore:
        store = store_class(url, clock, slice_size=slice_size)
        await store.open()
        await store.clear()
        return store

    return make


async def memory_store(clock: StepClock, slice_size: int) -> TaskStore:
    """Return the store in memory."""
    store = MemoryTaskStore("memory://contract", clock, slice_size=slice_size)
    await store.clear()
    return store
