"""Runs the whole contract of a task store, part by part."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqcore.contract.store.cases import StoreCase, store_cases
from mqcore.contract.store.equality import compare_with_memory
from mqcore.contract.store.explorer.crash_points import try_crash_points
from mqcore.contract.store.explorer.explorer import explore
from mqcore.contract.store.harness import MakeStore, StepClock
from mqcore.contract.store.kit import StoreKit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["StoreResult", "run_store_case", "run_store_contract"]

Part = tuple[str, "Callable[[], str]"]
"""A name, and what runs the part and returns what was done."""


@dataclass(frozen=True)
class StoreResult:
    """What came out of one part: a case, the crash points, the equality or the explorer."""

    name: str
    done: str
    seconds: float
    error: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the part has passed."""
        return not self.error


def run_store_contract(
    make_store: MakeStore, *, schedules: int, comparisons: int, seed: int = 0
) -> Iterator[StoreResult]:
    """Run every part, and yield its result when it has ended.

    A schedule or a comparison that fails has its seed and its log in the error. A run with that
    seed begins with it.
    """
    for name, part in _parts(make_store, schedules, comparisons, seed):
        began = time.perf_counter()
        done, error = "", ""
        try:
            done = part()
        except Exception as raised:  # noqa: BLE001 - whatever the store raises is the result
            notes = getattr(raised, "__notes__", ())
            error = "\n".join([f"{type(raised).__name__}: {raised}", *notes])
        yield StoreResult(name, done, time.perf_counter() - began, error)


def _parts(make_store: MakeStore, schedules: int, comparisons: int, seed: int) -> Iterator[Part]:
    for case in store_cases():
        yield case.__name__, _case_part(case, make_store)

    def crash_points() -> str:
        return f"{try_crash_points(make_store)} crash points"

    def equality() -> str:
        return f"{compare_with_memory(make_store, comparisons, seed=seed)} changes"

    def explorer() -> str:
        explored = explore(make_store, schedules, seed)
        return f"{explored.schedules} schedules, {explored.workflows} workflows"

    yield "crash points", crash_points
    yield "equality with memory", equality
    yield "explorer", explorer


def _case_part(case: StoreCase, make_store: MakeStore) -> Callable[[], str]:
    def part() -> str:
        asyncio.run(run_store_case(case, make_store))
        return ""

    return part


async def run_store_case(case: StoreCase, make_store: MakeStore) -> None:
    """Run one case. Raises `ContractError` when it fails."""
    clock = StepClock()
    store = await make_store(clock, StoreKit.slice_size)
    kit = StoreKit(store, clock)
    try:
        await case(kit)
    finally:
        await kit.close()
        await store.close()
