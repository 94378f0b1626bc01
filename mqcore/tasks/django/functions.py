"""The functions of Django's tasks, and how a worker calls one."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Self

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from mqcore.errors import ConfigurationError
from mqcore.rules.retry import RetryPolicy
from mqcore.tasks.context import TaskContext, current_context
from mqcore.tasks.django.compat import (
    Task,
    TaskResult,
    normalize_json,
    task_backends,
    task_started,
)
from mqcore.tasks.django.compat import TaskContext as DjangoContext
from mqcore.tasks.django.records import Record, Sent, result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

__all__ = ["MqcoreTask", "call_of", "current_task", "find_task", "remember"]

_ONCE = RetryPolicy(1)
_known: dict[str, Task] = {}
"""The first task that was made of each function: that of its decorator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MqcoreTask(Task):  # type: ignore[misc]  # a class without annotations
    """What `@task(...)` makes of a function for `MqcoreBackend`.

    Beside Django's options there are four. `retry`: the policy (G10); a failed task is not tried
    again by default, as in Django. `timeout`: seconds for one run, None for no limit. `expires`:
    seconds after which it does not start any more (G6). `on_commit`: whether it is sent when the
    transaction commits in which it is enqueued; `MQCORE["ON_COMMIT"]` by default.
    """

    retry: RetryPolicy = _ONCE
    timeout: float | timedelta | None = 300.0
    expires: float | timedelta | None = None
    on_commit: bool | None = None

    def using(self, **changes: Any) -> Self:
        """Return the task with other options. `retry` and `timeout` belong to the decorator."""
        if wrong := changes.keys() & {"retry", "timeout"}:
            raise ConfigurationError(
                f"task {self.module_path}: {', '.join(sorted(wrong))} belong to @task(...), where "
                "the worker reads them, not to using(...)"
            )
        return replace(self, **changes)


def current_task() -> TaskContext:
    """Return mqcore's context of the task that is running here, for progress and cancellation.

    current_task().progress(3, 10, "third page")
    current_task().check()

    Raises `ConfigurationError` outside a task.
    """
    context = current_context.get()
    if context is None:
        raise ConfigurationError("current_task() is called outside a task")
    return context


def remember(task: Task) -> None:
    """Have `find_task` find the task of a decorator that another one covers."""
    _known.setdefault(task.module_path, task)


def find_task(path: str) -> Task | None:
    """Return the task with a path. Nothing is imported because a message names it."""
    module, _, name = path.rpartition(".")
    while module and module not in sys.modules:
        module, _, outer = module.rpartition(".")
        name = f"{outer}.{name}"
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, Task) else _known.get(path)


def known_tasks() -> list[str]:
    """Return the paths of all tasks in modules that were imported."""
    return list(_known)


def call_of(task: Task, *, is_eager: bool) -> Callable[..., Any]:
    """Return what mqcore registers for a task: a function that calls Django's.

    In eager mode it is called in the thread that enqueues, so the task gets the same database
    connections, as in `ImmediateBackend`.
    """
    if iscoroutinefunction(task.func) and not is_eager:
        return _call_async
    return _call_eagerly if is_eager else _call


def _call_eagerly(ctx: TaskContext, args: list[Any], kwargs: dict[str, Any], sent: Sent) -> Any:
    attempt = _Attempt(ctx, sent)
    attempt.start()
    with attempt.recorded():
        return normalize_json(attempt.task.call(*attempt.arguments(args), **kwargs))


def _call(ctx: TaskContext, args: list[Any], kwargs: dict[str, Any], sent: Sent) -> Any:
    close_old_connections()
    try:
        return _call_eagerly(ctx, args, kwargs, sent)
    finally:
        close_old_connections()


async def _call_async(ctx: TaskContext, args: list[Any], kwargs: dict[str, Any], sent: Sent) -> Any:
    attempt = _Attempt(ctx, sent)
    await sync_to_async(close_old_connections)()
    try:
        await sync_to_async(attempt.start)()
        with attempt.recorded():
            value = await attempt.task.func(*attempt.arguments(args), **kwargs)
            return normalize_json(value)
    finally:
        await sync_to_async(close_old_connections)()


class _Attempt:
    """One attempt, as Django sees it."""

    def __init__(self, ctx: TaskContext, sent: Sent) -> None:
        row = ctx.row
        if row is None or ctx._report is None or ctx._keep is None:  # noqa: SLF001 - the worker's own context
            raise ConfigurationError(f"task {ctx.name!r} of Django runs without a store")
        self._sent = sent
        self._before = Record.of(row)
        self._record = self._before.with_attempt(row)
        self._progress: dict[str, Any] = {}
        self._store, self._keep = ctx._report, ctx._keep  # noqa: SLF001 - as above
        ctx._report = self._report  # noqa: SLF001 - as above
        self.result: TaskResult = result_of(row, ctx.id, find_task)
        self.task: Task = self.result.task

    def arguments(self, args: list[Any]) -> list[Any]:
        """Return the positional arguments, after the context if the task takes it."""
        if not self.task.takes_context:
            return args
        return [DjangoContext(task_result=self.result), *args]

    def start(self) -> None:
        """Send the signal."""
        sender = type(task_backends[self._sent["backend"]])
        task_started.send_robust(sender, task_result=self.result)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Have the record of the attempt stored together with its end."""
        try:
            yield
        except asyncio.CancelledError:
            raise  # it does not end because of this
        except BaseException as error:
            self._record = self._record.with_error(error)
            raise
        finally:
            self._keep(self._record.report(self._progress))

    def _report(self, progress: dict[str, Any]) -> None:
        """Take a report of the task, and keep what earlier attempts have left."""
        self._progress = progress
        self._store(self._before.report(progress))
