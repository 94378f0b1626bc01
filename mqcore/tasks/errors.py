"""The errors of tasks. What an application catches is here, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.errors import MqcoreError

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


class WouldDeadlock(MqcoreError):
    """A task waits for another one that could need the same worker (T5)."""


class ResultTimeout(MqcoreError, TimeoutError):
    """The task has not ended in time. It goes on."""


class SoftTimeout(MqcoreError, TimeoutError):
    """Raised inside a task that has reached its `soft_timeout` (T8)."""


class DuplicateTask(MqcoreError):
    """Another task with the same unique key is open (T9). `holder` is its id."""

    def __init__(self, text: str, holder: str) -> None:
        super().__init__(text)
        self.holder = holder


class TaskFailed(MqcoreError):
    """The task ended without success.

    `reason` is core's word for it, such as `retries_exhausted`, `rejected`, `timeout` or `crashed`
    (G11). `type` and `text` describe the exception in the task. They are data, never resolved to
    code.
    """

    def __init__(self, id: str, state: State, reason: str, type: str = "", text: str = "") -> None:  # noqa: A002 - the task's id, and the remote exception's type name
        detail = ": ".join(part for part in (reason, type, text) if part)
        super().__init__(f"task {id} is {state}: {detail}" if detail else f"task {id} is {state}")
        self.id = id
        self.state = state
        self.reason = reason
        self.type = type
        self.text = text


class TaskCancelled(TaskFailed):
    """The task was cancelled, or its turn in a cancelled workflow never came (T7)."""


class TaskExpired(TaskFailed):
    """The task was not started before its expiry (G6)."""
