"""`Connected`: the tasks of an application on one open broker and its task store."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqcore.broker import Broker, companions_of, session_of
from mqcore.consuming.grace import DISCONNECTED, LEFT
from mqcore.consuming.identity import worker_name
from mqcore.errors import UnsupportedFeature
from mqcore.log import log
from mqcore.messages.message import Reason
from mqcore.rules.checks import check_seconds
from mqcore.rules.retry import HandlerResult
from mqcore.tasks.commands import task_commands
from mqcore.tasks.errors import DuplicateTask, UnknownTask
from mqcore.tasks.job import Job
from mqcore.tasks.limits import rate_of, slot_of
from mqcore.tasks.model.changes import Add, Cancel, End, Gone, More
from mqcore.tasks.model.nodes import Kind, root_of
from mqcore.tasks.model.outcomes import Closed, Conflict, Outcome
from mqcore.tasks.model.states import State
from mqcore.tasks.plans import STEP, check_depth
from mqcore.tasks.results import Results, error_of
from mqcore.tasks.run import TaskCall
from mqcore.tasks.runs import TaskRuns
from mqcore.tasks.store.plugins import default_store_plugins
from mqcore.tasks.transitions.apply import ABANDONED, SEAL_WITHIN
from mqcore.tasks.upkeep import Upkeep
from mqcore.tasks.writer import CLOSE, Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import timedelta

    from mqcore.clock import Clock
    from mqcore.consuming.conclusions import Conclusion
    from mqcore.consuming.context import Context
    from mqcore.control.commands import Extension
    from mqcore.messages.delivery import Delivery
    from mqcore.publishing.options import PublishOptions
    from mqcore.tasks.api import Tasks
    from mqcore.tasks.model.changes import Change
    from mqcore.tasks.model.limits import RateLimit, SlotLimit
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.plans import Plan, Rows
    from mqcore.tasks.run import Run
    from mqcore.tasks.store.seam import Pending, TaskStore

__all__ = ["HEADER", "Connected"]

HEADER = "mqcore-task"
"""The header with the name of a task: the worker chooses by it how the message is run."""
_LARGE = 100_000
"""Bytes of arguments from which on it is checked whether a message can carry them."""
_BATCH = SEAL_WITHIN / 3
"""Seconds that the next batch of a large group waits at most until one is published."""
_REPLACED = 30.0
"""Seconds that a running task with the same unique key gets to end."""


def _may_cancel(change: Change) -> bool:
    """Whether runs may have to be cancelled now. A member that fails may cancel the others."""
    if isinstance(change, (End, Gone)):
        return change.state is not State.SUCCEEDED and root_of(change.task) != change.task
    return isinstance(change, Cancel)


def _is_woken(pending: Pending) -> bool:
    """Whether the message is that of a task that was in line for a slot, and has it now."""
    return pending.entry.key.rpartition(":")[2].startswith("w")


class Connected:
    """One open broker with its store. Sends, waits, and serves a worker."""

    broker: Broker
    store: TaskStore
    writer: Writer
    results: Results
    clock: Clock
    loop: asyncio.AbstractEventLoop

    def __init__(self, tasks: Tasks) -> None:
        """Made when an app connects; `opened` does the rest."""
        self.tasks = tasks
        self.has_store = tasks.store is not None
        self.runs = TaskRuns(self)
        self.worker = worker_name()
        self._upkeep: Upkeep | None = None

    @property
    def middleware(self) -> TaskRuns:
        """What runs around the handlers of the app."""
        return self.runs

    @property
    def commands(self) -> Mapping[str, Extension]:
        """Commands to a worker about its tasks."""
        return task_commands(self.tasks)

    @asynccontextmanager
    async def opened(self, broker: Broker) -> AsyncIterator[None]:
        """Open the store while the broker is open."""
        self.broker, self.clock = broker, broker.clock
        number = companions_of(broker).all.index(self) + 1
        self.worker = session_of(broker).worker + (f".{number}" if number > 1 else "")
        self.loop = asyncio.get_running_loop()
        self.tasks.load()
        url = self.tasks.store
        if url is not None:
            scheme = url.partition("://")[0]
            self.store = default_store_plugins().store_for(scheme)(url, self.clock)
            await self.store.open()
            self.results = Results(self.store, self.clock)
            self.writer = Writer(self.store, self.publish, self._changed)
        self.tasks.connections.append(self)
        try:
            yield
        finally:
            self.tasks.connections.remove(self)
            if url is not None:
                await self._close()

    async def _close(self) -> None:
        """End within a worker's grace and 1 s, or within some seconds, if the store hangs (G13)."""
        leaving = session_of(self.broker).on_the_way_out
        await self.results.close()
        await self.writer.close(CLOSE if leaving is None else leaving.left(DISCONNECTED))
        limit = CLOSE if leaving is None else leaving.left(LEFT)
        closing = asyncio.ensure_future(self.store.close())
        await asyncio.wait([closing], timeout=limit)
        if closing.done():
            await closing
        else:
            closing.cancel()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Do the background work of a worker."""
        if not self.has_store:
            yield
            return
        upkeep = self._upkeep = Upkeep(self)
        await upkeep.start()
        schedules = self.tasks.schedules
        try:
            async with schedules.serve() if schedules.in_worker else nullcontext():
                yield
        finally:
            self._upkeep = None
            await upkeep.stop()

    def _changed(self, changes: Sequence[Change]) -> None:
        self.results.notice(changes)
        if any(map(_may_cancel, changes)):
            self.hurry()

    def hurry(self) -> None:
        """Have the workers of this process look for runs that are to be cancelled."""
        for each in [*self.tasks.connections]:
            if (upkeep := each._upkeep) is not None:  # noqa: SLF001 - the same class
                with suppress(RuntimeError):  # its loop, in another thread, is closed
                    each.loop.call_soon_threadsafe(upkeep.hurry)

    @property
    def is_without_worker(self) -> bool:
        """Whether no worker can receive what is sent: only this process could have one."""
        return self.broker.is_local and all(each._upkeep is None for each in self.tasks.connections)  # noqa: SLF001 - the same class

    def seconds(self, name: str, value: float | timedelta | None) -> float | None:
        """Return a duration in seconds. Raises `ConfigurationError`."""
        where = f"tasks {self.tasks.name!r}"
        return None if value is None else check_seconds(name, value, where, zero=True)

    # Messages

    async def publish(self, pending: Pending) -> None:
        """Publish the message of an outbox entry, under its key as its id."""
        node, entry = pending.node, pending.entry
        if node is None or node.has_ended:
            return  # it was cancelled, or removed, meanwhile
        options: PublishOptions = {"id": entry.key}
        if node.ttl is not None and not node.copies and not entry.run:
            left = node.ttl - (self.clock.now() - entry.written)
            if _is_woken(pending) and node.state is not State.RETRYING:
                left = min(left, node.due - node.delay + node.ttl - self.clock.now())
            if left <= 0:
                await self._expire(pending)
                return
            options["ttl"] = left
        if (delay := self._delay(node)) > 0:
            options["delay"] = delay
        if _is_woken(pending) and node.attempt > 1:
            await self._send_attempt(node, entry.run, options)
        else:
            await self._send(node, entry.run, options)

    async def _send_attempt(self, node: Node, run: int, more: PublishOptions) -> None:
        """Publish the message of an attempt that is not the first one."""
        call, options = self._message(node, run)
        queue, attempt = self.tasks.queue(node.queue), node.attempt
        await session_of(self.broker).publisher.publish_message(
            queue, call, lambda message: replace(message, attempt=attempt), options | more
        )

    async def _expire(self, pending: Pending) -> None:
        """End a task whose message waited in the outbox until its expiry."""
        node = pending.node
        if node is not None and node.state in {State.SCHEDULED, State.QUEUED}:
            reason = f"{Reason.EXPIRED.value}: it waited in the outbox for {node.ttl:g} s"
            await self.writer.apply(Gone(node.id, pending.entry.run, State.EXPIRED, reason))

    def _delay(self, node: Node) -> float:
        if node.delay <= 0 or node.copies:
            return 0.0
        return min(node.delay, max(node.due - self.clock.now(), 0.0))

    async def _send(self, node: Node, run: int, more: PublishOptions) -> None:
        call, options = self._message(node, run)
        await self.broker.publish(self.tasks.queue(node.queue), call, **(options | more))

    def _message(self, node: Node, run: int) -> tuple[TaskCall, PublishOptions]:
        payload = node.payload.decode()
        is_step = payload.startswith(STEP)
        call = TaskCall(node.id, node.name, run, payload.removeprefix(STEP), is_step)
        options: PublishOptions = {"headers": {HEADER: node.name}}
        if node.priority is not None:
            options["priority"] = node.priority
        if node.ttl is not None and not run:  # a redrive clears the expiry (G6)
            options["ttl"] = node.ttl
        return call, options

    def has_concluded(self, conclusion: Conclusion) -> bool:
        """Whether a message has ended on this broker."""
        return conclusion._connection is session_of(self.broker).connection  # noqa: SLF001 - our own

    def limits_of(self, run: Run) -> tuple[RateLimit | None, SlotLimit | None]:
        """Return what the task of a run may have to wait for."""
        takes_over = self._upkeep is not None and self._upkeep.is_steady
        return rate_of(run.task, run.call), slot_of(run.task, run.call, takes_over=takes_over)

    def call_of(self, ctx: Context) -> TaskCall | HandlerResult:
        """Return what a message says, or why it cannot be read."""
        if isinstance(ctx.payload, TaskCall):
            return ctx.payload
        payload = self.tasks.queue(ctx.queue).payload
        found: Any = session_of(self.broker).inbound.decoded(payload, ctx.delivery.message)
        return found  # type: ignore[no-any-return]  # of the queue's own type, or a HandlerResult

    def with_call(self, delivery: Delivery, call: TaskCall) -> Delivery:
        """Return the delivery with another call, for a process of its own."""
        payload = self.tasks.queue("").payload
        body, kind = payload.encode(call, session_of(self.broker).codecs)
        message = replace(delivery.message, body=body, content_type=kind, encoding=None)
        return replace(delivery, message=message)

    # Sending

    def check(self, rows: Rows) -> None:
        """Raise what publishing these tasks would, before they are stored."""
        for part in rows.parts:
            self._check(part)

    def _check(self, rows: Sequence[Node]) -> None:
        check_depth(rows)
        composer = session_of(self.broker).publisher.composer
        for node in rows:
            if node.ttl is not None or node.delay > 0 or len(node.payload) > _LARGE:
                call, options = self._message(node, 0)
                if node.delay > 0:
                    options["delay"] = node.delay
                composer.message(self.tasks.queue(node.queue), call, options)

    async def add(self, rows: Sequence[Node], *, has_more: bool = False) -> Outcome:
        """Insert the rows of a workflow, and return the outcome."""
        self._warn_of_no_broker(rows)
        task = self.tasks.find(rows[0].name) if rows[0].unique else None
        unique = None if task is None else task.unique
        waits = unique is not None and unique.policy == "postpone"
        return await self._send_part(Add(rows, waits), has_more=has_more)

    def _warn_of_no_broker(self, rows: Sequence[Node]) -> None:
        """Warn once that no worker of another process gets what is sent to the default broker."""
        if not self.is_without_worker:
            return
        session = session_of(self.broker)
        if session.is_unconfigured:
            session.is_unconfigured = False
            log().warning(
                "task %r is sent to memory://, because no broker is configured: a worker in "
                "another process does not get it. Name the broker: MQCORE_URL, url in mqcore.toml, "
                "or app.connect(url). If memory:// is meant, name that",
                rows[0].name or rows[0].kind.value,
            )

    async def _send_part(self, change: Change, *, has_more: bool) -> Outcome:
        """Make a change, and wait until it is published.

        When more follows, not for long: a slow broker must not keep the next batch of a group back
        until the group counts as abandoned.
        """
        answered, published = self.writer.put(change)
        (outcome,) = await answered
        with suppress(TimeoutError):
            async with self.clock.timeout(_BATCH if has_more else None):
                await published.wait()
        return outcome

    async def replace(self, rows: Sequence[Node], holder: str, plan: Plan) -> Job[Any]:
        """Cancel the open task with the same unique key, and send this one when that has ended.

        `rows`: the task, and the calls that follow its end.
        """
        row = rows[0]
        while True:
            cancel = Cancel(holder, f"replaced by {row.id}")
            _, outcome = await self.writer.apply(cancel, Add(rows))
            if not isinstance(outcome, Conflict):
                return Job(self.tasks, row.id, plan)
            if outcome.holder != holder:  # another sender was faster: its task is replaced too
                holder = outcome.holder
                continue

            with suppress(UnknownTask):  # removed meanwhile, so the key is free
                await self._wait_for_end(row, holder)

    async def _wait_for_end(self, row: Node, holder: str) -> None:
        try:
            await self.results.end_of(holder, _REPLACED)
        except TimeoutError:
            raise DuplicateTask(
                f"task {row.name!r} is not sent: {holder} has the same unique key, and has not "
                f"ended {_REPLACED:g} s after it was cancelled",
                holder,
            ) from None

    async def send_batches(self, batches: Sequence[tuple[str, Sequence[Node], bool]]) -> None:
        """Add the members of large groups. Each batch is one transaction.

        Raises `TaskCancelled` when the group was given up, because this took too long.
        """
        for number, (group, rows, is_last) in enumerate(batches, 1):
            more = More(group, rows, is_last)
            outcome = await self._send_part(more, has_more=number < len(batches))
            if isinstance(outcome, Closed):
                await self._check_given_up(group)

    async def _check_given_up(self, group: str) -> None:
        """Raise unless a group takes no more members because it was cancelled or has ended."""
        node = await self.results.node(group)
        if node.reason == ABANDONED:
            raise await error_of(self.store, node)

    async def send_unstored(self, rows: Sequence[Node]) -> None:
        """Publish a task that no store knows."""
        (node, *others) = rows
        task = self.tasks.find(node.name)
        is_limited = task is not None and (task.rate or task.slots)
        if others or node.unique or is_limited or node.kind is not Kind.TASK:
            raise UnsupportedFeature(
                f"tasks {self.tasks.name!r}: workflows, unique=, rate= and slots= need a store: "
                'Tasks(..., store="sqlite:///tasks.db")'
            )
        options: PublishOptions = {"id": f"{node.id}:0"}
        if node.delay > 0:
            options["delay"] = node.delay
        await self._send(node, 0, options)
