"""A crash between every two steps, one after the other, in workflows that are always the same."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqcore.contract.store.explorer.explorer import Schedule
from mqcore.contract.store.explorer.world import Chances
from mqcore.contract.store.workflows import ChainPlan, GroupPlan, Plan, TaskPlan, rows_of
from mqcore.tasks.model.nodes import Policy

if TYPE_CHECKING:
    from mqcore.contract.store.explorer.actors import Actor
    from mqcore.contract.store.harness import MakeStore

__all__ = ["CrashPoint", "try_crash_points"]


def _tasks(*names: str) -> list[Plan]:
    return [TaskPlan(name) for name in names]


_PLANS: tuple[Plan, ...] = (
    ChainPlan(_tasks("ok", "flaky", "postponed")),
    ChainPlan([GroupPlan(_tasks("ok", "flaky", "replaced")), TaskPlan()]),
    ChainPlan([GroupPlan(_tasks("ok", "fail", "poison"), Policy.COLLECT), TaskPlan()]),
    ChainPlan([GroupPlan(_tasks("ok", "ok", "broken", "ok"), Policy.CANCEL), *_tasks("ok", "ok")]),
    GroupPlan([ChainPlan(_tasks("ok", "expiring", "ok")), GroupPlan(_tasks("ok", "replaced"))]),
    ChainPlan([TaskPlan(), GroupPlan(_tasks("ok", "ok", "ok", "ok", "ok")), TaskPlan()]),
)
_SEED = 1
_SLICE = 2


class CrashPoint(Schedule):
    """A schedule in which one step crashes in place of being made, and no other fault happens."""

    def __init__(self, plan: Plan, crash_at: int, *, is_logged: bool = True) -> None:
        """Take the number of the step."""
        super().__init__(_SEED, is_logged=is_logged)
        self.plan = plan
        self.crash_at = crash_at
        self.steps = 0
        self.chances = Chances()
        self.slice_size = _SLICE

    def _send_workflows(self) -> None:
        self.roots.append("w0")
        self.running.append(self.actors.sender(rows_of(self.plan, "w0")))

    async def _with_faults(self) -> None:
        """The crash happens while everything comes to rest."""

    async def _step(self, actor: Actor) -> None:
        self.steps += 1
        if self.steps == self.crash_at:
            self._crash(actor)
        else:
            await super()._step(actor)


def try_crash_points(make_store: MakeStore) -> int:
    """Crash at each step of each workflow; return how many crash points there were.

    Raises the `ContractError` of the first one after which a promise is broken.
    """
    return asyncio.run(_try(make_store))


async def _try(make_store: MakeStore) -> int:
    points = 0
    for plan in _PLANS:
        crash_at, has_crashed = 1, True
        while has_crashed:
            point = CrashPoint(plan, crash_at)
            await point.run(make_store)
            has_crashed = point.steps >= crash_at
            points += has_crashed
            crash_at += 1
    return points
