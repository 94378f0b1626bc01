"""`Job`: a task, or a workflow, that was sent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mqcore.errors import ConfigurationError
from mqcore.tasks.context import current_context
from mqcore.tasks.errors import ResultTimeout, WouldDeadlock
from mqcore.tasks.model.changes import Cancel
from mqcore.tasks.model.nodes import Kind
from mqcore.tasks.model.outcomes import Asked, Cancelled, Unknown
from mqcore.tasks.model.states import State
from mqcore.tasks.results import error_of
from mqcore.tasks.store.values import value_below

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import timedelta

    from mqcore.tasks.api import Tasks
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.plans import Plan

__all__ = ["Change", "Job"]

R_co = TypeVar("R_co", covariant=True)
_LONELY = (
    ". On memory:// only this process can run it, and there is no worker in this process: start "
    "one (`async with Worker(app, broker):`), or set MQCORE_URL to a broker that its workers share"
)


@dataclass(frozen=True, slots=True)
class Change:
    """Where a task is: its state, and the progress that it has reported last.

    `done` and `total` are what `TaskContext.progress` was given, None before. `attempt` is 0 before
    the first one.
    """

    state: State
    attempt: int
    done: float | None
    total: float | None
    text: str

    @classmethod
    def of(cls, node: Node) -> Change:
        """Read it off a row."""
        report: dict[str, Any] = json.loads(node.progress or b"{}")
        return cls(
            node.state,
            node.attempt,
            report.get("done"),
            report.get("total"),
            report.get("text", ""),
        )


class Job(Generic[R_co]):
    """A task that was sent. `id` finds it again, in any process: `tasks.job(id)`."""

    def __init__(self, tasks: Tasks, id: str, plan: Plan | None = None) -> None:
        """Made by `send` and `Tasks.job`."""
        self.id = id
        self._tasks = tasks
        self._plan = plan

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    async def state(self) -> State:
        """Return where the task is. Raises `UnknownTask`."""
        return (await self.status()).state

    async def status(self) -> Change:
        """Return state, attempt and progress. Raises `UnknownTask`."""
        return Change.of(await self._tasks.connected().results.node(self.id))

    async def result(
        self, timeout: float | timedelta | None = None, *, allow_wait: bool = False
    ) -> R_co:
        """Wait until the task has ended, and return its result.

        Raises `TaskFailed` or one of its kinds when it did not succeed, `ResultTimeout` after
        `timeout` seconds, `UnknownTask`, and `ConnectionLost` when the connection is closed. Inside
        a task it raises `WouldDeadlock` where the other one could need the same queue, unless
        `allow_wait` is set (T5).
        """
        connected = self._tasks.connected()
        limit = connected.seconds("timeout", timeout)
        check = None if allow_wait else self._check_wait
        try:
            node = await connected.results.end_of(self.id, limit, check)
        except TimeoutError:
            text = f"task {self.id} has not ended within {limit:g} s; it goes on"
            raise ResultTimeout(text + _LONELY * connected.is_without_worker) from None

        if node.state is not State.SUCCEEDED:
            raise await error_of(connected.store, node)
        stored = await value_below(connected.store, node)
        if node.kind is not Kind.TASK:
            await connected.results.node(self.id)  # raises, if the tree was removed meanwhile
        value: R_co = self._tasks.read(
            stored,
            self._plan,
            node.name,
            node.payload[:1].decode(),
        )
        return value

    def _check_wait(self, node: Node) -> None:
        running = current_context.get()
        if running is None or (node.kind is Kind.TASK and node.queue != running.queue):
            return
        raise WouldDeadlock(
            f"task {running.id} ({running.name}) of queue {running.queue!r} waits for "
            f"{self.id}, which may need the same queue: all places of its workers could wait so. "
            "Make it a step of a workflow, return ctx.replace(...), use another queue, or give "
            "allow_wait=True"
        )

    async def cancel(self, reason: str = "cancelled by the application") -> bool:
        """Cancel the task, or the workflow with all that is open in it (T7).

        What has not started never starts. What runs is asked to stop. Returns whether there was
        something to cancel. Raises `UnknownTask`.
        """
        if not isinstance(reason, str):
            raise ConfigurationError(f"cancelling task {self.id}: reason= takes a text")
        connected = self._tasks.connected()
        (outcome,) = await connected.writer.apply(Cancel(self.id, reason))
        if isinstance(outcome, Unknown):
            await connected.results.node(self.id)  # raises
        connected.hurry()
        return isinstance(outcome, (Cancelled, Asked))

    async def changes(self) -> AsyncIterator[Change]:
        """Yield where the task is, now and after each change of state or progress, to its end.

        Changes that follow each other quickly may be seen as one. Raises `UnknownTask`.
        """
        results = self._tasks.connected().results
        node = await results.node(self.id)
        while True:
            seen = Change.of(node)
            yield seen
            if node.has_ended:
                return
            node = await results.node_when(
                self.id,
                lambda new, seen=seen: Change.of(new) != seen,  # type: ignore[misc]  # bound for this turn
            )
