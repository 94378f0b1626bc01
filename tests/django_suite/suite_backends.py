"""mqcore's backends as Django's tests of `DummyBackend` and `ImmediateBackend` use them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from typing import Any

from mqcore.tasks.django import EagerBackend, MqcoreBackend
from mqcore.tasks.django.compat import TaskResult, TaskResultStatus
from mqcore.tasks.django.runtime import Runtime, runtime
from mqcore.tasks.model.changes import Begin, End
from mqcore.tasks.model.states import State


class Enqueued(MqcoreBackend):
    """Our backend without a worker. As `DummyBackend` it has `results` and `clear`."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.results: list[TaskResult] = []

    def _send(self, result: TaskResult) -> TaskResult:
        super()._send(result)
        self.results.append(_stored(result))
        return deepcopy(result)

    def clear(self) -> None:
        """Remove all tasks from the store."""
        self.results.clear()
        found = runtime(Runtime)

        async def clear() -> None:
            await found.tasks.connected().store.clear()

        found.run(clear)


class Here(EagerBackend):
    """Our backend that runs a task where it is enqueued."""


class Stored(TaskResult):  # type: ignore[misc]  # a class without annotations
    """A result whose status is that of the store. The tests write it as a worker would."""

    __slots__ = ()

    @property
    def status(self) -> TaskResultStatus:
        """The status in the store."""
        return self.task.get_backend().get_result(self.id).status

    @status.setter
    def status(self, wanted: TaskResultStatus) -> None:
        """End the task as a worker does."""
        assert wanted == TaskResultStatus.SUCCESSFUL
        found = runtime(Runtime)
        begin = Begin(self.id, 0, 1, "token", "suite")
        end = End(self.id, 0, "token", State.SUCCEEDED, b"null")

        async def apply() -> None:
            await found.tasks.connected().writer.apply(begin, end)

        found.run(apply)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskResult) and all(
            getattr(self, each.name) == getattr(other, each.name) for each in fields(TaskResult)
        )

    __hash__ = None  # type: ignore[assignment]  # as TaskResult


def _stored(result: TaskResult) -> Stored:
    stored: Stored = object.__new__(Stored)
    for each in fields(TaskResult):
        if each.name != "status":
            object.__setattr__(stored, each.name, getattr(result, each.name))
    return stored
