"""What a row of the store says, as Django's `TaskResult`.

The arguments of a row have what was enqueued (`Sent`). The progress of a row has the record of its
attempts so far: workers, times and tracebacks. It is stored together with the end of each attempt.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from django import conf
from django.utils import timezone
from typing_extensions import TypedDict

from mqcore.tasks.django.compat import (
    InvalidTask,
    Task,
    TaskError,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultMismatch,
    TaskResultStatus,
)
from mqcore.tasks.model.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.tasks.model.nodes import Node

__all__ = ["Record", "Sent", "result_of", "sent_of"]

RECORD = "django"
"""The key of the record in the progress of a row."""
_MOST_ERRORS = 10
"""Tracebacks that are kept, the newest ones."""
_LONGEST = 16_000
"""Characters of a traceback that are kept, the last ones."""
_OUR_FRAMES = 2
"""Frames around the function that say nothing to its author."""

_STATUS = {
    State.RUNNING: TaskResultStatus.RUNNING,
    State.DELEGATED: TaskResultStatus.RUNNING,
    State.SUCCEEDED: TaskResultStatus.SUCCESSFUL,
    State.FAILED: TaskResultStatus.FAILED,
    State.CANCELLED: TaskResultStatus.FAILED,
    State.EXPIRED: TaskResultStatus.FAILED,
    State.SKIPPED: TaskResultStatus.FAILED,
}
_ERRORS = {State.CANCELLED: "TaskCancelled", State.EXPIRED: "TaskExpired"}


class Sent(TypedDict):
    """What a task was enqueued with, beside its arguments. `at` and `run_after` are ISO 8601."""

    at: str
    backend: str
    priority: int
    run_after: str | None


def sent_of(result: TaskResult) -> Sent:
    """Return it for a task that is enqueued now."""
    task = result.task
    return {
        "at": result.enqueued_at.isoformat(),
        "backend": result.backend,
        "priority": task.priority,
        "run_after": None if task.run_after is None else task.run_after.isoformat(),
    }


@dataclass
class Record:
    """The attempts so far. `last` is the run and the attempt that it ends with."""

    started: float = 0.0
    began: float = 0.0
    workers: list[str] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    has_raised: bool = False

    @classmethod
    def of(cls, node: Node) -> Record:
        """Read it off a row."""
        report: dict[str, Any] = json.loads(node.progress or b"{}")
        return cls(**report.get(RECORD, {}))

    def with_attempt(self, node: Node) -> Record:
        """Return the record with the attempt that a row shows as running."""
        this = [node.run, node.attempt]
        if self.last == this:  # it was stored shortly before the attempt ends
            return self
        return replace(
            self,
            started=self.started or node.due,
            began=node.due,
            workers=[*self.workers, node.worker],
            last=this,
            has_raised=False,
        )

    def with_error(self, error: BaseException) -> Record:
        """Return the record with what the attempt has raised."""
        kind, frames = type(error), error.__traceback__
        for _ in range(_OUR_FRAMES):
            frames = frames and frames.tb_next
        raised = {
            "exception_class_path": f"{kind.__module__}.{kind.__qualname__}",
            "traceback": "".join(format_exception(kind, error, frames))[-_LONGEST:],
        }
        return replace(self, errors=[*self.errors, raised][-_MOST_ERRORS:], has_raised=True)

    def report(self, progress: dict[str, Any]) -> dict[str, Any]:
        """Return what is stored as progress: what the task has reported last, and the record."""
        return {"done": None, "total": None, "text": ""} | progress | {RECORD: asdict(self)}

    def task_errors(self, node: Node) -> list[TaskError]:
        """Return the errors of the attempts, and why the task has ended otherwise."""
        errors = [TaskError(**each) for each in self.errors]
        has_raised = self.has_raised and self.last == [node.run, node.attempt]
        if node.has_ended and node.state is not State.SUCCEEDED and not has_raised:
            path = f"mqcore.tasks.errors.{_ERRORS.get(node.state, 'TaskFailed')}"
            text = f"{path}: {node.reason or f'the task is {node.state}'}\n"
            errors.append(TaskError(exception_class_path=path, traceback=text))
        return errors


def result_of(node: Node | None, id: str, find: Callable[[str], Task | None]) -> TaskResult:
    """Return the result that a row shows. `find` returns the task with a path.

    Raises `TaskResultDoesNotExist`, and `TaskResultMismatch` for a task that no module has.
    """
    call: dict[str, Any] = {}
    if node is not None and node.payload.startswith(b"{"):
        call = json.loads(node.payload)
    if node is None or "sent" not in call:
        raise TaskResultDoesNotExist(id)
    task = find(node.name)
    if task is None:
        raise TaskResultMismatch(
            f"task {id} is {node.name!r}, which no imported module has. Name its module in "
            'MQCORE = {"INCLUDE": [...]}'
        )

    sent: Sent = call["sent"]
    record = Record.of(node)
    if node.state is State.RUNNING:
        record = record.with_attempt(node)
    enqueued = datetime.fromisoformat(sent["at"])
    started = _time(record.started, enqueued)
    result = TaskResult(
        task=_as_sent(task, node, sent),
        id=node.id,
        status=_STATUS.get(node.state, TaskResultStatus.READY),
        enqueued_at=enqueued,
        started_at=started,
        last_attempted_at=_time(record.began, enqueued),
        finished_at=_time(node.ended, started or enqueued) if node.has_ended else None,
        args=call["args"],
        kwargs=call["kwargs"],
        backend=sent["backend"],
        errors=record.task_errors(node),
        worker_ids=list(record.workers),
    )
    if node.state is State.SUCCEEDED:
        object.__setattr__(result, "_return_value", json.loads(node.result or b"null"))
    return result


def _as_sent(task: Task, node: Node, sent: Sent) -> Task:
    """Return the task with the options that it was enqueued with."""
    after = sent["run_after"]
    try:
        return replace(
            task,
            priority=sent["priority"],
            queue_name=node.queue,
            run_after=None if after is None else datetime.fromisoformat(after),
            backend=sent["backend"],
        )
    except InvalidTask:  # the settings have changed since
        return task


def _time(seconds: float, earliest: datetime) -> datetime | None:
    """Return a time of the store as Django has times, and not before an earlier one.

    The store may have another clock than the process that enqueued.
    """
    if not seconds:
        return None
    time = datetime.fromtimestamp(seconds, UTC)
    return max(time if conf.settings.USE_TZ else timezone.make_naive(time), earliest)
