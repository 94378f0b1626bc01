"""`Results`: waits for tasks, with one subscription for a whole process (T5); reads results.

    changes of this process ────────────────┐
    announcements of the store ─────────────┼──► the rows that are waited for are read ──► callers
    from time to time, whatever was missed ─┘

All rows that are due at the same moment are read with one request.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import weakref
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from mqcore.errors import ConnectionLost
from mqcore.log import log
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
from mqcore.tasks.model.nodes import Kind, child_id, replacement_id
from mqcore.tasks.model.states import State
from mqcore.tasks.reads import Reader
from mqcore.tasks.store.seam import StoreError, SupportsAnnouncements
from mqcore.tasks.store.values import Failure, value_below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mqcore.clock import Clock
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.store.seam import Announcement, TaskStore
    from mqcore.tasks.store.values import Value

__all__ = ["Results", "error_of", "json_of", "value_text"]

_FIRST_WAIT, _LAST_WAIT = 0.01, 0.5
"""Seconds between two looks at all rows, where nothing announces their changes."""
_HEARING = 2.0
"""The same where they are announced. It bounds what a lost announcement costs."""
_REST = 5.0
"""How many times longer the watch rests than it has looked at all rows. They may be very many."""
_LINGER = 30.0
"""Seconds that the subscription is kept when nothing is waited for."""
_AGAIN = 1.0
"""Seconds after which a subscription that was lost is made again."""
_AT_ONCE = 1_000
"""Rows that one request reads."""
_DUE = 1e-6
_ABOVE = re.compile(r"[.~][^.~]*$")
_all: weakref.WeakSet[Results] = weakref.WeakSet()
_lock = Lock()
"""Event loops in several threads may come and go."""


@dataclass(eq=False, slots=True)
class _Wait:
    """One caller that waits for a change of a row."""

    is_new: Callable[[Node], bool]
    until_end: bool
    """Whether only the end of the task is new to the caller."""
    found: asyncio.Future[Node | None]


class Results:
    """The tasks that one connection waits for."""

    def __init__(self, store: TaskStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(store)
        self._waiting: dict[str, list[_Wait]] = {}
        self._changed: set[str] = set()
        """The rows that were said to have changed, and are waited for."""
        self._wake = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._hears = False
        """Whether changes of other processes are announced now."""
        self._interval = _FIRST_WAIT
        self._next_look = math.inf
        """When all rows are read next, whether or not a change was announced."""
        self._rested = 0.0
        """When the watch has rested from its last look at all rows."""
        self._is_closed = False
        with _lock:
            _all.add(self)

    async def node(self, id: str) -> Node:
        """Return the row of a task. Raises `UnknownTask`."""
        node = await self._reader.read(id)
        if node is None:
            raise _unknown(id)
        return node

    async def node_when(
        self,
        id: str,
        is_new: Callable[[Node], bool],
        *,
        until_end: bool = False,
        limit: float | None = None,
        check: Callable[[Node], None] | None = None,
    ) -> Node:
        """Return the row of a task when it is new to the caller; wait `limit` seconds at most.

        `until_end` says that nothing before the end of the task is new. `check` gets the row if it
        is not new yet, and may raise. Raises `UnknownTask`, also when the row is removed, and
        `TimeoutError`.
        """
        if self._is_closed:
            raise _closed()
        wait = _Wait(is_new, until_end, self._loop.create_future())
        self._waiting.setdefault(id, []).append(wait)  # before the row is read: no change is missed
        try:
            node: Node | None = await self.node(id)
            if node is not None and not is_new(node):
                if check is not None:
                    check(node)
                self._start_watch()
                async with self._clock.timeout(limit):
                    node = await wait.found
        finally:
            self._remove(id, wait)
        if node is None:
            raise _unknown(id)
        return node

    async def end_of(
        self, id: str, limit: float | None, check: Callable[[Node], None] | None = None
    ) -> Node:
        """Return the row of a task when it has ended; see `node_when`."""
        return await self.node_when(id, _has_ended, until_end=True, limit=limit, check=check)

    def _remove(self, id: str, wait: _Wait) -> None:
        waits = self._waiting[id]
        waits.remove(wait)
        if not waits:
            del self._waiting[id]
        if wait.found.done() and not wait.found.cancelled():
            wait.found.exception()  # it may have come when the caller had left

    # The watch

    def _start_watch(self) -> None:
        """Have all rows looked at soon: a wait has begun."""
        if not self._hears:
            self._interval = _FIRST_WAIT
            self._look_at(self._clock.monotonic() + _FIRST_WAIT)
        else:
            self._look_at(self._clock.monotonic() + _HEARING)
        self._wake.set()
        if self._watch is None or self._watch.done():
            self._watch = self._loop.create_task(self._look())
        if self._listening is None and isinstance(self._store, SupportsAnnouncements):
            self._listening = self._loop.create_task(self._listen(self._store))

    def _look_at(self, when: float) -> None:
        """Look at all rows at this time, or as soon as the watch has rested from the last look."""
        when = max(when, self._rested)
        if when < self._next_look:
            self._next_look = when
            self._wake.set()

    async def _look(self) -> None:
        """Read rows that have changed, and all rows from time to time."""
        while self._waiting or await self._is_needed_again():
            rest = self._next_look - self._clock.monotonic()
            if rest > _DUE and not self._changed:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with self._clock.timeout(None if rest == math.inf else rest):
                        await self._wake.wait()
                continue

            changed, self._changed = self._changed, set()
            await self._read(changed)
            if rest <= _DUE:
                await self._look_at_all()

    async def _look_at_all(self) -> None:
        began = self._clock.monotonic()
        await self._read(self._waiting)
        ended = self._clock.monotonic()
        self._rested = ended + _REST * (ended - began)
        self._next_look = max(ended + self._interval, self._rested)
        self._interval = _HEARING if self._hears else min(self._interval * 1.5, _LAST_WAIT)

    async def _is_needed_again(self) -> bool:
        """Keep the subscription for a while, when nothing is waited for."""
        self._next_look = math.inf
        self._changed.clear()
        if self._listening is not None:
            self._wake.clear()
            with suppress(TimeoutError):
                async with self._clock.timeout(_LINGER):
                    await self._wake.wait()
            if not self._waiting:
                self._listening.cancel()
                self._listening = None
                self._hears = False
        return bool(self._waiting)

    async def _read(self, rows: Iterable[str]) -> None:
        """Read these rows, and give them to the callers to whom they are new."""
        ids = [each for each in rows if each in self._waiting]
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            try:
                nodes = await self._store.nodes(some)
            except StoreError:
                continue  # it is away; the callers have time limits of their own
            except Exception as error:  # noqa: BLE001 - a defect of the store is the callers' error
                for wait in self._open_waits(some):
                    wait.found.set_exception(error)
                continue
            for id_, node in zip(some, nodes, strict=True):
                for wait in self._open_waits([id_]):
                    if node is None or wait.is_new(node):
                        wait.found.set_result(node)

    def _open_waits(self, ids: Iterable[str]) -> list[_Wait]:
        every = (wait for id_ in ids for wait in self._waiting.get(id_, ()))
        return [wait for wait in every if not wait.found.done()]

    # What has changed

    async def _listen(self, store: SupportsAnnouncements) -> None:
        """Hear what other processes change. What is missed meanwhile is looked for afterwards."""
        has_failed = False
        while True:
            try:
                await store.listen(self._hear)
            except StoreError as error:
                if self._hears or not has_failed:
                    log().warning("tasks: results of other processes are polled for: %s", error)
            except Exception:  # noqa: BLE001 - results are polled for in place of it
                log().exception("tasks: the store cannot announce changes; results are polled for")
            has_failed = True
            if self._hears:
                self._hears, self._interval = False, _FIRST_WAIT
                self._look_at(self._clock.monotonic())
            await self._clock.sleep(_AGAIN)

    def _hear(self, announcement: Announcement | None) -> None:
        """Take note of what the store announces; None says that something may have been missed."""
        self._hears = True
        if announcement is None:
            self._look_at(self._clock.monotonic())
        elif self._waiting:
            self._note(announcement.ended)
            self._note(announcement.moved, has_ended=False)

    def _note(self, rows: Iterable[str], *, has_ended: bool = True) -> None:
        """Have these rows read by the watch, if a caller could find something new there."""
        for id_ in rows:
            waits = self._waiting.get(id_)
            if waits and (has_ended or not all(wait.until_end for wait in waits)):
                self._changed.add(id_)
                self._wake.set()

    def notice(self, changes: Sequence[Change]) -> None:
        """Take note of changes that were committed in this process."""
        with _lock:
            here = [each for each in _all if each._loop is self._loop]  # noqa: SLF001 - the same class
        for results in here:
            results._notice(changes)  # noqa: SLF001 - the same class

    def _notice(self, changes: Sequence[Change]) -> None:
        if not self._waiting:
            return
        for change in changes:
            if isinstance(change, (Begin, Back, Progress)):
                self._note([change.task], has_ended=isinstance(change, Back))
            else:
                self._note(_touched(change))

    async def close(self) -> None:
        """Stop to wait. The calls that wait raise `ConnectionLost`."""
        self._is_closed = True
        with _lock:
            _all.discard(self)
        tasks = [task for task in (self._watch, self._listening) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for wait in self._open_waits(self._waiting):
            wait.found.set_exception(_closed())


def _touched(change: Change) -> Iterator[str]:
    """Yield the nodes that may have ended: the one that is named, and all above it."""
    match change:
        case (
            End(task=node)
            | Gone(task=node)
            | Replace(task=node)
            | Cancel(node=node)
            | Recover(node=node)
            | More(group=node)
            | Spread(group=node)
        ):
            while node:
                yield node
                node = _ABOVE.sub("", node) if _ABOVE.search(node) else ""


def _has_ended(node: Node) -> bool:
    return node.has_ended


async def value_text(store: TaskStore, node: Node) -> str:
    """Return the result of a node as JSON. Raises `TaskFailed` when it has none."""
    if node.state is not State.SUCCEEDED:
        raise await error_of(store, node)
    if node.kind is Kind.TASK:
        return (node.result or b"null").decode()
    return json_of(await value_below(store, node))


async def input_text(store: TaskStore, before: Node, task: str) -> str:
    """Return what a step takes, as JSON: the result of the node before.

    A call that follows the end of that node takes a `Failure` where there is no result.
    """
    is_following = task.startswith(child_id(before.id, -1)[:-1])
    if before.state is State.SUCCEEDED or not is_following:
        return await value_text(store, before)
    error = await error_of(store, before)
    reason = ": ".join(part for part in (error.reason, error.type, error.text) if part)
    return json_of(Failure(before.id, before.state, reason))


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
