"""`Tasks`: the tasks of an application, with their routes and their store."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, Concatenate, Never, ParamSpec, TypeVar, Unpack, overload

from mqcore.app import AppPart
from mqcore.consuming.context import BlockingContext
from mqcore.errors import ConfigurationError, UnsupportedFeature
from mqcore.messages.message import new_id
from mqcore.queue import Queue, check_queue_name
from mqcore.rules.checks import check_duration, check_text, described
from mqcore.rules.profile import Profile
from mqcore.running.handlers import HandlerOptions, HandlerSpec
from mqcore.tasks.calls import Call
from mqcore.tasks.connected import HEADER, Connected
from mqcore.tasks.context import TaskContext
from mqcore.tasks.eager import eager
from mqcore.tasks.errors import DuplicateTask
from mqcore.tasks.job import Job
from mqcore.tasks.model.outcomes import Conflict
from mqcore.tasks.parameters import JSON, json_payload
from mqcore.tasks.plans import ChainPlan, FollowedPlan, GroupPlan, TaskPlan, rows_of
from mqcore.tasks.results import json_of
from mqcore.tasks.run import CallPayload, TaskCall, in_process, run_async, run_in_thread
from mqcore.tasks.runs import conclude
from mqcore.tasks.schedules.api import Scheduled, ScheduleOptions, TaskSchedules
from mqcore.tasks.store.values import Failure
from mqcore.tasks.task import AsyncTask, BaseTask, Task, TaskOptions

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from datetime import timedelta

    from mqcore.consuming.conclusions import Conclusion
    from mqcore.messages.codec import Payload
    from mqcore.messages.message import Message
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.plans import Plan
    from mqcore.tasks.schedules.triggers import Trigger
    from mqcore.tasks.store.values import Value

__all__ = ["Registration", "Tasks"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=BaseTask[Any, Any])
_CALL = CallPayload()
_ANY: Payload[Any] = json_payload(Any, "a result")


class Registration:
    """The decorator that `Tasks.task` returns."""

    def __init__(self, tasks: Tasks, options: TaskOptions) -> None:
        """Made by `Tasks.task`."""
        self._tasks, self._options = tasks, options

    @overload
    def __call__(  # type: ignore[overload-overlap]  # the context is found at run time too
        self, function: Callable[Concatenate[TaskContext, P], Coroutine[Any, Any, R]]
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # an async function is known by its coroutine
        self, function: Callable[P, Coroutine[Any, Any, R]]
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[TaskContext, P], R]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Task[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> BaseTask[Any, Any]:
        """Register the function. Raises `ConfigurationError` when it could not work."""
        return self._tasks.register(function, self._options)


class Tasks(AppPart):
    """The tasks of an application.

        tasks = Tasks("shop", store="sqlite:///shop.db")
        app = App("shop", tasks=[tasks])

    `store` is the URL of the database or Redis that holds the table of tasks; without it, that of
    the environment (`MQCORE_STORE`). With neither, tasks are sent and forgotten. `routes` gives
    queues by name or glob (`{"shop.media.*": "media"}`); the first that matches counts, and every
    other task goes to the queue `default`. `queues` are further ones that workers consume, for
    `using(queue=...)`. `include` names modules with tasks, which are imported when the app connects
    or a worker starts. `result_ttl` is how long an ended task is kept, a day by default.
    `schedules` are tasks that are sent by themselves (`{"nightly": Scheduled("shop.report", cron("0
    2 * * *"))}`).
    """

    def __init__(
        self,
        name: str,
        *,
        store: str | None = None,
        routes: Mapping[str, str] | None = None,
        default: str = "default",
        queues: Sequence[str] = (),
        include: Sequence[str] = (),
        result_ttl: str | float | timedelta = 86_400.0,
        schedules: Mapping[str, Scheduled] | None = None,
    ) -> None:
        """Describe the tasks. There is no I/O. Raises `ConfigurationError`."""
        self.name = check_text("name", name, "Tasks(...)")
        where = f"tasks {name!r}"
        store = os.environ.get("MQCORE_STORE") if store is None else store
        if store is not None and "://" not in check_text("store", store, where):
            raise ConfigurationError(
                f"{where}: store= (or MQCORE_STORE) is a URL, for instance sqlite:///tasks.db"
            )
        if isinstance(include, str) or not all(isinstance(each, str) for each in include):
            raise ConfigurationError(f"{where}: include= takes a list of module names")
        if isinstance(queues, str):
            raise ConfigurationError(f"{where}: queues= takes a list of names: [{queues!r:.210}]")
        self.store = store
        self.result_ttl = check_duration("result_ttl", result_ttl, where)
        self.default = check_queue_name(default)
        self.routes = dict(routes or {})
        for queue in self.routes.values():
            check_queue_name(queue, f"{where}: routes: queue")
        self._named = [check_queue_name(queue, f"{where}: queues: queue") for queue in queues]

        self.connections: list[Connected] = []
        self.eager_connections: list[Connected] = []
        """They serve what is sent inside `eager`, and no worker."""
        self._include = list(include)
        self._module = sys._getframe(1).f_globals.get("__name__", "")  # noqa: SLF001 - where a process finds it
        self._registered: dict[str, BaseTask[Any, Any]] = {}
        self._queues: dict[str, Queue[TaskCall]] = {}
        self._loaded = False
        self.schedules = TaskSchedules(self, schedules or {})

    def __repr__(self) -> str:
        return f"Tasks({self.name!r})"

    # Registering

    def task(self, /, *function: Never, **options: Unpack[TaskOptions]) -> Registration:
        """Return the decorator for a task. For the options see `TaskOptions`."""
        if function:
            raise ConfigurationError(
                f"tasks {self.name!r}: the decorator is made by a call: write @tasks.task()"
            )
        return Registration(self, options)

    def schedule(
        self,
        trigger: Trigger,
        *,
        name: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Callable[[T], T]:
        """Return the decorator for a task that is sent by itself; it stands above `@tasks.task()`.

        `trigger` is `every(...)`, `cron(...)` or `solar(...)`; `name` is the task's name by
        default. For the other options see `ScheduleOptions`.
        """
        return self.schedules.decorator(trigger, name, args, kwargs or {}, options)

    def register(self, function: Callable[..., Any], options: TaskOptions) -> BaseTask[Any, Any]:
        """Register a function without the decorator, and return its task."""
        if not callable(function) or isinstance(function, type):
            raise ConfigurationError(
                f"tasks {self.name!r}: a task is a function, not {described(function)}"
            )
        kind = AsyncTask if inspect.iscoroutinefunction(function) else Task
        task: BaseTask[Any, Any] = kind(self, function, options)
        known = self._registered.get(task.name)
        if known is not None and _place(known.function) != _place(function):
            raise ConfigurationError(
                f"tasks {self.name!r}: two tasks have the name {task.name!r}: "
                f"{_place(known.function)} and {_place(function)}. Give one of them another name="
            )
        self._registered[task.name] = task
        return task

    def autodiscover(self, *packages: str) -> None:
        """Include the module `tasks` of each of these packages that has one."""
        self._include += [
            f"{package}.tasks"
            for package in packages
            if importlib.util.find_spec(f"{package}.tasks") is not None
        ]
        self._loaded = False

    def load(self) -> None:
        """Import the modules of `include`, once."""
        if not self._loaded:
            self._loaded = True
            for module in self._include:
                importlib.import_module(module)

    def find(self, name: str) -> BaseTask[Any, Any] | None:
        """Return the task with a registered name."""
        return self._registered.get(name)

    @property
    def registered(self) -> Mapping[str, BaseTask[Any, Any]]:
        """All tasks by name, without those in modules that were not imported yet."""
        return dict(self._registered)

    def route(self, name: str) -> str:
        """Return the name of the queue of a task, by its registered name."""
        for pattern, queue in self.routes.items():
            if fnmatchcase(name, pattern):
                return queue
        return self.default

    # Queues and handlers

    def queue(self, name: str) -> Queue[TaskCall]:
        """Return a queue that carries tasks."""
        found = self._queues.get(name)
        if found is None:
            found = self._queues[name] = Queue(name or "tasks", TaskCall)
            found.payload = _CALL
        return found

    @property
    def queues(self) -> frozenset[str]:
        """The queues that a worker consumes: of `queues=` and the routes, and what tasks name."""
        return self._consumed

    @cached_property
    def _consumed(self) -> frozenset[str]:
        self.load()
        own = {task.queue for task in self._registered.values() if task.queue is not None}
        return frozenset({self.default, *self.routes.values(), *self._named, *own})

    @cached_property
    def handlers(self) -> Sequence[HandlerSpec]:
        """One handler for each queue."""
        self.load()
        modes: dict[str, Any] = {"thread": run_in_thread}
        if any(task.mode == "process" for task in self._registered.values()):
            modes["process"] = self.process
        conclusion: HandlerOptions = {"conclusion": self._conclude} if self.store else {}
        return [
            HandlerSpec.of(
                self.queue(name),
                run_async,
                {
                    "name": f"tasks {self.name}",
                    "profile": self._profile,
                    "modes": modes,  # type: ignore[typeddict-item]  # its keys are modes
                    **conclusion,
                },
            )
            for name in sorted(self.queues)
        ]

    def _profile(self, message: Message) -> Profile | None:
        task = self.find(message.headers.get(HEADER, ""))
        return None if task is None else task.profile

    async def _conclude(self, items: Sequence[Conclusion]) -> None:
        if self.store is not None:
            loop = asyncio.get_running_loop()
            # One hook serves all brokers: what follows is published on that of the message.
            here = [each for each in self.connections if each.loop is loop]
            own = [each for each in here if all(map(each.has_concluded, items))]
            await conclude((own or here)[-1], items)

    @cached_property
    def process(self) -> Callable[..., bytes]:
        """The handler for tasks in a process of their own, which finds it here by name."""

        def process(call: TaskCall, ctx: BlockingContext) -> bytes:
            self.load()
            task = self._registered[call.name]
            return in_process(task, call, ctx)

        module = sys.modules.get(self._module)
        names = [name for name, value in vars(module).items() if value is self] if module else []
        if not names:
            raise ConfigurationError(
                f"tasks {self.name!r}: tasks with process=True need the Tasks object at the top "
                "level of a module, where a new process can import it"
            )
        process.__module__, process.__qualname__ = self._module, f"{names[0]}.process"
        spec = HandlerSpec.of(self.queue(""), process, {"process": True})
        process.__mqcore__ = spec  # type: ignore[attr-defined]  # its process reads the payload type there
        return process

    # Connections

    def eager(self) -> AbstractAsyncContextManager[None]:
        """Run what is sent inside `async with tasks.eager():` here and now, without a broker.

        The arguments, results and states are the same as with a worker; delays and the waits before
        retries are left out.
        """
        return eager(self)

    def attach(self) -> Connected:
        """Return what serves these tasks on one broker; called by the app."""
        return Connected(self)

    def connected(self) -> Connected:
        """Return the open connection of this event loop, which has a store.

        Raises `ConfigurationError` and `UnsupportedFeature`.
        """
        connected = self.connection()
        if connected.has_store:
            return connected
        raise UnsupportedFeature(
            f"tasks {self.name!r} have no store, so nothing is known of a task after it was sent. "
            'Give one: Tasks(..., store="sqlite:///tasks.db")'
        )

    def connection(self) -> Connected:
        """Return the newest open connection of this event loop. Raises `ConfigurationError`."""
        loop = asyncio.get_running_loop()
        for each in reversed([*self.connections, *self.eager_connections]):
            if each.loop is loop:
                return each
        raise ConfigurationError(
            f"tasks {self.name!r} are not connected in this event loop. Connect the app that has "
            f"them: `async with app.connect() as broker:` around it, with App(..., tasks=[...])"
        )

    # Sending

    async def send(self, call: Call[R]) -> Job[R]:
        """Send a call; see `Call.send`."""
        connected, rows = self.connection(), rows_of(call.plan, new_id())
        job: Job[R] = Job(self, rows.first[0].id, call.plan)
        connected.check(rows)
        if not connected.has_store:
            await connected.send_unstored(rows.first)
            return job

        outcome = await connected.add(rows.first, has_more=bool(rows.batches))
        if isinstance(outcome, Conflict):
            return await self._conflict(connected, rows.first, outcome.holder, call)
        await connected.send_batches(rows.batches)
        return job

    async def _conflict(
        self, connected: Connected, rows: Sequence[Node], holder: str, call: Call[R]
    ) -> Job[R]:
        """Return what a second send with an open unique key comes to (T9).

        `rows`: the task, and the calls that follow its end.
        """
        row = rows[0]
        task = self._registered[row.name]
        policy = task.unique.policy if task.unique else "existing"
        if policy == "existing":
            return Job(self, holder, call.plan)
        if policy == "replace":
            return await connected.replace(rows, holder, call.plan)
        raise DuplicateTask(
            f"task {row.name!r} is not sent: {holder} has the same unique key and has not ended",
            holder,
        )

    def job(self, id: str) -> Job[Any]:
        """Return the job of a task or workflow that was sent before, by its id."""
        return Job(self, check_text("id", id, f"tasks {self.name!r}: job"))

    def read(self, value: Value, plan: Plan | None, name: str = "", arguments: str = "") -> Any:
        """Return the value of a stored result, by the types of the tasks that it came from."""
        if isinstance(value, Failure):
            return value
        if isinstance(plan, FollowedPlan):
            plan = plan.plan
        if isinstance(plan, ChainPlan) and plan.steps:
            return self.read(value, plan.steps[-1])
        if isinstance(plan, GroupPlan) and isinstance(value, list):
            return [
                self.read(each, member) for each, member in zip(value, plan.members, strict=True)
            ]
        text = json_of(value)
        if isinstance(plan, TaskPlan):
            name, arguments = plan.name, plan.arguments
        if (task := self.find(name)) is None:
            return _ANY.decode(text.encode(), None, JSON)
        parameters = task.parameters
        if arguments.startswith("["):
            return parameters.decode_results(text)
        return parameters.decode_result(text)


def _place(function: Callable[..., Any]) -> str:
    """Return where a function is defined; a module that is loaded again defines it again."""
    return f"{function.__module__}.{function.__qualname__}"
