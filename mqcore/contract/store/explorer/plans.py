"""Random workflows, whose tasks fail, retry, expire, kill their worker or replace themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.contract.store.workflows import ChainPlan, GroupPlan, Plan, TaskPlan, drawn
from mqcore.tasks.model.nodes import Policy

if TYPE_CHECKING:
    from random import Random

__all__ = ["TICK", "random_plan", "random_workflow", "tick_id"]

TICK = 50.0
"""Seconds between two instants of the schedule."""
_BEHAVIORS = ("ok", "fail", "broken", "flaky", "postponed", "poison", "expiring", "replaced")
"""What a task does. `fail` succeeds after a redrive, `broken` never."""
_WEIGHTS = (50, 8, 5, 9, 7, 5, 5, 9)
_POLICIES = (Policy.FAIL, Policy.FAIL, Policy.CANCEL, Policy.COLLECT)
_MOST_MEMBERS = 4
_MOST_STEPS = 3


def random_workflow(choose: Random) -> Plan:
    """Return a plan: often a single task, or a tree of a depth up to 4."""
    if drawn(choose, 0.15):
        return TaskPlan(_behavior(choose))
    if drawn(choose, 0.12):
        return TaskPlan(_behavior(choose), unique="key")
    if drawn(choose, 0.27):
        return ChainPlan([_group(choose, 1), TaskPlan(_behavior(choose))])
    return random_plan(choose, choose.randint(1, 3))


def random_plan(choose: Random, depth: int) -> Plan:
    """Return a plan of at most this depth."""
    if not depth or drawn(choose, 0.4):
        return TaskPlan(_behavior(choose))
    if drawn(choose, 0.5):
        return _group(choose, depth)
    steps = choose.randint(0, _MOST_STEPS)
    return ChainPlan([random_plan(choose, depth - 1) for _ in range(steps)])


def _group(choose: Random, depth: int) -> GroupPlan:
    members = choose.randint(0, _MOST_MEMBERS)
    return GroupPlan(
        [random_plan(choose, depth - 1) for _ in range(members)], choose.choice(_POLICIES)
    )


def _behavior(choose: Random) -> str:
    return choose.choices(_BEHAVIORS, _WEIGHTS)[0]


def tick_id(planned: float) -> str:
    """Return the id of the run of an instant, the same for every scheduler."""
    return f"tick{planned:.0f}"
