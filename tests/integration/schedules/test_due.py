"""What happens with a schedule at a moment: missed and overlapping runs."""

from __future__ import annotations

import pytest
from support.scheduling import one_row

from mqcore.tasks.schedules.definition import (
    Definition,
    Last,
    Missed,
    Overlap,
    Status,
    decode,
    encode,
    root_id,
)
from mqcore.tasks.schedules.due import due_instants, fires_of, step_of
from mqcore.tasks.schedules.errors import InvalidSchedule
from mqcore.tasks.schedules.triggers import Trigger, cron, every, solar
from mqcore.tasks.store.seam import Schedule

HOUR = 3_600.0


def hourly(
    missed: Missed = Missed.ONCE, limit: int = 3, overlap: Overlap = Overlap.ALLOW
) -> Definition:
    return Definition(every(HOUR), "task", missed, limit, overlap)


def at(hours: float) -> float:
    return 1_000_000.0 + hours * HOUR


def shown(
    definition: Definition, now: float, *, is_open: bool = False
) -> tuple[list[float], float, float | None] | None:
    """Return fired, next and skipped in hours after the planned instant."""
    step = step_of(definition, at(0), at(now), is_open=is_open)
    if step is None:
        return None
    hours = [(moment - at(0)) / HOUR for moment in (*step.fired, step.next_at)]
    skipped = None if step.skipped is None else (step.skipped - at(0)) / HOUR
    return hours[:-1], hours[-1], skipped


def test_nothing_happens_before_the_instant() -> None:
    assert shown(hourly(), -0.001) is None


@pytest.mark.parametrize("missed", Missed)
def test_a_run_on_time_is_no_missed_run(missed: Missed) -> None:
    assert shown(hourly(missed), 0.0) == ([0], 1, None)
    assert shown(hourly(missed), 0.01) == ([0], 1, None)


def test_missed_runs() -> None:
    assert shown(hourly(Missed.ONCE), 5.5) == ([5], 6, None)
    assert shown(hourly(Missed.ALL), 5.5) == ([3, 4, 5], 6, None)
    assert shown(hourly(Missed.ALL, limit=100), 2.5) == ([0, 1, 2], 3, None)
    assert shown(hourly(Missed.SKIP), 5.5) == ([], 6, 5)
    assert shown(hourly(Missed.SKIP), 5.01) == ([5], 6, None)


@pytest.mark.parametrize("is_open", [False, True])
def test_runs_may_overlap(*, is_open: bool) -> None:
    assert shown(hourly(Missed.ALL), 1.5, is_open=is_open) == ([0, 1], 2, None)


def test_an_overlapping_run_is_left_out() -> None:
    definition = hourly(Missed.ALL, overlap=Overlap.SKIP)
    assert shown(definition, 0.0, is_open=True) == ([], 1, 0)
    assert shown(definition, 2.5, is_open=True) == ([], 3, 2)
    assert shown(definition, 2.5) == ([0], 3, 2)


def test_an_overlapping_run_waits() -> None:
    definition = hourly(Missed.ALL, overlap=Overlap.QUEUE)
    assert shown(definition, 2.5, is_open=True) is None
    assert shown(definition, 2.5) == ([0], 1, None)
    assert shown(definition, 4.5) == ([2], 3, None)
    once = hourly(Missed.ONCE, overlap=Overlap.QUEUE)
    assert shown(once, 2.5) == ([2], 3, None)


def test_an_outage_of_a_year_is_not_counted_instant_by_instant() -> None:
    trigger, planned = cron("* * * * *"), 1_793_000_040.0
    found = due_instants(trigger, planned, planned + 365 * 86_400 + 30, 3)
    assert [moment - planned for moment in found] == [31_535_880.0, 31_535_940.0, 31_536_000.0]


def test_each_run_is_a_change_and_all_of_them_are_one_transaction() -> None:
    definition = hourly(Missed.ALL)
    step = step_of(definition, at(0), at(1.5))
    assert step is not None
    fires, after = fires_of(
        Schedule("nightly", 7, at(0), encode(definition)), definition, step, one_row
    )
    roots = [root_id("nightly", at(0)), root_id("nightly", at(1))]
    assert [(fire.version, fire.rows[0].id) for fire in fires] == [(7, roots[0]), (8, roots[1])]
    assert (after.version, after.next_at) == (9, at(2))
    assert decode(after).last == Last(at(1), roots[1])


def test_a_step_without_a_run_is_a_change_too() -> None:
    definition = hourly(Missed.SKIP)
    step = step_of(definition, at(0), at(1.5))
    assert step is not None
    fires, after = fires_of(Schedule("nightly", 7, at(0)), definition, step, one_row)
    assert [(fire.version, tuple(fire.rows)) for fire in fires] == [(7, ())]
    assert decode(after).last == Last(skipped=at(1))


def test_the_id_of_a_run_follows_from_name_and_instant() -> None:
    assert root_id("a", 60.0) == root_id("a", 60.0)
    assert len({root_id("a", 60.0), root_id("b", 60.0), root_id("a", 61.0)}) == 3


@pytest.mark.parametrize(
    "trigger", [every(0.5), cron("30 7 * * 1", tz="Europe/Oslo"), solar("sunset", -37.8, 145.0)]
)
def test_a_definition_is_read_as_it_was_written(trigger: Trigger) -> None:
    definition = Definition(
        trigger,
        '{"name": "ö"}',
        Missed.ALL,
        7,
        Overlap.QUEUE,
        Status.PAUSED,
        "shop",
        Last(1.5, "r"),
    )
    assert decode(Schedule("nightly", 1, None, encode(definition))) == definition


@pytest.mark.parametrize("stored", [b"", b"{}", b'{"trigger": {"kind": "lunar"}, "call": ""}'])
def test_a_definition_of_another_version_is_an_error_that_names_the_schedule(stored: bytes) -> None:
    with pytest.raises(InvalidSchedule, match="schedule 'nightly': its definition cannot be read"):
        decode(Schedule("nightly", 1, None, stored))


@pytest.mark.parametrize("limit", [0, -1, 1_001])
def test_a_limit_that_one_transaction_cannot_hold_is_refused(limit: int) -> None:
    with pytest.raises(InvalidSchedule, match="1 to 1,000"):
        hourly(limit=limit)
