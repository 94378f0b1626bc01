"""What a process has for its backends: the app of the project, connected in a thread of its own.

A view blocks and mqcore does not, so what it enqueues runs on an event loop in another thread, as
in `mqcore.sync`. After a fork and after a change of the settings everything is made again.
"""

from __future__ import annotations

import asyncio
import atexit
import os
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from django.core.signals import setting_changed

from mqcore.app import App
from mqcore.errors import ConnectionLost, MqcoreError, Reject
from mqcore.sync.loop_thread import LoopThread
from mqcore.tasks.django.registry import DjangoTasks
from mqcore.tasks.django.settings import broker_url, mqcore_settings, store_url
from mqcore.tasks.eager import EagerConnection
from mqcore.tasks.model.outcomes import Conflict
from mqcore.tasks.plans import rows_of
from mqcore.tasks.run import run_in_thread
from mqcore.tasks.store.plugins import default_store_plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mqcore.consuming.context import Context
    from mqcore.tasks.calls import Call
    from mqcore.tasks.connected import Connected
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.store.seam import TaskStore

__all__ = ["EagerRuntime", "Runtime", "close_runtimes", "runtime"]

R = TypeVar("R")
K = TypeVar("K", bound="Runtime")


class Runtime:
    """The project's tasks, connected. It may be used from any thread."""

    def __init__(self) -> None:
        """Read the settings. Nothing is connected before the first call."""
        self.tasks = self._tasks()
        self.app = App("django", tasks=[self.tasks])
        self._loop = LoopThread(self._close)
        self._lock = Lock()
        self._is_open = False

    def _tasks(self) -> DjangoTasks:
        return DjangoTasks()

    async def _open(self) -> None:
        self._broker = self.app.connect(broker_url())
        await self._broker.open()

    async def _close(self) -> None:
        if self._is_open:
            await self._broker.close()

    def close(self) -> None:
        """Disconnect."""
        self._loop.close()

    def run(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run a coroutine on the loop, and return its result."""
        with self._lock:
            if not self._is_open:
                _wait(self._loop.submit(self._open()))
                self._is_open = True
        return _wait(self._loop.submit(work()))

    @property
    def _connected(self) -> Connected:
        return self.tasks.connected()

    def send(self, call: Call[Any], id: str) -> None:
        """Send a task under this id."""
        self.run(lambda: self._send(call, id))

    async def _send(self, call: Call[Any], id: str) -> None:
        connected, rows = self._connected, rows_of(call.plan, id)
        connected.check(rows)
        outcome = await connected.add(rows.first)
        assert not isinstance(outcome, Conflict)  # noqa: S101 - these tasks have no unique keys

    def node(self, id: str) -> Node | None:
        """Return the row of a task."""
        return self.run(lambda: self._node(id))

    async def _node(self, id: str) -> Node | None:
        return (await self._connected.store.nodes([id]))[0]

    def cancel(self, id: str, reason: str) -> bool:
        """Cancel a task. Raises `UnknownTask`."""
        return self.run(lambda: self.tasks.job(id).cancel(reason))


class EagerRuntime(Runtime):
    """Runs each task in the thread that enqueues it, before `send` returns.

    The tasks are in memory, unless the settings name a store.
    """

    def _tasks(self) -> DjangoTasks:
        return DjangoTasks(store=_eager_store(), is_eager=True)

    async def _open(self) -> None:
        url = _eager_store()
        store = default_store_plugins().store_for(url.partition("://")[0])(url)
        self._eager = _EagerHere(self.tasks, store)
        await self._eager.open()

    async def _close(self) -> None:
        if self._is_open:
            await self._eager.close()

    def send_here(self, call: Call[Any], id: str) -> BaseException | None:
        """Run a task here, and return what its last attempt has raised. Raises only Ctrl-C."""
        self.run(self._ready)
        work = self._eager.work[id] = SimpleQueue[_Body | None]()
        sending = self._loop.submit(self._send(call, id))
        sending.add_done_callback(lambda _: work.put(None))
        error = None
        try:
            while (body := work.get()) is not None:
                error = body.run()
            sending.result()
        finally:
            sending.cancel()
            del self._eager.work[id]
        return error

    async def _ready(self) -> None:
        """There is nothing to do once it is open."""


class _EagerHere(EagerConnection):
    """Passes the calls of functions to the threads that enqueue."""

    def __init__(self, tasks: DjangoTasks, store: TaskStore) -> None:
        super().__init__(tasks, store)
        self.work: dict[str, SimpleQueue[_Body | None]] = {}
        """What is to be called, by the id of the task that a thread sends."""

    async def call(self, ctx: Context) -> object:
        """Have the function called by the thread that waits in `EagerRuntime.send`."""
        run = ctx.payload
        body = _Body(run, asyncio.get_running_loop())
        self.work[run.context.id].put(body)
        return await body.ended


class _Body:
    """One call of a task's function, from the loop to the thread that enqueues, and back."""

    def __init__(self, run: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._run, self._loop = run, loop
        self.ended: asyncio.Future[Any] = loop.create_future()

    def run(self) -> BaseException | None:
        """Call the function in this thread, and return what it raises.

        Raises only Ctrl-C, after which the task has failed.
        """
        try:
            value = copy_context().run(run_in_thread, self._run)
        except KeyboardInterrupt:
            self._end(self.ended.set_exception, Reject("interrupted by Ctrl-C"))
            raise
        except BaseException as error:  # noqa: BLE001 - it goes into the task's row
            self._end(self.ended.set_exception, error)
            return error
        self._end(self.ended.set_result, value)
        return None

    def _end(self, end: Callable[[Any], None], value: object) -> None:
        self._loop.call_soon_threadsafe(lambda: None if self.ended.done() else end(value))


def _eager_store() -> str:
    return store_url() if "STORE" in mqcore_settings() else "memory://mqcore-eager"


def _wait(future: Future[R]) -> R:
    """Wait for a result, as a view does. Ctrl-C cancels the call."""
    try:
        return future.result()
    except CancelledError:
        raise ConnectionLost(
            "the connection of the task backend was closed while the call waited"
        ) from None
    finally:
        future.cancel()


_runtimes: dict[type[Runtime], Runtime] = {}
_lock = Lock()


def runtime(kind: type[K]) -> K:
    """Return this process's runtime of a kind."""
    with _lock:
        found = _runtimes.get(kind)
        if found is None:
            found = _runtimes[kind] = kind()
        return found  # type: ignore[return-value]  # it is kept by its kind


def close_runtimes() -> None:
    """Disconnect, and read the settings again before the next call."""
    with _lock:
        closing = list(_runtimes.values())
        _runtimes.clear()
    for each in closing:
        with suppress(MqcoreError):
            each.close()


def _forget_after_fork() -> None:
    global _lock  # noqa: PLW0603 - another thread may have held it at the fork
    _lock = Lock()
    _runtimes.clear()


def _close_after_change(*, setting: str, **_: object) -> None:
    if setting in {"MQCORE", "TASKS", "DATABASES"}:
        close_runtimes()


setting_changed.connect(_close_after_change)
os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(close_runtimes)
