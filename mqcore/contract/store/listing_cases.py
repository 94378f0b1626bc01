"""The cases of what is listed and removed: ended trees by time, and heartbeats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.contract.store.kit import TOKEN
from mqcore.contract.store.workflows import GroupPlan, TaskPlan
from mqcore.tasks.model.changes import Back, Cancel
from mqcore.tasks.model.states import State
from mqcore.tasks.store.seam import Heartbeat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.contract.store.kit import StoreKit

__all__ = ["LISTING_CASES"]

LISTING_CASES: list[Callable[[StoreKit], Awaitable[None]]] = []

_TASK = TaskPlan()


def case(function: Callable[[StoreKit], Awaitable[None]]) -> Callable[[StoreKit], Awaitable[None]]:
    """Register a case."""
    LISTING_CASES.append(function)
    return function


@case
async def live_tasks_are_known_at_once(kit: StoreKit) -> None:
    """Those that wait and those that run, by the time they are due; no group, and nothing ended."""
    await kit.add(TaskPlan(delay=50.0), "scheduled")
    for root in ("ended", "retrying", "running", "queued"):
        await kit.add(_TASK, root)
        kit.clock.time += 1
    await kit.add(GroupPlan([_TASK]), "group")
    kit.clock.time += 1
    await kit.begin("running")
    await kit.begin("retrying")
    await kit.do(Back("retrying", 0, TOKEN, State.RETRYING, 20.0))
    await kit.run("ended")

    expected = ["queued", "group.0", "running", "retrying", "scheduled"]
    kit.same(list(await kit.store.live()), expected, "the live tasks", "live")
    kit.same(list(await kit.store.live(limit=2)), expected[:2], "the first two", "live")


@case
async def the_ended_trees_are_listed_newest_first(kit: StoreKit) -> None:
    """By the time when their roots ended, page by page; nothing that is open, no member."""
    began = kit.clock.time
    for root in ("a", "b", "c", "d", "open"):
        await kit.add(_TASK, root)
    for root in ("b", "a"):
        await kit.run(root)
    kit.clock.time += 10
    await kit.do(Cancel("d", "not needed"))
    kit.clock.time += 10
    await kit.run("c")
    await kit.add(GroupPlan([_TASK]), "group")
    await kit.run("group.0")

    end = kit.clock.time + 1
    listed = [
        list(await kit.store.ended(*page))
        for page in ((0.0, end), (0.0, end, 2, 1), (began + 10, end - 1), (0.0, began), (end, end))
    ]
    expected = [["group", "c", "d", "b", "a"], ["c", "d"], ["d"], [], []]
    kit.same(listed, expected, "the roots that have ended", "ended")


@case
async def a_purge_removes_the_heartbeats_of_workers_that_are_gone(kit: StoreKit) -> None:
    """Those whose time was over before; another heartbeat brings a worker back."""
    await kit.store.heartbeat(Heartbeat("gone", 15.0))
    await kit.store.heartbeat(Heartbeat("slow", 60.0))
    kit.clock.time += 50
    await kit.store.heartbeat(Heartbeat("alive", 15.0))
    await kit.store.purge(kit.clock.time - 30)
    kit.same([it.worker for it in await kit.store.workers()], ["alive", "slow"], "the workers")
    kit.clock.time += 1_000
    await kit.store.purge(kit.clock.time)
    kit.same(list(await kit.store.workers()), [], "the workers after a long time", "purge")
    await kit.store.heartbeat(Heartbeat("gone", 15.0))
    kit.same([it.worker for it in await kit.store.workers()], ["gone"], "the workers")
