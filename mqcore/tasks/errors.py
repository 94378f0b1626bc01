"""The errors of tasks. What an application catches is here, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.errors import MqcoreError, Reject

if TYPE_CHECKING:
    from mqcore.tasks.model.states import State

__all__ = [
    "DuplicateTask",
    "ResultTimeout",
    "SoftTimeout",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailed",
    "UnknownTask",
    "WouldDeadlock",
]


class UnknownTask(MqcoreError):
    """The store has no task with this id: it never existed, or its `result_ttl` is over (T1)."""


class WouldDeadlock(MqcoreError, Reject):
    """A task waits for another one that could need the same worker (T5).

    The task is rejected: another attempt would wait for the same.
    """


class ResultTimeout(MqcoreError, TimeoutError):
    """The task has not ended in time. It goes on."""


class SoftTimeout(MqcoreError, TimeoutError):
    """Raised inside a task that has reached its `soft_timeout` (T8)."""


class DuplicateTask(MqcoreError):
    """Another task with the same unique key is open (T9). `holder` is its id."""

    def __init__(self, text: str, holder: str) -> None:
        super().__init__(text, holder)
        self.text = text
        self.holder = holder

    def __str__(self) -> str:
        return self.text


class TaskFailed(MqcoreError):
    """The task ended without success.

    `reason` is core's word for it, such as `retries_exhausted`, `rejected`, `timeout` or `crashed`
    (G11). `type` and `text` describe the exception in the task. They are data, never resolved to
    code.
    """

    def __init__(self, id: str, state: State, reason: str, type: str = "", text: str = "") -> None:  # noqa: A002 - the task's id, and the remote exception's type name
        super().__init__(id, state, reason, type, text)
        self.id = id
        self.state = state
        self.reason = reason
        self.type = type
        self.text = text

    def __str__(self) -> str:
        detail = ": ".join(part for part in (self.reason, self.type, self.text) if part)
        return f"task {self.id} is {self.state}" + (f": {detail}" if detail else "")


class TaskCancelled(TaskFailed):
    """The task was cancelled, or its turn in a cancelled workflow never came (T7)."""


class TaskExpired(TaskFailed):
    """The task was not started before its expiry (G6)."""
