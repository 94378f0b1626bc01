"""What must be true at the end of a schedule, and of each input of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.contract.store.explorer.plans import TICK, tick_id
from mqcore.contract.store.workflows import TaskPlan, rows_of
from mqcore.tasks.model.changes import Add
from mqcore.tasks.model.nodes import Kind, Node, Policy, child_id, replacement_id
from mqcore.tasks.model.outcomes import Added
from mqcore.tasks.model.states import State
from mqcore.tasks.store.values import Failure, Value

if TYPE_CHECKING:
    from mqcore.contract.store.explorer.world import World

__all__ = ["check_all_ended", "check_end", "check_order"]

Rows = dict[str, Node]


def check_order(world: World, node: str, value: Value) -> None:
    """Fail unless a group's results are in the order of its members.

    Each result begins with the id of its task, which begins with the id of the member.
    """
    if isinstance(value, list):
        group = _group_of(world, node)
        for index, item in enumerate(value):
            check_order(world, child_id(group, index), item)
        return

    shown = value.node if isinstance(value, Failure) else (value or b"").decode()
    if value is not None and not shown.startswith(node):
        world.fail(f"the result of {node} in its place", value)


def _group_of(world: World, node: str) -> str:
    """Return the group whose results are the result of a node."""
    while world.nodes[node].kind is not Kind.GROUP:
        is_chain = world.nodes[node].kind is Kind.CHAIN
        last = child_id(node, world.nodes[node].size - 1)
        node = last if is_chain else replacement_id(node)
    return node


async def check_all_ended(world: World) -> Rows:
    """Fail unless every node of every workflow has ended. Return the rows."""
    ids = list(world.nodes)
    rows = {}

    for node, row in zip(ids, await world.store.nodes(ids), strict=True):
        if row is None or not row.has_ended:
            world.fail(f"{node} has ended", row and row.state)
        else:
            rows[node] = row
    return rows


async def check_end(world: World) -> None:
    """Fail unless the workflows ended as they should."""
    rows = await check_all_ended(world)
    for row in rows.values():
        if row.kind is Kind.TASK:
            _check_task(world, row)
        elif row.kind is Kind.CHAIN:
            _check_chain(world, row, _children(rows, row))
        elif row.kind is Kind.GROUP:
            _check_group(world, row, _children(rows, row))
        elif (below := rows[replacement_id(row.id)]).run == 0 and below.state is not row.state:
            world.fail(f"{row.id} ends as its replacement, {below.state}", row.state)

    for node in world.cancelled:
        if rows[node].state is State.SUCCEEDED and rows[node].kind in {Kind.GROUP, Kind.CHAIN}:
            world.fail(f"{node} does not succeed: its cancellation was accepted", "it did")

    for key, count in world.made.items():
        if count > 1 and not key.endswith(":members"):
            world.fail(f"the message {key} is made once", count)
    await _check_ticks(world)
    await _check_nothing_is_left(world)


async def _check_ticks(world: World) -> None:
    """Fail unless each instant of the schedule was sent once."""
    for schedule in await world.store.schedules():
        planned = float(schedule.definition) + TICK
        while schedule.next_at is not None and planned < schedule.next_at:
            if (count := world.ticks[tick_id(planned)]) != 1:
                world.fail(f"{tick_id(planned)} is sent once", count)
            planned += TICK


async def _check_nothing_is_left(world: World) -> None:
    if left := await world.store.outbox():
        world.fail("an empty outbox", [item.entry.key for item in left])

    if world.unique:
        probe = rows_of(TaskPlan(unique="key"), "probe")
        applied = await world.store.apply([Add(probe)])
        if applied.outcomes[0] != Added():
            world.fail("the unique key is free", applied.outcomes[0])


def _children(rows: Rows, parent: Node) -> list[Node]:
    return [rows[child_id(parent.id, index)] for index in range(parent.size)]


def _check_task(world: World, task: Node) -> None:
    ending = world.endings.get((task.id, task.run))
    if ending is not None and ending is not task.state:
        world.fail(f"{task.id} stays {ending} in run {task.run}", task.state)

    has_died = task.state in {State.FAILED, State.EXPIRED}
    if has_died and (task.id, task.run) not in world.dead_lettered:
        world.fail(f"a dead letter of {task.id}, run {task.run}: it has {task.state}", "none")


def _check_chain(world: World, chain: Node, steps: list[Node]) -> None:
    wrong = [
        step.id for step in steps[: max(chain.done - 1, 0)] if step.state is not State.SUCCEEDED
    ]
    wrong += [step.id for step in steps[chain.done :] if step.state is not State.SKIPPED]
    if wrong:
        world.fail(f"steps of {chain.id} succeed up to its end and are skipped after it", wrong)
    if chain.state is State.SUCCEEDED and chain.done != chain.size:
        world.fail(f"all steps of {chain.id} have ended", chain.done)


def _check_group(world: World, group: Node, members: list[Node]) -> None:
    counted = [member for member in members if member.is_counted]
    others = {member.state for member in members if not member.is_counted}
    bad = [member for member in counted if member.state is not State.SUCCEEDED]

    if group.done != len(counted) or others - {State.SKIPPED}:
        world.fail(f"{group.id} counts each member once: {len(counted)}, and {others}", group.done)
    if not any(member.run for member in members) and group.bad != len(bad):
        world.fail(f"{group.id} counts its failures: {len(bad)}", group.bad)

    if group.state is State.SUCCEEDED and group.policy is not Policy.COLLECT and bad:
        world.fail(f"{group.id} fails with its members {[node.id for node in bad]}", group.state)
    if group.state is State.FAILED and not group.bad:
        world.fail(f"{group.id} fails only when a member has failed", group.state)
