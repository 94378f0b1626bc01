"""`Task` and `AsyncTask`: a function that may be called here, or sent to a worker."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
)

from mqcore.clock import seconds
from mqcore.errors import ConfigurationError, ValidationError
from mqcore.messages.message import check_priority
from mqcore.queue import check_queue_name
from mqcore.rules.checks import check_count, check_flag, check_kind, check_options, check_seconds
from mqcore.rules.profile import Profile
from mqcore.rules.retry import RetryPolicy
from mqcore.tasks.calls import Call, Partial, Step, group
from mqcore.tasks.context import TaskContext
from mqcore.tasks.limits import Rate, Slots, check_arguments, check_limits
from mqcore.tasks.parameters import Parameters
from mqcore.tasks.plans import TaskPlan

if TYPE_CHECKING:
    from datetime import timedelta

    from mqcore.rules.profile import Mode
    from mqcore.tasks.api import Tasks
    from mqcore.tasks.job import Job

__all__ = ["AsyncTask", "BaseTask", "SendOptions", "Task", "TaskOptions", "Unique"]

P = ParamSpec("P")
P2 = ParamSpec("P2")
A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")
_POLICIES = ("existing", "reject", "replace", "postpone")


@dataclass(frozen=True, slots=True)
class Unique:
    """At most one open task with the same key (T9).

    `by` names the parameters that make the key; all of them by default. `policy` says what a second
    send does: `"existing"` returns the job that is open, `"reject"` raises `DuplicateTask`,
    `"replace"` cancels the open task, waits until it has ended, and sends the new one, and
    `"postpone"` stores the new one, which starts when the open ones before it have ended.
    """

    by: tuple[str, ...] | None = None
    policy: Literal["existing", "reject", "replace", "postpone"] = "existing"

    def __post_init__(self) -> None:
        if isinstance(self.by, str):
            raise ConfigurationError(f"Unique: by= takes a tuple of names: by=({self.by!r},)")
        if self.policy not in _POLICIES:
            raise ConfigurationError(
                f"Unique: policy={self.policy!r:.50} is not known; there are {', '.join(_POLICIES)}"
            )


class TaskOptions(TypedDict, total=False):
    """The options of `@tasks.task(...)`. All may be left out.

    `name`: the registered name, `module.function` by default. `queue`: the name of its queue;
    by default the routes decide. `retry`: the policy (G10). `timeout`: seconds for one run, 300,
    None for no limit. `soft_timeout`: seconds after which `SoftTimeout` is raised inside the task;
    a blocking task in a thread sees `ctx.timed_out`. `priority`, `expires`: of its messages.
    `unique`: at most one open task with the same key. `rate`: how often it starts, over all
    workers. `slots`: how many of it run at once, over all workers. `process`: run a blocking task
    in a process of its own, which can be killed.
    """

    name: str
    queue: str
    retry: RetryPolicy
    timeout: float | timedelta | None
    soft_timeout: float | timedelta
    priority: int
    expires: float | timedelta
    unique: Unique
    rate: Rate
    slots: Slots
    process: bool


class SendOptions(TypedDict, total=False):
    """The options of `Task.using(...)`, for what is sent with it. All may be left out.

    `queue`: its name. `priority`: 0 to 10 (G8). `delay`: seconds before it may start
    (G7). `expires`: seconds after which it does not start any more (G6).
    """

    queue: str
    priority: int
    delay: float | timedelta
    expires: float | timedelta


class BaseTask(Generic[P, R]):
    """What a blocking and an async task have in common."""

    def __init__(self, tasks: Tasks, function: Callable[..., Any], options: TaskOptions) -> None:
        """Made by `@tasks.task(...)`."""
        self.tasks = tasks
        self.function = function
        self.name = options.get("name") or _name_of(function, tasks.name)
        where = f"task {self.name!r}"
        _check(options, function, where)

        self.retry = options.get("retry") or RetryPolicy()
        timeout = options.get("timeout", 300.0)
        self.timeout = None if timeout is None else seconds(timeout)
        soft = options.get("soft_timeout")
        self.soft_timeout = None if soft is None else seconds(soft)
        self.unique = options.get("unique")
        self.mode: Mode = "process" if options.get("process") else self._mode()
        self.parameters = Parameters(function, where)
        self.rate = self.own_rate = options.get("rate")
        """How often it starts; `own_rate` is that of the code, which a command may change."""
        self.slots = options.get("slots")
        self._check_keys(where)
        self._options: SendOptions = {}
        if "queue" in options:
            self._options["queue"] = options["queue"]
        if "priority" in options:
            self._options["priority"] = options["priority"]
        if "expires" in options:
            self._options["expires"] = options["expires"]
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def _check_keys(self, where: str) -> None:
        parameters = self.parameters.signature.parameters
        keyed = {"unique": self.unique, "rate": self.rate, "slots": self.slots}
        for option, value in keyed.items():
            names = () if value is None else value.by or ()
            if not set(names) <= set(parameters):
                raise ConfigurationError(
                    f"{where}: {option}= names {', '.join(names)}; its parameters are "
                    f"{', '.join(parameters)}"
                )

    @property
    def queue(self) -> str | None:
        """The queue that it names; None where the routes decide."""
        return self._options.get("queue")

    @cached_property
    def profile(self) -> Profile:
        """How a worker runs it."""
        return Profile(self.mode, self.timeout, self.retry)

    def _mode(self) -> Mode:
        return "async" if inspect.iscoroutinefunction(self.function) else "thread"

    def using(self, **options: Unpack[SendOptions]) -> Self:
        """Return the task with other options for what is sent with it."""
        where = f"task {self.name!r}: using"
        check_options(options, SendOptions, where)
        for name in ("delay", "expires"):
            if name in options:
                check_seconds(name, options[name], where, zero=name == "delay")
        _check_where(options, where)
        other = copy.copy(self)
        other._options = self._options | options  # noqa: SLF001 - a copy of this object
        return other

    async def send(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Send the task to a worker, and return its job (T2).

        Raises `ValidationError` for wrong arguments, and `DuplicateTask` where its `unique` says
        so.
        """
        return await self.s(*args, **kwargs).send()

    def s(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return a call of the task, for a workflow. Raises `ValidationError`."""
        return Call(self.tasks, self.plan(args, kwargs))

    def partial(self, *args: Any, **kwargs: Any) -> Partial[R]:
        """Return the task with some of its arguments."""
        return Partial(self, args, kwargs)

    def starmap(self, items: Iterable[tuple[Any, ...]]) -> Call[list[R]]:
        """Return one task that runs the function with each tuple of arguments."""
        encoded = [self.parameters.encode(item, {}) for item in items]
        return Call(self.tasks, self._plan(f"[{','.join(encoded)}]"))

    def chunks(self, items: Iterable[tuple[Any, ...]], size: int) -> Call[list[list[R]]]:
        """Return a group of tasks, each of which runs the function with `size` of the tuples."""
        check_count("size", size, f"task {self.name!r}: chunks")
        rest = list(items)
        parts = [self.starmap(rest[at : at + size]) for at in range(0, len(rest), size)]
        return group(parts, tasks=self.tasks)

    def plan(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_step: bool = False
    ) -> TaskPlan:
        """Return what to do as data. Raises `ValidationError` for wrong arguments."""
        return self._plan(self.parameters.encode(args, kwargs, is_step=is_step), is_step=is_step)

    def completed(self, step: TaskPlan, argument: object) -> TaskPlan:
        """Return the plan of a step with its first argument. Raises `ValidationError`."""
        arguments = self.parameters.completed(step.arguments, argument)
        unique = self._key(arguments) if self.unique else ""
        return replace(step, arguments=arguments, is_step=False, unique=unique)

    def _plan(self, arguments: str, *, is_step: bool = False) -> TaskPlan:
        options = self._options
        delay, ttl = seconds(options.get("delay", 0.0)), options.get("expires")
        ttl = None if ttl is None else seconds(ttl)
        if ttl is not None and delay >= ttl:
            raise ValidationError(
                f"task {self.name!r}: delay={delay:g} ends after expires={ttl:g}; it could never "
                "start"
            )
        check_arguments(self, arguments, is_step=is_step)

        queue = options.get("queue")
        return TaskPlan(
            self.name,
            self.tasks.route(self.name) if queue is None else queue,
            arguments,
            is_step,
            options.get("priority"),
            delay,
            ttl,
            self._key(arguments) if self.unique and arguments[0] == "{" else "",
        )

    def _key(self, arguments: str) -> str:
        """Return the unique key: a hash of the chosen arguments in canonical JSON."""
        values = json.loads(arguments)
        by = self.unique.by if self.unique else None
        chosen = values if by is None else {name: values.get(name) for name in by}
        text = json.dumps(chosen, sort_keys=True, separators=(",", ":"))
        return f"{self.name}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _inline(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (TaskContext.inline(self.name), *args) if self.parameters.takes_context else args


class Task(BaseTask[P, R]):
    """A blocking function. It runs in a thread of the worker, or with `process=True` in a process.

    Calling it runs it here.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here, without a worker."""
        result: R = self.function(*self._inline(args), **kwargs)
        return result

    def map(self: Callable[[A], T], items: Iterable[A]) -> Call[list[T]]:
        """Return one task that runs the function with each item, one after the other."""
        task = cast("BaseTask[..., T]", self)
        return task.starmap((item,) for item in items)

    def step(
        self: Callable[Concatenate[A, P2], T], *rest: P2.args, **kwargs: P2.kwargs
    ) -> Step[A, T]:
        """Return a step that takes the result before it as its first argument."""
        task = cast("BaseTask[Any, T]", self)
        return Step(task.tasks, task.plan(rest, kwargs, is_step=True))


class AsyncTask(BaseTask[P, R]):
    """An async function. Awaiting a call runs it here."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here, without a worker."""
        result: R = await self.function(*self._inline(args), **kwargs)
        return result

    def map(self: Callable[[A], Coroutine[Any, Any, T]], items: Iterable[A]) -> Call[list[T]]:
        """Return one task that runs the function with each item, one after the other."""
        task = cast("BaseTask[..., T]", self)
        return task.starmap((item,) for item in items)

    def step(
        self: Callable[Concatenate[A, P2], Coroutine[Any, Any, T]],
        *rest: P2.args,
        **kwargs: P2.kwargs,
    ) -> Step[A, T]:
        """Return a step that takes the result before it as its first argument."""
        task = cast("BaseTask[Any, T]", self)
        return Step(task.tasks, task.plan(rest, kwargs, is_step=True))


def _name_of(function: Callable[..., Any], app: str) -> str:
    """Return the name of a task: that of the program's own functions begins with that of Tasks."""
    module = function.__module__
    program = app if module in {"__main__", "__mp_main__"} else module
    return f"{program}.{function.__qualname__}"


def _check(options: TaskOptions, function: Callable[..., Any], where: str) -> None:
    check_options(options, TaskOptions, where)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{where}: a generator cannot be a task. Return the result")
    if "retry" in options:
        check_kind("retry", options["retry"], RetryPolicy, where, "a RetryPolicy(...)")
    if "unique" in options:
        check_kind("unique", options["unique"], Unique, where, "Unique(...)")
    check_limits(options, where)
    if options.get("timeout") is not None:
        check_seconds("timeout", options["timeout"], where)
    for name in ("soft_timeout", "expires"):
        if name in options:
            check_seconds(name, options[name], where)
    _check_where(options, where)
    if check_flag("process", options.get("process", False), where) and inspect.iscoroutinefunction(
        function
    ):
        raise ConfigurationError(f"{where}: process=True is for blocking functions")


def _check_where(options: TaskOptions | SendOptions, where: str) -> None:
    if "priority" in options:
        check_priority(options["priority"])
    if "queue" in options:
        check_queue_name(options["queue"], f"{where}: queue")
