"""Each planned instant fires once (T11): two and five schedulers, killed between any two steps.

The weeks with the changes of clocks; `tests/campaigns/schedules.py` has all from March to November.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from support.scheduling import Fleet, Report, SteppedStore, planned_triggers

from mqcore.tasks.model.changes import Add, Change, Fire
from mqcore.tasks.model.nodes import Node
from mqcore.tasks.model.outcomes import Fired
from mqcore.tasks.schedules import scheduler
from mqcore.tasks.schedules.due import step_of
from mqcore.tasks.store.seam import Applied

CHANGES = [("2026-03-27", "2026-04-07"), ("2026-10-23", "2026-11-03")]


def run(
    first: str, last: str, schedulers: int = 2, seed: int = 1, kind: type[Fleet] = Fleet
) -> Report:
    start, end = (
        datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() for day in (first, last)
    )
    fleet = kind(planned_triggers(), schedulers=schedulers, start=start, seed=seed)
    return fleet.run(end)


@pytest.mark.timeout(240)  # two seconds on a quiet machine
@pytest.mark.parametrize("schedulers", [2, 5])
@pytest.mark.parametrize(("first", "last"), CHANGES)
def test_each_instant_is_sent_once(schedulers: int, first: str, last: str) -> None:
    report = run(first, last, schedulers)
    assert report.wrong == []
    assert report.fired == report.planned > 580
    assert report.kills > 50


class TwoTransactions(SteppedStore):
    """A schedule moves on in one transaction, and its tasks are added in the next one."""

    async def apply(self, changes: Sequence[Change]) -> Applied:
        fires = [change for change in changes if isinstance(change, Fire)]
        moved = await super().apply([replace(fire, rows=()) for fire in fires])
        adds = [
            Add(fire.rows)
            for fire, outcome in zip(fires, moved.outcomes, strict=True)
            if outcome == Fired() and fire.rows
        ]
        added = await super().apply(adds)
        return Applied(moved.outcomes, added.keys)


class WithoutFence(SteppedStore):
    """Neither the version nor the id of the task stops the second scheduler."""

    async def apply(self, changes: Sequence[Change]) -> Applied:
        known = self.tables.schedules
        free = []
        for change in changes:
            assert isinstance(change, Fire)
            rows = [self._renamed(row) for row in change.rows]
            version = known[change.schedule].version if change.schedule in known else 0
            free.append(replace(change, version=version, rows=rows))
        return await super().apply(free)

    def _renamed(self, row: Node) -> Node:
        return replace(row, id=f"{row.id}x{len(self.tables.nodes)}")


@pytest.mark.parametrize("store", [TwoTransactions, WithoutFence])
def test_the_test_finds_a_store_that_fires_not_once(store: type[SteppedStore]) -> None:
    kind = type("Broken", (Fleet,), {"make_store": store})
    assert run(*CHANGES[0], kind=kind).wrong != []


def test_the_test_finds_a_scheduler_that_plans_from_now(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_now(definition: object, planned: float, now: float, *, is_open: bool) -> object:
        step = step_of(definition, planned, now, is_open=is_open)  # type: ignore[arg-type]  # passed on
        if step is None:
            return None
        return replace(step, next_at=definition.trigger.following(now, None))  # type: ignore[attr-defined]  # as above

    monkeypatch.setattr(scheduler, "step_of", from_now)
    assert run(*CHANGES[0]).wrong != []
