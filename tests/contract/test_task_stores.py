"""The contract of task stores at full length: 100,000 schedules, or MQCORE_STORE_SCHEDULES."""

from __future__ import annotations

import os

import pytest

from mqcore.contract.store.equality import compare_with_memory
from mqcore.contract.store.explorer.explorer import explore
from mqcore.contract.store.harness import memory_store

SCHEDULES = int(os.environ.get("MQCORE_STORE_SCHEDULES") or 100_000)
PIECES = 10
"""The schedules are run in pieces, so that each has a time limit of its own."""


@pytest.mark.timeout(240)  # ten seconds on a quiet machine
@pytest.mark.parametrize("piece", range(PIECES))
def test_every_workflow_ends_in_every_schedule(piece: int) -> None:
    size = SCHEDULES // PIECES
    assert explore(memory_store, size, seed=piece * size).schedules == size


@pytest.mark.timeout(240)  # twenty seconds on a quiet machine
def test_memory_equals_itself_in_many_random_changes() -> None:
    assert compare_with_memory(memory_store, 1_000) > 60_000
