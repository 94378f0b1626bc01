"""The contract of task stores on the one in memory, in short form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mqcore.cli import main
from mqcore.contract.store.cases import StoreCase, store_cases
from mqcore.contract.store.equality import compare_with_memory
from mqcore.contract.store.explorer.crash_points import try_crash_points
from mqcore.contract.store.explorer.explorer import explore, replay
from mqcore.contract.store.harness import memory_store, store_of
from mqcore.contract.store.run import run_store_case, run_store_contract
from mqcore.tasks.store.memory import MemoryTaskStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.contract.store.harness import StepClock
    from mqcore.tasks.model.changes import Change
    from mqcore.tasks.store.seam import Applied, TaskStore


@pytest.mark.parametrize("case", store_cases(), ids=lambda case: case.__name__)
async def test_case(case: StoreCase) -> None:
    await run_store_case(case, memory_store)


def test_a_crash_between_every_two_steps() -> None:
    assert try_crash_points(memory_store) > 200


def test_equality_with_itself() -> None:
    assert compare_with_memory(memory_store, 10) > 600


def test_schedules() -> None:
    explored = explore(memory_store, 300, seed=500_000)
    assert explored.schedules == 300
    assert explored.rows > explored.workflows > 300


def test_a_schedule_follows_from_its_seed() -> None:
    assert replay(memory_store, 7) == replay(memory_store, 7) != replay(memory_store, 8)


async def test_the_store_of_a_url_is_empty() -> None:
    async def roots() -> Sequence[object]:
        return await MemoryTaskStore("memory://used").nodes(["r"])

    for case in store_cases()[:2]:
        await run_store_case(case, store_of("memory://used"))
    assert await roots() != [None]
    await run_store_case(store_cases()[5], store_of("memory://used"))
    assert await roots() == [None]


def test_the_command_reports_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["contract", "run-store", "memory://reported", "--schedules", "20"]
    assert main([*arguments, "--comparisons", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "passed"
    assert {part["name"] for part in report["parts"]} >= {"crash points", "explorer"}

    assert main([*arguments, "--comparisons", "2"]) == 0
    out = capsys.readouterr().out
    assert "passed explorer 20 schedules" in out
    assert out.rstrip().endswith("passed")


def test_the_command_refuses_an_unknown_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["contract", "run-store", "nothing://x"]) == 2
    assert "no installed plugin has a task store for 'nothing'" in capsys.readouterr().err


class Forgetful(MemoryTaskStore):
    """Returns no keys."""

    async def apply(self, changes: Sequence[Change]) -> Applied:
        applied = await super().apply(changes)
        return type(applied)(applied.outcomes)


def test_a_part_that_fails_shows_what_was_expected_and_its_log() -> None:
    async def make(clock: StepClock, slice_size: int) -> TaskStore:
        store = Forgetful("memory://forgetful", clock, slice_size=slice_size)
        await store.clear()
        return store

    results = {it.name: it for it in run_store_contract(make, schedules=1, comparisons=1)}
    assert "expected: the keys" in results["a_row_and_its_outbox_entry_are_written_together"].error
    assert "equality of seed 0\n" in results["equality with memory"].error
    assert results["nothing_is_a_transaction_too"].is_good
