"""Tests of the contract of task stores: the parts named for a mutant catch it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from mutants import task_limits  # noqa: F401 - it registers mutants
from mutants.task_actors import schedules_with_mutants
from mutants.task_stores import StoreMutant, store_mutants

from mqcore.contract import ContractError
from mqcore.contract.store.cases import store_cases
from mqcore.contract.store.equality import compare_with_memory
from mqcore.contract.store.explorer.crash_points import try_crash_points
from mqcore.contract.store.explorer.explorer import Schedule, explore, replay
from mqcore.contract.store.harness import memory_store
from mqcore.contract.store.run import run_store_case

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.contract.store.harness import MakeStore

SCHEDULES, COMPARISONS = 1_500, 100

pytestmark = pytest.mark.timeout(240)  # many schedules, on a busy machine


def run_cases(make_store: MakeStore) -> None:
    for case in store_cases():
        asyncio.run(run_store_case(case, make_store))


PARTS: dict[str, Callable[[MakeStore], object]] = {
    "cases": run_cases,
    "crash points": try_crash_points,
    "equality": lambda make_store: compare_with_memory(make_store, COMPARISONS),
    "explorer": lambda make_store: explore(make_store, SCHEDULES),
}


@pytest.mark.parametrize(
    ("mutant", "part"),
    [
        pytest.param(mutant, part, id=f"{mutant.name}-{part}")
        for mutant in store_mutants()
        for part in mutant.parts
    ],
)
def test_a_store_mutant_is_caught(mutant: StoreMutant, part: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - a broken store may raise anything
        PARTS[part](mutant.make)
    if isinstance(caught.value, ContractError):
        assert "came:" in str(caught.value)


@pytest.mark.parametrize("kind", schedules_with_mutants(), ids=lambda kind: kind.__name__)
def test_a_process_that_keeps_the_protocol_wrong_is_caught(kind: type[Schedule]) -> None:
    with pytest.raises(ContractError, match="came:"):
        explore(memory_store, SCHEDULES, kind=kind)


@pytest.mark.parametrize("part", PARTS)
def test_the_store_in_memory_passes(part: str) -> None:
    PARTS[part](memory_store)


def test_a_failure_has_its_seed_and_a_log_and_can_be_repeated() -> None:
    mutant = next(each for each in store_mutants() if each.name == "ForgetsTheOutbox")
    with pytest.raises(ContractError) as caught:
        explore(mutant.make, SCHEDULES)
    note = caught.value.__notes__[0].splitlines()
    seed = int(note[0].removeprefix("schedule of seed "))
    assert len(note) > 1

    with pytest.raises(ContractError) as again:
        replay(mutant.make, seed)
    assert again.value.__notes__[0].splitlines() == note
