"""Tasks in a FastAPI application: its lifespan, a dependency, and a router for a frontend.

    web = FastAPI(lifespan=lifespan(app))
    web.include_router(task_router(tasks, authorize=signed_in))

The router lists open tasks, tells the state of one, cancels it, and streams its changes as
server-sent events.
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any, Unpack

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from mqcore.app import App
from mqcore.broker import Broker
from mqcore.errors import ConfigurationError, ConnectionLost, MqcoreError
from mqcore.running.signals import STOP_SIGNALS
from mqcore.session import ConnectOptions
from mqcore.tasks.api import Tasks
from mqcore.tasks.errors import UnknownTask
from mqcore.tasks.job import Change
from mqcore.tasks.listing import open_tasks
from mqcore.tasks.model.nodes import Kind, Node
from mqcore.tasks.model.states import State
from mqcore.tasks.results import error_of
from mqcore.tasks.store.seam import StoreError
from mqcore.worker import Worker, WorkerOptions

__all__ = ["Cancelled", "TaskError", "TaskStatus", "get_broker", "lifespan", "task_router"]

_KEEP_ALIVE = 15.0
"""Seconds after which a stream without changes sends a comment, so that no proxy ends it."""
_STREAM = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class TaskError(BaseModel):
    """Why a task did not succeed: core's reason (G11), and the exception in the worker."""

    reason: str
    type: str
    text: str


class TaskStatus(BaseModel):
    """Where a task or a workflow is.

    `done`, `total` and `text` are the progress that a task has reported; of a workflow they count
    its members. `due_at` is when it may start, or when its attempt began. `error` is there after an
    end without success.
    """

    id: str
    name: str = Field(description="The registered name; of a workflow `group` or `chain`")
    state: State
    queue: str
    attempt: int
    done: float | None
    total: float | None
    text: str
    due_at: datetime | None
    ended_at: datetime | None
    error: TaskError | None


class Cancelled(BaseModel):
    """What a cancellation has come to: whether there was something to cancel."""

    id: str
    cancelled: bool
    state: State


# Lifespan


class _Connection:
    """What the lifespan has opened, in `app.state.mqcore`."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.leaving = asyncio.Event()
        """The server shuts down: a stream that goes on would keep it from that."""


def lifespan(
    app: App,
    url: str | None = None,
    *,
    worker: WorkerOptions | None = None,
    **options: Unpack[ConnectOptions],
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return the lifespan of a web application, which connects an app.

    `url` and the other options are those of `App.connect`. With `worker`, the options of a `Worker`
    or `{}`, a worker runs in the web process too. To do more in a lifespan of your own, enter this
    one there: `async with lifespan(app)(web):`.
    """

    @asynccontextmanager
    async def opened(web: FastAPI) -> AsyncIterator[None]:
        async with app.connect(url, **options) as broker:
            connection = web.state.mqcore = _Connection(broker)
            with _called_at_shutdown(connection.leaving.set):
                try:
                    if worker is None:
                        yield
                    else:
                        async with Worker(app, broker, **worker):
                            yield
                finally:
                    connection.leaving.set()

    return opened


@contextmanager
def _called_at_shutdown(call: Callable[[], None]) -> Iterator[None]:
    """Within the block, call at each signal to stop, before the server's own handler.

    A server ends the lifespan when its requests have ended, and a stream ends with the lifespan:
    they would wait for each other. A signal without a handler ends the process anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def on_signal(number: int, frame: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(call)
        handler = handlers[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is on_signal:
                signal.signal(number, handler)


async def get_broker(request: Request) -> Broker:
    """Return the broker of the lifespan: `broker: Annotated[Broker, Depends(get_broker)]`."""
    return _connection(request).broker


def _connection(request: Request) -> _Connection:
    found = getattr(request.app.state, "mqcore", None)
    if not isinstance(found, _Connection):
        raise ConfigurationError(
            f"{request.url.path}: the application is not connected. Give it mqcore's lifespan: "
            "FastAPI(lifespan=lifespan(app))"
        )
    return found


# Router


def task_router(
    tasks: Tasks,
    *,
    authorize: Callable[..., Any] | None,
    prefix: str = "/api/tasks",
    timeout: float = 5.0,  # of a request to the store
) -> APIRouter:
    """Return a router for tasks: list, status, cancel, and a stream of changes.

    `authorize` is a dependency of every route. It raises `HTTPException` for a caller who may not
    see or cancel tasks; None lets everybody. An id that the store does not know is answered with
    404, and a store that is away, or does not answer for `timeout` seconds, with 503.
    """
    views = _Views(tasks, timeout)
    router = APIRouter(
        prefix=prefix,
        tags=["tasks"],
        route_class=_Route,
        dependencies=[] if authorize is None else [Depends(authorize)],
        responses={503: {"description": "The store of tasks is away"}},
    )
    unknown: dict[int | str, dict[str, Any]] = {404: {"description": "The task is not known"}}
    router.get("/", summary="List open tasks")(views.list_tasks)
    router.get("/{task_id}/status/", summary="Show a task", responses=unknown)(views.status)
    router.post("/{task_id}/cancel/", summary="Cancel a task", responses=unknown)(views.cancel)
    router.get(
        "/{task_id}/changes/",
        summary="Stream the changes of a task to its end",
        response_class=StreamingResponse,
        responses=unknown | {200: {"content": {"text/event-stream": {}}}},
    )(views.changes)
    return router


class _Route(APIRoute):
    """Answers mqcore's errors with statuses."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of a request."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except UnknownTask as error:
                raise HTTPException(404, str(error)) from error
            except (StoreError, ConnectionLost, TimeoutError) as error:
                raise HTTPException(503, "the store of tasks is away") from error

        return handled


class _Views:
    """The endpoints of one router."""

    def __init__(self, tasks: Tasks, timeout: float) -> None:
        self._tasks = tasks
        self._timeout = timeout

    async def list_tasks(
        self,
        state: Annotated[list[State] | None, Query(description="Only tasks in this state")] = None,
        name: Annotated[str | None, Query(description="Only names that match: `shop.*`")] = None,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    ) -> list[TaskStatus]:
        """Return the tasks that are scheduled, queued, running or waiting for a retry."""
        connected = self._tasks.connected()
        async with asyncio.timeout(self._timeout):
            nodes = await open_tasks(connected.store)
        found = [
            node
            for node in nodes
            if (not state or node.state in state) and (name is None or fnmatchcase(node.name, name))
        ]
        return [_status(node) for node in found[:limit]]

    async def status(self, task_id: str) -> TaskStatus:
        """Return where a task or a workflow is."""
        return await self._status(task_id)

    async def cancel(
        self, task_id: str, reason: Annotated[str, Body(embed=True)] = "cancelled over HTTP"
    ) -> Cancelled:
        """Cancel a task, or a workflow with all that is open in it."""
        async with asyncio.timeout(self._timeout):
            is_cancelled = await self._tasks.job(task_id).cancel(reason)
        status = await self._status(task_id)
        return Cancelled(id=task_id, cancelled=is_cancelled, state=status.state)

    async def changes(self, task_id: str, request: Request) -> StreamingResponse:
        """Send a `TaskStatus` now and after each change, and the event `end` with the last one."""
        await self._status(task_id)
        leaving = getattr(getattr(request.app.state, "mqcore", None), "leaving", asyncio.Event())
        events = self._events(task_id, leaving)
        return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM)

    async def _status(self, id: str) -> TaskStatus:
        connected = self._tasks.connected()
        async with asyncio.timeout(self._timeout):
            node = await connected.results.node(id)
            if not node.has_ended or node.state is State.SUCCEEDED:
                return _status(node)
            error = await error_of(connected.store, node)
        return _status(node, TaskError(reason=error.reason, type=error.type, text=error.text))

    async def _events(self, id: str, leaving: asyncio.Event) -> AsyncIterator[str]:
        """Yield server-sent events until the task has ended, or the server or its store leaves.

        The headers are sent, so no error can be answered any more. A browser connects again.
        """
        with suppress(MqcoreError, TimeoutError):
            async for change in _until(leaving, self._tasks.job(id).changes()):
                if change is None:
                    yield ": still here\n\n"
                    continue
                status = await self._status(id)
                ended = "event: end\n" if status.ended_at is not None else ""
                yield f"{ended}data: {status.model_dump_json()}\n\n"
                if ended:
                    return


async def _until(
    leaving: asyncio.Event, changes: AsyncIterator[Change]
) -> AsyncIterator[Change | None]:
    """Yield the changes, None in a long pause, until `leaving`."""
    left = asyncio.ensure_future(leaving.wait())
    following = asyncio.ensure_future(anext(changes, None))
    try:
        while True:
            await asyncio.wait(
                {left, following}, timeout=_KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED
            )
            if left.done():
                return
            if not following.done():
                yield None
                continue
            if (change := following.result()) is None:
                return
            yield change
            following = asyncio.ensure_future(anext(changes, None))
    finally:
        left.cancel()
        following.cancel()
        await asyncio.gather(left, following, return_exceptions=True)


def _status(node: Node, error: TaskError | None = None) -> TaskStatus:
    change = Change.of(node)
    is_flow = node.kind in {Kind.GROUP, Kind.CHAIN}
    return TaskStatus(
        id=node.id,
        name=node.name or node.kind,
        state=node.state,
        queue=node.queue,
        attempt=node.attempt,
        done=node.done if is_flow else change.done,
        total=node.size if is_flow else change.total,
        text=change.text,
        due_at=_time(node.due),
        ended_at=_time(node.ended) if node.has_ended else None,
        error=error,
    )


def _time(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
