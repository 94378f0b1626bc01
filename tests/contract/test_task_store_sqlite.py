"""The contract of task stores on SQLite, in short form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.task_stores import in_file

from mqcore.contract.store.cases import StoreCase, store_cases
from mqcore.contract.store.equality import compare_with_memory
from mqcore.contract.store.explorer.crash_points import try_crash_points
from mqcore.contract.store.explorer.explorer import explore
from mqcore.contract.store.run import run_store_case

if TYPE_CHECKING:
    from pathlib import Path

    from mqcore.contract.store.harness import MakeStore

pytestmark = pytest.mark.timeout(300)  # seconds on a quiet machine


@pytest.fixture
def make(tmp_path: Path) -> MakeStore:
    return in_file(tmp_path / "tasks.db")


@pytest.mark.parametrize("case", store_cases(), ids=lambda case: case.__name__)
async def test_case(case: StoreCase, make: MakeStore) -> None:
    await run_store_case(case, make)


def test_a_crash_between_every_two_steps(make: MakeStore) -> None:
    assert try_crash_points(make) > 200


def test_equality_with_memory(make: MakeStore) -> None:
    assert compare_with_memory(make, 60, seed=10_000) > 3_600


def test_schedules(make: MakeStore) -> None:
    assert explore(make, 400, seed=700_000).schedules == 400
