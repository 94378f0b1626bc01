"""Workflows for tests: a plan of tasks, groups and chains, and the rows of a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mqcore.tasks.model.nodes import Kind, Node, Policy, child_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

__all__ = ["ChainPlan", "GroupPlan", "Plan", "TaskPlan", "drawn", "rows_of"]


@dataclass(frozen=True)
class TaskPlan:
    """A task; its name says what it does."""

    name: str = "ok"
    delay: float = 0.0
    unique: str = ""


@dataclass(frozen=True)
class GroupPlan:
    """Members that run beside each other."""

    members: Sequence[Plan] = field(default=())
    policy: Policy = Policy.FAIL
    is_sealed: bool = True


@dataclass(frozen=True)
class ChainPlan:
    """Steps that run one after the other."""

    steps: Sequence[Plan] = field(default=())


Plan = TaskPlan | GroupPlan | ChainPlan


def drawn(choose: Random, share: float) -> bool:
    """Return True in this share of all calls."""
    return choose.random() < share


def rows_of(plan: Plan, node: str, parent: str = "", index: int = 0) -> list[Node]:
    """Return the rows of a plan under this id, the root first."""
    return list(_rows(plan, node, parent, index))


def _rows(plan: Plan, node: str, parent: str, index: int) -> Iterator[Node]:
    match plan:
        case TaskPlan():
            yield Node(
                id=node,
                parent=parent,
                index=index,
                name=plan.name,
                queue="work",
                delay=plan.delay,
                unique=plan.unique,
            )
            return
        case GroupPlan():
            below = plan.members
            yield Node(
                id=node,
                kind=Kind.GROUP,
                parent=parent,
                index=index,
                size=len(below),
                policy=plan.policy,
                is_sealed=plan.is_sealed,
            )
        case ChainPlan():
            below = plan.steps
            yield Node(id=node, kind=Kind.CHAIN, parent=parent, index=index, size=len(below))

    for number, child in enumerate(below):
        yield from _rows(child, child_id(node, number), node, number)
