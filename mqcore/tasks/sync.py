"""Tasks for programs without asyncio: send calls, and wait for jobs, from any thread.

    with connect(app, "redis://localhost/0") as client:
        job = client.send(add.s(2, 3))
        assert job.result(timeout=10) == 5

Calls and workflows are put together as everywhere: `add.s`, `group`, `|`. A `Job` has the methods
of `mqcore.tasks.Job`, and they block; a test compares the signatures.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from mqcore.sync.loop_thread import LoopThread
from mqcore.tasks.job import Change
from mqcore.tasks.job import Job as AsyncJob

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import timedelta

    from mqcore.app import App
    from mqcore.session import ConnectOptions
    from mqcore.tasks.api import Tasks
    from mqcore.tasks.calls import Call
    from mqcore.tasks.model.states import State

__all__ = ["Client", "Job", "connect"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Job(Generic[R_co]):
    """As `mqcore.tasks.Job`; its methods block."""

    def __init__(self, job: AsyncJob[R_co], loop: LoopThread) -> None:
        """Made by a `Client`."""
        self._job, self._loop = job, loop
        self.id = job.id

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def state(self) -> State:
        """As `mqcore.tasks.Job.state`."""
        return self._loop.run(self._job.state())

    def status(self) -> Change:
        """As `mqcore.tasks.Job.status`."""
        return self._loop.run(self._job.status())

    def result(self, timeout: float | timedelta | None = None, *, allow_wait: bool = False) -> R_co:
        """As `mqcore.tasks.Job.result`."""
        return self._loop.run(self._job.result(timeout, allow_wait=allow_wait))

    def cancel(self, reason: str = "cancelled by the application") -> bool:
        """As `mqcore.tasks.Job.cancel`."""
        return self._loop.run(self._job.cancel(reason))

    def changes(self) -> Iterator[Change]:
        """As `mqcore.tasks.Job.changes`."""
        changes = self._job.changes()
        while (change := self._loop.run(_next(changes))) is not None:
            yield change


async def _next(changes: AsyncIterator[Change]) -> Change | None:
    return await anext(changes, None)


class Client:
    """A connected app for programs that block. It may be used from several threads."""

    def __init__(self, app: App, url: str | None, options: ConnectOptions) -> None:
        """Made by `connect`."""
        self._broker = app.connect(url, **options)
        self._loop = LoopThread(self._broker.close)

    def open(self) -> None:
        """Connect the broker and the store. Raises what `Broker.open` raises."""
        self._loop.run(self._broker.open())

    def close(self) -> None:
        """Disconnect. May be called again."""
        self._loop.close()

    def send(self, call: Call[R]) -> Job[R]:
        """Send a task or a workflow; see `Call.send`."""
        return Job(self._loop.run(call.send()), self._loop)

    def job(self, tasks: Tasks, id: str) -> Job[Any]:
        """Return the job of a task that was sent before, by its id."""
        return Job(tasks.job(id), self._loop)


@contextmanager
def connect(
    app: App, url: str | None = None, **options: Unpack[ConnectOptions]
) -> Iterator[Client]:
    """Connect an app with tasks, for a `with` block. The options are those of `App.connect`."""
    client = Client(app, url, options)
    client.open()
    try:
        yield client
    finally:
        client.close()
