"""The call of a schedule as text, and the rows that it becomes. The text is JSON, never code."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from mqcore.tasks.model.nodes import Node, Policy
from mqcore.tasks.plans import (
    ChainPlan,
    FollowedPlan,
    GroupPlan,
    Plan,
    TaskPlan,
    followed,
    rows_of,
)
from mqcore.tasks.schedules.errors import InvalidSchedule

__all__ = ["plan_of", "rows_of_call", "text_of"]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Task(_Stored):
    kind: Literal["task"] = "task"
    name: str
    queue: str
    arguments: str
    is_step: bool = False
    priority: int | None = None
    delay: float = 0.0
    ttl: float | None = None
    unique: str = ""


class _Group(_Stored):
    kind: Literal["group"] = "group"
    members: tuple[_Any, ...]
    policy: Policy


class _Chain(_Stored):
    kind: Literal["chain"] = "chain"
    steps: tuple[_Any, ...]


class _Followed(_Stored):
    kind: Literal["followed"] = "followed"
    plan: _Any
    on_error: _Any | None = None
    on_done: _Any | None = None


_Any = Annotated[_Task | _Group | _Chain | _Followed, Field(discriminator="kind")]
_Group.model_rebuild()
_Chain.model_rebuild()
_Followed.model_rebuild()
_adapter: TypeAdapter[Any] = TypeAdapter(_Any)


def text_of(plan: Plan, schedule: str) -> str:
    """Return a plan as text.

    Raises `InvalidSchedule` for a group that is sent in batches: a schedule sends its task in one
    transaction.
    """
    if rows_of(plan, "root").batches:
        raise InvalidSchedule(
            f"schedule {schedule!r}: it sends a group of more than 1,000 members, and a schedule "
            "sends its task in one transaction. Schedule a task that sends the group"
        )
    return str(_adapter.dump_json(_stored(plan), exclude_defaults=False).decode())


def _stored(plan: Plan) -> Any:
    if isinstance(plan, TaskPlan):
        return _Task(**{name: getattr(plan, name) for name in TaskPlan.__dataclass_fields__})
    if isinstance(plan, FollowedPlan):
        calls = [None if it is None else _stored(it) for it in (plan.on_error, plan.on_done)]
        return _Followed(plan=_stored(plan.plan), on_error=calls[0], on_done=calls[1])
    if isinstance(plan, GroupPlan):
        return _Group(members=tuple(map(_stored, plan.members)), policy=plan.policy)
    return _Chain(steps=tuple(map(_stored, plan.steps)))


@lru_cache(maxsize=10_000)
def plan_of(text: str) -> Plan:
    """Return the plan of a text. Raises `InvalidSchedule` for one that cannot be read."""
    try:
        return _plan(_adapter.validate_json(text))
    except ValueError as error:
        raise InvalidSchedule(
            f"the task of a schedule cannot be read: {error}. A newer version of mqcore, or "
            "another program, has written it: upgrade mqcore here"
        ) from error


def _plan(stored: Any) -> Plan:
    if isinstance(stored, _Task):
        return TaskPlan(**stored.model_dump(exclude={"kind"}))
    if isinstance(stored, _Followed):
        calls = [None if it is None else _plan(it) for it in (stored.on_error, stored.on_done)]
        return followed(_plan(stored.plan), on_error=calls[0], on_done=calls[1])
    if isinstance(stored, _Group):
        return GroupPlan(tuple(map(_plan, stored.members)), stored.policy)
    return ChainPlan(tuple(map(_plan, stored.steps)))


def rows_of_call(text: str, root: str) -> Sequence[Node]:
    """Return the rows of a call, the root first, under this id."""
    return rows_of(plan_of(text), root).first
