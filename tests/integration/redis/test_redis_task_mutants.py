"""The contract of task stores catches scripts of the Redis store that are wrong in one point."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from mutants.task_scripts import SCRIPT_MUTANTS, ScriptMutant, broken

from mqcore.contract.store.cases import store_cases
from mqcore.contract.store.equality import compare_with_memory
from mqcore.contract.store.explorer.crash_points import try_crash_points
from mqcore.contract.store.harness import MakeStore, store_of
from mqcore.contract.store.run import run_store_case

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Private

COMPARISONS = 200

pytestmark = pytest.mark.timeout(300)  # a few seconds each on a quiet machine


def run_cases(make_store: MakeStore) -> None:
    for case in store_cases():
        asyncio.run(run_store_case(case, make_store))


PARTS: dict[str, Callable[[MakeStore], object]] = {
    "cases": run_cases,
    "crash points": try_crash_points,
    "equality": lambda make_store: compare_with_memory(make_store, COMPARISONS),
}


def test_each_mutant_of_a_script_is_caught(
    private: Callable[..., Private], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server for all of them, as each takes a second or less."""
    make_store = store_of(private().url)
    escaped = [
        mutant.name for mutant in SCRIPT_MUTANTS if not is_caught(mutant, make_store, monkeypatch)
    ]
    assert not escaped


def is_caught(mutant: ScriptMutant, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> bool:
    with broken(mutant, monkeypatch):
        try:
            PARTS[mutant.part](make_store)
        except Exception:  # noqa: BLE001 - a broken store may raise anything
            return True
    return False
