"""Calls and steps: what an application puts together before it sends it.

add.s(2, 3)                              a Call[int]: complete
mul.step(8)                              a Step[int, int]: waits for the result before it
mul.step(8).s(4)                         a Call[int]: mul(4, 8)
add.s(2, 3) | mul.step(8)                a chain
group(add.s(i, i) for i in range(10))    a group, with the list of results
group(…) | xsum.step()                   a chord: its body runs once, with that list
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

from mqcore.errors import ConfigurationError
from mqcore.rules.checks import described
from mqcore.tasks.model.nodes import Policy
from mqcore.tasks.plans import ChainPlan, FollowedPlan, GroupPlan, Plan, TaskPlan, followed

if TYPE_CHECKING:
    from mqcore.tasks.api import Tasks
    from mqcore.tasks.job import Job
    from mqcore.tasks.store.values import Failure
    from mqcore.tasks.task import BaseTask

__all__ = ["Call", "Partial", "Step", "chain", "group"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
T = TypeVar("T")
A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
_POLICIES = tuple(policy.value for policy in Policy)


class Call(Generic[R_co]):
    """A task, group or chain with all its arguments. It is data: nothing has been sent."""

    def __init__(self, tasks: Tasks, plan: Plan) -> None:
        """Made by `Task.s`, `group` and `|`."""
        self.tasks = tasks
        self.plan = plan

    def __repr__(self) -> str:
        return f"Call({shown(self.plan)})"

    @overload
    def __or__(self, other: Step[R_co, T]) -> Call[T]: ...
    @overload
    def __or__(self, other: Call[T]) -> Call[T]: ...
    def __or__(self, other: Any) -> Call[Any]:
        """Continue with another step, which takes the result, or with a call, which ignores it."""
        if not isinstance(other, (Call, Step)):
            return NotImplemented
        return Call(self.tasks, _chained(self.plan, other.plan))

    def on_error(self, then: Step[Failure, Any] | Call[Any]) -> Call[R_co]:
        """Return the call with another one that is sent when it has failed or expired.

        A step gets a `Failure` with the reason. It is stored with the end, so it is sent exactly
        once; it is not part of the result, and a cancellation of the workflow does not reach it.
        """
        return Call(self.tasks, followed(self.plan, on_error=_followed_by(then)))

    def on_done(self, then: Step[R_co | Failure, Any] | Call[Any]) -> Call[R_co]:
        """Return the call with another one that is sent when it has ended, in whatever way.

        A step gets the result, or a `Failure` where there is none: it failed, expired, or was
        cancelled.
        """
        return Call(self.tasks, followed(self.plan, on_done=_followed_by(then)))

    async def send(self) -> Job[R_co]:
        """Store the workflow in one transaction, then publish its first messages (T2).

        A group of more than 1,000 members is sent in batches of that many. A call of `send` that is
        cancelled may have sent the task.
        """
        job: Job[R_co] = await self.tasks.send(self)
        return job


class Step(Generic[A_contra, R_co]):
    """A task, group or chain whose first argument is the result of the step before."""

    def __init__(self, tasks: Tasks, plan: Plan) -> None:
        """Made by `Task.step`, `group` and `|`."""
        self.tasks = tasks
        self.plan = plan

    def __repr__(self) -> str:
        return f"Step({shown(self.plan)})"

    @overload
    def __or__(self, other: Step[R_co, T]) -> Step[A_contra, T]: ...
    @overload
    def __or__(self, other: Call[T]) -> Step[A_contra, T]: ...
    def __or__(self, other: Any) -> Step[A_contra, Any]:
        """Continue with another step, or with a call, which ignores the result."""
        if not isinstance(other, (Call, Step)):
            return NotImplemented
        return Step(self.tasks, _chained(self.plan, other.plan))

    def on_error(self, then: Step[Failure, Any] | Call[Any]) -> Step[A_contra, R_co]:
        """As `Call.on_error`."""
        return Step(self.tasks, followed(self.plan, on_error=_followed_by(then)))

    def on_done(self, then: Step[R_co | Failure, Any] | Call[Any]) -> Step[A_contra, R_co]:
        """As `Call.on_done`."""
        return Step(self.tasks, followed(self.plan, on_done=_followed_by(then)))

    def s(self, argument: A_contra) -> Call[R_co]:
        """Return a call: the step with its first argument. Raises `ValidationError`."""
        return Call(self.tasks, _completed(self.tasks, self.plan, argument))


class Partial(Generic[R_co]):
    """A task with some of its arguments: `add.partial(y=2)`. Types are checked when it is used."""

    def __init__(
        self, task: BaseTask[Any, R_co], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Made by `Task.partial`."""
        self._task, self._args, self._kwargs = task, args, dict(kwargs)

    def partial(self, *args: Any, **kwargs: Any) -> Partial[R_co]:
        """Return it with further arguments. Of two keyword arguments the later one wins."""
        return Partial(self._task, (*self._args, *args), self._kwargs | kwargs)

    def s(self, *args: Any, **kwargs: Any) -> Call[R_co]:
        """Return a call with the rest of the arguments. Raises `ValidationError`."""
        return self._task.s(*self._args, *args, **(self._kwargs | kwargs))

    def step(self, *args: Any, **kwargs: Any) -> Step[Any, R_co]:
        """Return a step that takes the result before it, then the other arguments."""
        plan = self._task.plan((*self._args, *args), self._kwargs | kwargs, is_step=True)
        return Step(self._task.tasks, plan)


@overload
def group(
    *members: Call[T], policy: Literal["fail", "cancel"] = ..., tasks: Tasks | None = ...
) -> Call[list[T]]: ...
@overload
def group(
    *members: Call[T], policy: Literal["collect"], tasks: Tasks | None = ...
) -> Call[list[T | Failure]]: ...
@overload
def group(
    members: Iterable[Call[T]],
    /,
    *,
    policy: Literal["fail", "cancel"] = ...,
    tasks: Tasks | None = ...,
) -> Call[list[T]]: ...
@overload
def group(
    members: Iterable[Call[T]], /, *, policy: Literal["collect"], tasks: Tasks | None = ...
) -> Call[list[T | Failure]]: ...
@overload
def group(
    *members: Step[A, T], policy: Literal["fail", "cancel"] = ..., tasks: Tasks | None = ...
) -> Step[A, list[T]]: ...
@overload
def group(
    *members: Step[A, T], policy: Literal["collect"], tasks: Tasks | None = ...
) -> Step[A, list[T | Failure]]: ...
@overload
def group(
    members: Iterable[Step[A, T]],
    /,
    *,
    policy: Literal["fail", "cancel"] = ...,
    tasks: Tasks | None = ...,
) -> Step[A, list[T]]: ...
@overload
def group(
    members: Iterable[Step[A, T]], /, *, policy: Literal["collect"], tasks: Tasks | None = ...
) -> Step[A, list[T | Failure]]: ...
def group(*members: Any, policy: str = "fail", tasks: Tasks | None = None) -> Any:
    """Return a group of calls, or of steps that all take the same result.

    Its result is the list of the members' results, in their order. `policy` says what happens when
    a member does not succeed: `"fail"`, the others go on and the group fails; `"cancel"`, the
    others are cancelled; `"collect"`, a `Failure` takes the place of the result. An empty group
    needs `tasks=`.
    """
    if len(members) == 1 and not isinstance(members[0], (Call, Step)):
        members = tuple(members[0])
    for member in members:
        if not isinstance(member, (Call, Step)):
            raise ConfigurationError(
                f"group takes calls such as add.s(1, 2), or steps, not {described(member)}"
            )
    if policy not in _POLICIES:
        raise ConfigurationError(
            f"group: policy={policy!r:.50} is not known; there are {', '.join(_POLICIES)}"
        )
    if tasks is None and not members:
        raise ConfigurationError("an empty group does not know where to go: group([], tasks=tasks)")

    plan = GroupPlan(tuple(member.plan for member in members), Policy(policy))
    kind = Step if any(isinstance(member, Step) for member in members) else Call
    return kind(tasks or members[0].tasks, plan)


@overload
def chain(first: Call[A], second: Step[A, T], /) -> Call[T]: ...
@overload
def chain(first: Call[A], second: Step[A, B], third: Step[B, T], /) -> Call[T]: ...
@overload
def chain(
    first: Call[A], second: Step[A, B], third: Step[B, C], fourth: Step[C, T], /
) -> Call[T]: ...
@overload
def chain(
    first: Call[Any],
    second: Step[Any, Any] | Call[Any],
    third: Step[Any, Any] | Call[Any],
    fourth: Step[Any, Any] | Call[Any],
    fifth: Step[Any, Any] | Call[Any],
    /,
    *further: Step[Any, Any] | Call[Any],
) -> Call[Any]: ...
def chain(first: Call[Any], /, *steps: Any) -> Call[Any]:
    """Return the chain of a call and the steps after it, as `first | second | …`.

    mypy checks up to four members; a call that ignores the result before it is joined by `|`.
    """
    for step in steps:
        first = first | step
    return first


def with_options(call: Call[Any], **options: Any) -> Call[Any]:
    """Return a call of one task with other fields of its plan."""
    return Call(call.tasks, replace(cast("TaskPlan", call.plan), **options))


def _followed_by(then: object) -> Plan:
    """Return the plan of a call that follows an end. Raises `ConfigurationError`."""
    if not isinstance(then, (Call, Step)):
        raise ConfigurationError(
            f"on_error and on_done take a step, which gets the outcome, or a call, not "
            f"{described(then)}"
        )
    plan: Plan = then.plan
    return plan


def _chained(first: Plan, second: Plan) -> ChainPlan:
    """Return one chain: a chain that is continued, or that continues, is not nested."""
    return ChainPlan((*_steps(first), *_steps(second)))


def _steps(plan: Plan) -> tuple[Plan, ...]:
    return tuple(plan.steps) if isinstance(plan, ChainPlan) else (plan,)


def _completed(tasks: Tasks, plan: Plan, argument: Any) -> Plan:
    """Return a plan whose steps that wait for the same result have it as their argument."""
    if isinstance(plan, GroupPlan):
        members = tuple(_completed(tasks, member, argument) for member in plan.members)
        return replace(plan, members=members)
    if isinstance(plan, ChainPlan):
        return replace(plan, steps=(_completed(tasks, plan.steps[0], argument), *plan.steps[1:]))
    if isinstance(plan, FollowedPlan):
        return replace(plan, plan=_completed(tasks, plan.plan, argument))
    task = tasks.find(plan.name)
    if task is None:
        raise ConfigurationError(
            f"tasks {tasks.name!r} have no task {plan.name!r}, so its step cannot be completed "
            "here. Call s() with the Tasks object that the step was made by"
        )
    return task.completed(plan, argument) if plan.is_step else plan


def shown(plan: Plan) -> str:
    """Return a plan without its arguments, which may be secrets."""
    if isinstance(plan, TaskPlan):
        return plan.name
    if isinstance(plan, FollowedPlan):
        return shown(plan.plan)
    if isinstance(plan, GroupPlan):
        return f"group of {len(plan.members)}"
    return " | ".join(shown(step) for step in plan.steps)
