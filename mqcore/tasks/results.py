"""`Results`: waits for tasks, with one watch for a whole process (T5), and reads results.

Changes that this process makes are noticed at once. Those of other processes are polled for: all
tasks that are waited for in one request, in intervals that grow from 10 ms to half a second.
"""

from __future__ import annotations

import asyncio
import json
import re
import weakref
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

from mqcore.errors import ConnectionLost
from mqcore.tasks.errors import TaskCancelled, TaskExpired, TaskFailed, UnknownTask
from mqcore.tasks.model.changes import (
    Back,
    Begin,
    Cancel,
    Change,
    End,
    Gone,
    More,
    Progress,
    Recover,
    Replace,
    Spread,
)
from mqcore.tasks.model.nodes import Kind, replacement_id
from mqcore.tasks.model.states import State
from mqcore.tasks.store.seam import StoreError
from mqcore.tasks.store.values import Failure, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mqcore.clock import Clock
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.store.seam import TaskStore
    from mqcore.tasks.store.values import Value

__all__ = ["Results", "error_of", "json_of", "value_text"]

_FIRST_WAIT, _LAST_WAIT = 0.01, 0.5
_AT_ONCE = 1_000
_ABOVE = re.compile(r"[.~][^.~]*$")
_all: weakref.WeakSet[Results] = weakref.WeakSet()
_lock = Lock()
"""Event loops in several threads may come and go."""


class Results:
    """The tasks that one connection waits for."""

    def __init__(self, store: TaskStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, dict[asyncio.Future[Node | None], Callable[[Node], bool]]] = {}
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._wait = _FIRST_WAIT
        self._is_closed = False
        with _lock:
            _all.add(self)

    async def node(self, id: str) -> Node:
        """Return the row of a task. Raises `UnknownTask`."""
        node = (await self._store.nodes([id]))[0]
        if node is None:
            raise _unknown(id)
        return node

    async def changed(self, id: str, is_new: Callable[[Node], bool]) -> Node:
        """Wait until the row of a task is new to the caller, and return it.

        Raises `UnknownTask` when it is removed.
        """
        if self._is_closed:
            raise _closed()
        found: asyncio.Future[Node | None] = self._loop.create_future()
        self._waiting.setdefault(id, {})[found] = is_new
        self._wait = _FIRST_WAIT
        if self._watch is None or self._watch.done():
            self._watch = self._loop.create_task(self._poll())
        try:
            node = await found
        finally:
            futures = self._waiting.get(id, {})
            futures.pop(found, None)
            if not futures:
                self._waiting.pop(id, None)
        if node is None:
            raise _unknown(id)
        return node

    async def _poll(self) -> None:
        """Look at the rows that are waited for, as long as there are any."""
        while self._waiting:
            self._wake.clear()
            if not self._dirty:
                with suppress(TimeoutError):
                    async with self._clock.timeout(self._wait):
                        await self._wake.wait()
                self._wait = min(self._wait * 1.5, _LAST_WAIT)
            ids = [id_ for id_ in self._dirty or self._waiting if id_ in self._waiting]
            self._dirty.clear()
            for start in range(0, len(ids), _AT_ONCE):
                await self._look(ids[start : start + _AT_ONCE])

    async def _look(self, ids: Sequence[str]) -> None:
        try:
            nodes = await self._store.nodes(ids)
        except StoreError:
            return  # it is away; the callers have time limits of their own
        for id_, node in zip(ids, nodes, strict=True):
            for future, is_new in self._waiting.get(id_, {}).items():
                if not future.done() and (node is None or is_new(node)):
                    future.set_result(node)

    def notice(self, changes: Sequence[Change]) -> None:
        """Take note of changes that were committed in this process."""
        with _lock:
            here = [each for each in _all if each._loop is self._loop]  # noqa: SLF001 - the same class
        for results in here:
            results._notice(changes)  # noqa: SLF001 - the same class

    def _notice(self, changes: Sequence[Change]) -> None:
        if not self._waiting:
            return
        touched = {id_ for change in changes for id_ in _touched(change)} & self._waiting.keys()
        if touched:
            self._dirty |= touched
            self._wake.set()

    async def close(self) -> None:
        """Stop to wait. The calls that wait raise `ConnectionLost`."""
        self._is_closed = True
        with _lock:
            _all.discard(self)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        for future in [each for futures in self._waiting.values() for each in futures]:
            if not future.done():
                future.set_exception(_closed())


def _touched(change: Change) -> Iterator[str]:
    """Yield the nodes that may have changed: the one that is named, and all above it."""
    match change:
        case (
            Begin(task=node)
            | End(task=node)
            | Gone(task=node)
            | Back(task=node)
            | Replace(task=node)
            | Progress(task=node)
            | Cancel(node=node)
            | Recover(node=node)
            | More(group=node)
            | Spread(group=node)
        ):
            while node:
                yield node
                node = _ABOVE.sub("", node) if _ABOVE.search(node) else ""


async def value_text(store: TaskStore, node: Node) -> str:
    """Return the result of a node as JSON. Raises `TaskFailed` when it has none."""
    if node.state is not State.SUCCEEDED:
        raise await error_of(store, node)
    if node.kind is Kind.TASK:
        return (node.result or b"null").decode()
    return json_of(await value_of(store, node.id))


def json_of(value: Value) -> str:
    """Return a result as JSON. Results are stored as JSON, so they are only put together."""
    if isinstance(value, list):
        return f"[{','.join(map(json_of, value))}]"
    if isinstance(value, Failure):
        return json.dumps({"node": value.node, "state": value.state, "reason": value.reason})
    return "null" if value is None else value.decode()


async def _failed(store: TaskStore, node: Node) -> Node | None:
    """Return what has failed below a node that has no reason of its own."""
    if node.kind is Kind.REPLACED:
        return (await store.nodes([replacement_id(node.id)]))[0]
    # A chain ends with the step that fails, so that is the last one that it has counted.
    first = node.done - 1 if node.kind is Kind.CHAIN else 0
    children = await store.children(node.id, first, min(first + _AT_ONCE, node.size))
    return next((each for each in children if each.state is State.FAILED), None)


_ERRORS: dict[State, type[TaskFailed]] = {
    State.CANCELLED: TaskCancelled,
    State.SKIPPED: TaskCancelled,
    State.EXPIRED: TaskExpired,
}


async def error_of(store: TaskStore, node: Node) -> TaskFailed:
    """Return the error of a node that has not succeeded; of a group, that of a member."""
    id_ = node.id
    while not node.reason and node.state is State.FAILED and (below := await _failed(store, node)):
        node = below

    parts: list[Any] = node.reason.split(": ", 2) if node.state is State.FAILED else [node.reason]
    return _ERRORS.get(node.state, TaskFailed)(id_, node.state, *parts)


def _closed() -> ConnectionLost:
    return ConnectionLost(
        "the connection was closed while a task was waited for. The task goes on: wait for it on "
        "another connection, by tasks.job(id)"
    )


def _unknown(id: str) -> UnknownTask:
    return UnknownTask(
        f"task {id!r:.80} is not in the store: it was never sent there, or it ended longer ago "
        "than result_ttl"
    )
