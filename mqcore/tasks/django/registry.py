"""The tasks of a Django project as tasks of mqcore, and the signal at their end."""

from __future__ import annotations

import asyncio
import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import autodiscover_modules

from mqcore.errors import MqcoreError, Postpone
from mqcore.log import log
from mqcore.rules.retry import RetryPolicy
from mqcore.tasks.api import Tasks
from mqcore.tasks.connected import Connected
from mqcore.tasks.django.compat import task_backends, task_finished
from mqcore.tasks.django.functions import MqcoreTask, call_of, find_task, known_tasks
from mqcore.tasks.django.records import result_of
from mqcore.tasks.django.settings import include, result_ttl, store_url
from mqcore.tasks.run import Run
from mqcore.tasks.runs import TaskRuns
from mqcore.tasks.task import TaskOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqcore.consuming.conclusions import Conclusion
    from mqcore.consuming.context import Context
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.run import TaskCall
    from mqcore.tasks.task import BaseTask

__all__ = ["DjangoTasks", "send_finished"]


class DjangoTasks(Tasks):
    """The tasks of the project, by the paths of their functions.

    A task is registered when it is first needed: it is found in the modules that were imported.
    """

    def __init__(self, *, store: str | None = None, is_eager: bool = False) -> None:
        """Without `store` the settings say it."""
        super().__init__("django", store=store or store_url(), result_ttl=result_ttl())
        self._is_eager = is_eager
        self.names: set[str] = set()
        """Queues that a worker consumes beside those of the settings."""

    def load(self) -> None:
        """Import the modules `tasks` of the installed apps, and those of `INCLUDE`, once."""
        if self._loaded:
            return
        self._loaded = True
        autodiscover_modules("tasks")
        for module in include():
            importlib.import_module(module)
        for path in known_tasks():
            self.find(path)

    def find(self, name: str) -> BaseTask[Any, Any] | None:
        """Return the task with a path."""
        found = super().find(name)
        if found is None and (task := find_task(name)) is not None:
            options: TaskOptions = {
                "name": name,
                "retry": getattr(task, "retry", RetryPolicy(1)),
                "timeout": getattr(task, "timeout", 300.0),
            }
            found = self.register(call_of(task, is_eager=self._is_eager), options)
        return found

    @property
    def queues(self) -> frozenset[str]:
        """The queues of the backends in the settings, and those that the worker was given."""
        own: set[str] = set()
        for alias in task_backends.settings:
            with suppress(ImproperlyConfigured):  # the backend of another package is not installed
                if _is_ours(backend := task_backends[alias]):
                    own |= backend.queues
        return frozenset(own | self.names) or frozenset({self.default})

    def attach(self) -> Connected:
        """Return what serves these tasks on one broker."""
        return _DjangoConnected(self)

    async def _conclude(self, items: Sequence[Conclusion]) -> None:
        await super()._conclude(items)
        loop = asyncio.get_running_loop()
        connected = [each for each in self.connections if each.loop is loop][-1]
        runs = connected.runs
        assert isinstance(runs, _DjangoRuns)  # noqa: S101 - attach makes no others
        for item in items:
            task = item.id.partition(":")[0]
            if item.outcome != "done" and task not in runs.reported:
                await runs.report(task)
            runs.reported.discard(task)


def _is_ours(backend: Any) -> bool:
    return issubclass(getattr(backend, "task_class", object), MqcoreTask)


class _DjangoConnected(Connected):
    """A connection whose worker sends Django's signals."""

    def __init__(self, tasks: Tasks) -> None:
        super().__init__(tasks)
        self.runs = _DjangoRuns(self)


class _DjangoRuns(TaskRuns):
    """The runs of a worker. After each, the end that the store shows is signalled."""

    def __init__(self, connected: Connected) -> None:
        super().__init__(connected)
        self.reported: set[str] = set()
        """Failed tasks whose messages are not concluded yet."""

    async def run_call(
        self, call: TaskCall, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
    ) -> None:
        """Run a task, then send `task_finished` if it has ended."""
        try:
            await super().run_call(call, ctx, call_next)
        except (Postpone, asyncio.CancelledError):
            raise
        except BaseException:
            if isinstance(ctx.payload, Run) and await self.report(call.task):
                self.reported.add(call.task)
            raise
        if isinstance(ctx.payload, Run):
            await self.report(call.task)

    async def report(self, task: str) -> bool:
        """Send `task_finished` if the store shows that a task has ended."""
        try:
            (node,) = await self._connected.store.nodes([task])
        except MqcoreError as error:
            log().warning("the end of task %s is not signalled: %s", task, error)
            return False
        if node is None or not node.has_ended:
            return False
        try:
            await sync_to_async(send_finished)(node)
        except Exception:  # noqa: BLE001 - the task has ended, whatever becomes of the signal
            log().exception("the end of task %s is not signalled", task)
        return True


def send_finished(node: Node) -> None:
    """Send the signal for a task that has ended. Django's own receiver logs the exception."""
    result = result_of(node, node.id, find_task)
    sender = type(task_backends[result.backend])
    task_finished.send_robust(sender, task_result=result)
