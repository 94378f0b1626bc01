"""`TaskContext`: what a task can know of its run, and do besides returning."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from mqcore.errors import UnsupportedFeature
from mqcore.tasks.errors import TaskCancelled
from mqcore.tasks.model.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.tasks.calls import Call
    from mqcore.tasks.model.nodes import Node

__all__ = ["Replacement", "TaskContext", "current_context"]

R = TypeVar("R")

current_context: ContextVar[TaskContext | None] = ContextVar("mqcore_task", default=None)
"""The context of the task that is running here."""


class Replacement:
    """What `TaskContext.replace` returns: the call that takes the place of the task."""

    def __init__(self, call: Call[Any]) -> None:
        self.call = call


class TaskContext:
    """The context of one run. A task that wants it takes it as its first parameter.

        @tasks.task()
        async def resize(ctx: TaskContext, image: str) -> str: ...

    `id` is the task's, `attempt` counts from 1 (G4), `run` is how often it was redriven. `state` is
    what the app's lifespan has yielded; None in a process.
    """

    def __init__(
        self,
        *,
        id: str,
        name: str,
        queue: str = "",
        attempt: int = 1,
        run: int = 0,
        state: Any = None,
        report: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Made by the worker. `report` stores progress."""
        self.id = id
        self.name = name
        self.queue = queue
        self.attempt = attempt
        self.run = run
        self.state = state
        self.cancelled = False
        """Whether the task is to be cancelled. An async task gets `CancelledError` instead."""
        self.timed_out = False
        """Whether the `soft_timeout` of a blocking task is over."""
        self.row: Node | None = None
        """The row in the store as the attempt began; None without a store, and in a process."""
        self._report = report
        self._keep = report
        """As `_report`, for what is stored together with the end of the attempt."""

    @classmethod
    def inline(cls, name: str) -> TaskContext:
        """Return the context of a task that is called directly, without a worker."""
        return cls(id="", name=name, report=lambda _: None)

    def check(self) -> None:
        """Raise `TaskCancelled` if the task is to be cancelled: for loops in blocking tasks."""
        if self.cancelled:
            raise TaskCancelled(self.id, State.CANCELLED, "it was cancelled while it ran")

    def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Report how far the task is (T6).

        It returns at once. The newest report is stored, at most four times a second and in order.
        Raises `UnsupportedFeature` in a process of its own.
        """
        if self._report is None:
            raise UnsupportedFeature(
                f"task {self.name!r}: progress from process=True tasks is not possible. Use a "
                "thread or an async task"
            )
        self._report({"done": done, "total": total, "text": text})

    def replace(self, call: Call[R]) -> R:
        """Return what a task returns to be replaced: `return ctx.replace(call)`.

        The call takes its place, in a workflow too, and the task ends as the call ends.
        """
        if self._report is None:
            raise UnsupportedFeature(
                f"task {self.name!r}: ctx.replace is not possible in process=True tasks. Use a "
                "thread or an async task"
            )
        return Replacement(call)  # type: ignore[return-value]  # the worker takes it in place of a result
