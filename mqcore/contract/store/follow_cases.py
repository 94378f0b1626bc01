"""The cases of calls that follow the end of a node: `on_error` and `on_done`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.contract.store.kit import TOKEN
from mqcore.contract.store.workflows import ChainPlan, GroupPlan, Plan, TaskPlan, rows_of
from mqcore.tasks.model.changes import Add, Cancel, End, Replace
from mqcore.tasks.model.nodes import FOLLOWING, Node, Policy, child_id, replacement_id
from mqcore.tasks.model.states import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.contract.store.kit import StoreKit

__all__ = ["FOLLOW_CASES"]

FOLLOW_CASES: list[Callable[[StoreKit], Awaitable[None]]] = []

_TASK = TaskPlan()
_BOTH = sum(FOLLOWING)


def case(function: Callable[[StoreKit], Awaitable[None]]) -> Callable[[StoreKit], Awaitable[None]]:
    """Register a case."""
    FOLLOW_CASES.append(function)
    return function


async def _add(kit: StoreKit, plan: Plan, *nodes: str, root: str = "r") -> None:
    """Add a workflow, in which both calls follow these nodes."""
    rows = rows_of(plan, root)
    for row in [row for row in rows if row.id in nodes]:
        row.follows = _BOTH
        for place in FOLLOWING.values():
            rows += rows_of(_TASK, child_id(row.id, place), row.id, place)
    await kit.do(Add(rows))


async def _end(kit: StoreKit, task: str, state: State) -> list[str]:
    """End a task; return the keys of what that has released."""
    await kit.begin(task)
    await kit.do(End(task, 0, TOKEN, state, None, "why"))
    return kit.keys


@case
async def a_failure_sends_both_calls(kit: StoreKit) -> None:
    """In the transaction of the end. They take the node as their input, and run like any task."""
    for root, state in (("a", State.FAILED), ("b", State.EXPIRED)):
        await _add(kit, _TASK, root, root=root)
        kit.same(await _end(kit, root, state), [f"{root}.-1:0", f"{root}.-2:0"], "the keys")
        row = await kit.node(f"{root}.-1")
        kit.same((row.state, row.input), (State.QUEUED, root), "the row of a call")
        await kit.run(f"{root}.-1", f"{root}.-2")
        kit.same(await kit.states(root), [state.value], "the state of the task after that")


@case
async def a_success_sends_only_the_one(kit: StoreKit) -> None:
    """The other one is skipped; so are both of a step whose turn never comes."""
    await _add(kit, _TASK, "r")
    kit.same(await _end(kit, "r", State.SUCCEEDED), ["r.-2:0"], "the keys")
    kit.same(await kit.states("r.-1", "r.-2"), ["skipped", "queued"], "the states")

    await _add(kit, ChainPlan([_TASK, _TASK]), "c.1", root="c")
    kit.same(await _end(kit, "c.0", State.FAILED), [], "the keys of a chain that fails before")
    kit.same(await kit.states("c.1.-1", "c.1.-2"), ["skipped", "skipped"], "the states")


@case
async def each_call_is_sent_once(kit: StoreKit) -> None:
    """A task that is redriven ends again, and that sends nothing."""
    await _add(kit, _TASK, "r")
    await _end(kit, "r", State.FAILED)
    await kit.run("r.-1")
    await kit.run("r", run=1)
    kit.same(kit.keys, [], "the keys of the second end")
    kit.same(await kit.states("r", "r.-1", "r.-2"), ["succeeded", "succeeded", "queued"], "states")


@case
async def a_call_may_end_while_its_node_runs_again(kit: StoreKit) -> None:
    """It is not a member of the node: its end changes nothing there."""
    await _add(kit, _TASK, "r")
    await _end(kit, "r", State.FAILED)
    await kit.begin("r", run=1)
    await _end(kit, "r.-2", State.FAILED)
    kit.same(await kit.states("r"), ["running"], "the state of the redriven task")


@case
async def workflows_have_calls_too(kit: StoreKit) -> None:
    """A group and a chain, with or without success, and a task that was replaced."""
    plan = ChainPlan([GroupPlan([_TASK, _TASK], Policy.FAIL), _TASK])
    await _add(kit, plan, "r", "r.0", "r.0.1")
    kit.same(await _end(kit, "r.0.0", State.SUCCEEDED), [], "the keys of the first member")
    keys = await _end(kit, "r.0.1", State.FAILED)
    expected = [f"{node}.{place}:0" for node in ("r.0.1", "r.0", "r") for place in (-1, -2)]
    kit.same(sorted(keys), sorted(expected), "the keys of the last one")

    await _add(kit, _TASK, "s", root="s")
    await kit.begin("s")
    below = Node(id=replacement_id("s"), parent="s", name="ok", queue="work")
    await kit.do(Replace("s", 0, TOKEN, [below]))
    kit.same(kit.keys, ["s~:0"], "the keys of a replacement")
    kit.same(await _end(kit, "s~", State.SUCCEEDED), ["s.-2:0"], "the keys of its end")


@case
async def a_cancellation_ends_and_does_not_reach_the_call(kit: StoreKit) -> None:
    """What follows the end of a cancelled workflow runs."""
    await _add(kit, ChainPlan([_TASK, _TASK]), "r", "r.0")
    await kit.do(Cancel("r", "not needed"))
    kit.same(kit.keys, ["r.-2:0", "r.0.-2:0"], "the keys of the cancellation")
    kit.same(await kit.states("r.-1", "r.0.-1"), ["skipped", "skipped"], "the calls on an error")
    await kit.run("r.-2", "r.0.-2")


@case
async def a_call_is_part_of_its_tree(kit: StoreKit) -> None:
    """A tree in which such a call is open is not removed."""
    await _add(kit, _TASK, "r")
    await _end(kit, "r", State.FAILED)
    kit.clock.time += 100
    kit.same(await kit.store.purge(kit.clock.time), 0, "what is removed before", "purge")
    await kit.run("r.-1", "r.-2")
    kit.clock.time += 100
    kit.same(await kit.store.purge(kit.clock.time), 1, "what is removed after it", "purge")
    kit.same(await kit.store.nodes(["r", "r.-1"]), [None, None], "the rows", "nodes")
