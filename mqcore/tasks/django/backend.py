"""The two backends: one for a broker, and one that runs each task where it is enqueued."""

from __future__ import annotations

import inspect
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from asgiref.sync import sync_to_async
from django.core import checks
from django.db import transaction
from django.utils import timezone

from mqcore.errors import ConfigurationError, MqcoreError
from mqcore.messages.message import new_id
from mqcore.queue import check_queue_name
from mqcore.tasks.django.compat import (
    BaseTaskBackend,
    InvalidTask,
    Task,
    TaskResult,
    TaskResultStatus,
    task_enqueued,
    task_finished,
)
from mqcore.tasks.django.functions import MqcoreTask, find_task, remember
from mqcore.tasks.django.records import result_of, sent_of
from mqcore.tasks.django.runtime import EagerRuntime, Runtime, runtime
from mqcore.tasks.django.settings import broker_url, mqcore_settings, store_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mqcore.tasks.calls import Call
    from mqcore.tasks.task import SendOptions

__all__ = ["EagerBackend", "MqcoreBackend"]


class MqcoreBackend(BaseTaskBackend):  # type: ignore[misc]  # a class without annotations
    """Enqueues tasks through mqcore; `manage.py mqcore_worker` runs them.

    TASKS = {"default": {"BACKEND": "mqcore.tasks.django.MqcoreBackend"}}

    Broker and table of tasks are in the setting `MQCORE`; see `MqcoreSettings`. Django's priorities
    become those of G8 in steps of 20: -100 is 0, 0 is 5, 100 is 10.
    """

    task_class = MqcoreTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True
    _runtime: ClassVar[type[Runtime]] = Runtime

    def validate_task(self, task: Task) -> None:
        """Raise `InvalidTask` for a task that this backend cannot take."""
        super().validate_task(task)
        try:
            check_queue_name(task.queue_name)
        except ConfigurationError as error:
            raise InvalidTask(str(error)) from None
        remember(task)

    def enqueue(self, task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskResult:
        """Send a task to a worker, and return its result, which is not ready yet.

        Raises `InvalidTask`, and `TypeError` for arguments that are not JSON or do not fit the
        function.
        """
        self.validate_task(task)
        _check_arguments(task, args, kwargs)
        result = TaskResult(
            task=task,
            id=new_id(),
            status=TaskResultStatus.READY,
            enqueued_at=timezone.now(),
            started_at=None,
            last_attempted_at=None,
            finished_at=None,
            args=list(args),
            kwargs=dict(kwargs),
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        if _waits_for_commit(task):
            transaction.on_commit(partial(self._send, result))
            return result
        return self._send(result)

    def _send(self, result: TaskResult) -> TaskResult:
        found = runtime(self._runtime)
        found.send(self._call(found, result), result.id)
        task_enqueued.send(type(self), task_result=result)
        return result

    def _call(self, found: Runtime, result: TaskResult) -> Call[Any]:
        task = result.task
        options: SendOptions = {
            "queue": task.queue_name,
            "priority": (task.priority + 100) // 20,
        }
        if task.run_after is not None:
            options["delay"] = max(task.run_after - timezone.now(), timedelta())
        if (expires := getattr(task, "expires", None)) is not None:
            options["expires"] = expires
        registered = found.tasks.find(task.module_path)
        assert registered is not None  # noqa: S101 - validate_task has seen it
        return registered.using(**options).s(result.args, result.kwargs, sent_of(result))

    def get_result(self, result_id: str) -> TaskResult:
        """Return what the store knows of a task. Raises `TaskResultDoesNotExist`."""
        return result_of(runtime(self._runtime).node(str(result_id)), result_id, find_task)

    def cancel(self, result_id: str, reason: str = "cancelled by the application") -> bool:
        """Cancel a task (T7), and return whether there was something to cancel.

        What has not started never starts; what runs is asked to stop. Raises `UnknownTask`.
        """
        return runtime(self._runtime).cancel(result_id, reason)

    async def acancel(self, result_id: str, reason: str = "cancelled by the application") -> bool:
        """As `cancel`."""
        done: bool = await sync_to_async(self.cancel)(result_id, reason)
        return done

    def check(self, **_: Any) -> Iterable[checks.CheckMessage]:
        """Yield what is wrong with the settings, without connecting."""
        where = f"TASKS[{self.alias!r}]"
        if self.options:
            yield checks.Error(f"{where}: OPTIONS has no use; there is MQCORE", id="mqcore.E001")
        try:
            mqcore_settings()
            for queue in sorted(self.queues):
                check_queue_name(queue, f"{where}: QUEUES: queue")
            self._check_urls()
        except MqcoreError as error:
            yield checks.Error(str(error), id="mqcore.E002")

    def _check_urls(self) -> None:
        """Raise what a URL in the settings would raise later."""
        store_url()
        broker_url()


class EagerBackend(MqcoreBackend):
    """Runs each task in the thread that enqueues it: for tests, and for development.

    Arguments, results and states are those of `MqcoreBackend`, and results can be retrieved. A
    `run_after` is not waited for, nor is the wait before a retry. The tasks are in memory, unless
    `MQCORE` names a `STORE`.
    """

    _runtime: ClassVar[type[Runtime]] = EagerRuntime

    def _send(self, result: TaskResult) -> TaskResult:
        task_enqueued.send(type(self), task_result=result)
        found = runtime(EagerRuntime)
        error = found.send_here(self._call(found, result), result.id)
        ended = self.get_result(result.id)
        if error is None or ended.status != TaskResultStatus.FAILED:
            task_finished.send(type(self), task_result=ended)
            return ended
        try:
            _raise(error)
        except BaseException:  # noqa: BLE001 - a receiver finds it in sys.exc_info
            task_finished.send(type(self), task_result=ended)
        return ended

    def _check_urls(self) -> None:
        if "STORE" in mqcore_settings():
            store_url()


def _raise(error: BaseException) -> None:
    raise error


def _check_arguments(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise `TypeError` where the function could not be called so."""
    context = (None,) if task.takes_context else ()
    try:
        inspect.signature(task.func).bind(*context, *args, **kwargs)
    except TypeError as error:
        raise TypeError(f"task {task.module_path}: {error}") from None


def _waits_for_commit(task: Task) -> bool:
    wanted = getattr(task, "on_commit", None)
    if wanted is None:
        wanted = mqcore_settings().get("ON_COMMIT", False)
    return wanted and transaction.get_connection().in_atomic_block
