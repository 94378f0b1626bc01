"""What is to be done, as data: a task, a group or a chain, and the rows that each becomes. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mqcore.errors import ConfigurationError
from mqcore.tasks.model.nodes import (
    FOLLOWING,
    ON_DONE,
    ON_ERROR,
    Kind,
    Node,
    Policy,
    child_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "STEP",
    "ChainPlan",
    "FollowedPlan",
    "GroupPlan",
    "Plan",
    "TaskPlan",
    "check_depth",
    "followed",
    "rows_of",
]

STEP = ">"
"""Begins the payload of a row that takes the result of the step before as its first argument."""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One task with its arguments as JSON."""

    name: str
    queue: str
    arguments: str
    is_step: bool = False
    priority: int | None = None
    delay: float = 0.0
    ttl: float | None = None
    unique: str = ""

    def node(self, id: str, parent: str, index: int) -> Node:
        """Return its row."""
        return Node(
            id=id,
            parent=parent,
            index=index,
            name=self.name,
            queue=self.queue,
            payload=f"{STEP if self.is_step else ''}{self.arguments}".encode(),
            priority=self.priority,
            delay=self.delay,
            ttl=self.ttl,
            unique="" if parent else self.unique,
        )


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Members that run beside each other."""

    members: Sequence[Plan]
    policy: Policy = Policy.FAIL

    def node(self, id: str, parent: str, index: int) -> Node:
        """Return its own row, without its members."""
        return Node(
            id=id,
            kind=Kind.GROUP,
            parent=parent,
            index=index,
            size=len(self.members),
            policy=self.policy,
        )


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """Steps, each of which takes the result of the one before."""

    steps: Sequence[Plan] = field(default_factory=tuple)

    def node(self, id: str, parent: str, index: int) -> Node:
        """Return its own row, without its steps."""
        return Node(id=id, kind=Kind.CHAIN, parent=parent, index=index, size=len(self.steps))


@dataclass(frozen=True, slots=True)
class FollowedPlan:
    """A plan with the calls that are sent when it has failed, and when it has ended."""

    plan: Plan
    on_error: Plan | None = None
    on_done: Plan | None = None

    def node(self, id: str, parent: str, index: int) -> Node:
        """Return the row of the plan itself."""
        node = self.plan.node(id, parent, index)
        node.follows = sum(kind for kind, _ in self.calls)
        return node

    @property
    def calls(self) -> Iterator[tuple[int, Plan]]:
        """The calls that follow, and their kinds."""
        if self.on_error is not None:
            yield ON_ERROR, self.on_error
        if self.on_done is not None:
            yield ON_DONE, self.on_done


Plan = TaskPlan | GroupPlan | ChainPlan | FollowedPlan


def followed(plan: Plan, *, on_error: Plan | None = None, on_done: Plan | None = None) -> Plan:
    """Return a plan with further calls that follow its end. They run beside earlier ones."""
    if not isinstance(plan, FollowedPlan):
        return FollowedPlan(plan, on_error, on_done)
    return FollowedPlan(plan.plan, _beside(plan.on_error, on_error), _beside(plan.on_done, on_done))


def _beside(first: Plan | None, second: Plan | None) -> Plan | None:
    return GroupPlan((first, second)) if first and second else first or second


_LONGEST = 110
"""Characters of a row's id, which is the beginning of its message's id."""


def check_depth(rows: Sequence[Node]) -> None:
    """Raise `ConfigurationError` for a workflow that nests too deep, or replaces itself for long.

    The id of a row has the place on each level above it.
    """
    for node in rows:
        if len(node.id) > _LONGEST:
            raise ConfigurationError(
                f"a workflow nests too deep: the id {node.id[:40]}… has {len(node.id)} characters, "
                f"and at most {_LONGEST} are possible. A task may be replaced about 70 times, one "
                "replacement by the next"
            )


@dataclass(slots=True)
class Rows:
    """The rows of a workflow: those that are inserted at once, and the members of large groups."""

    first: list[Node]
    batches: list[tuple[str, list[Node], bool]]
    """Group, rows, and whether they are its last ones."""

    @property
    def parts(self) -> Iterator[Sequence[Node]]:
        """All rows, piece by piece."""
        yield self.first
        for _, batch, _ in self.batches:
            yield batch


def rows_of(plan: Plan, id: str, parent: str = "", index: int = 0, *, at_once: int = 1_000) -> Rows:
    """Return the rows of a plan, the root first.

    The members of a group with more than `at_once` of them come in batches.
    """
    rows = Rows([], [])
    for node in _walk(plan, id, parent, index, rows, at_once):
        rows.first.append(node)
    return rows


def _walk(
    plan: Plan,
    id: str,
    parent: str,
    index: int,
    rows: Rows,
    at_once: int,
) -> Iterator[Node]:
    node = plan.node(id, parent, index)
    yield node
    if isinstance(plan, FollowedPlan):
        for kind, call in plan.calls:
            place = FOLLOWING[kind]
            yield from _walk(call, child_id(id, place), id, place, rows, at_once)
        plan = plan.plan
    if not isinstance(plan, (GroupPlan, ChainPlan)):
        return

    children = plan.steps if isinstance(plan, ChainPlan) else plan.members
    if isinstance(plan, ChainPlan) or len(children) <= at_once:
        for place, child in enumerate(children):
            yield from _walk(child, child_id(id, place), id, place, rows, at_once)
        return

    node.size, node.is_sealed = 0, False
    for start in range(0, len(children), at_once):
        batch: list[Node] = []
        stop = start + at_once
        rows.batches.append((id, batch, stop >= len(children)))  # before those of a group in it
        for place, child in enumerate(children[start:stop], start):
            batch += _walk(child, child_id(id, place), id, place, rows, at_once)
