"""What a worker does around each run of a task: begin, run, end, publish, acknowledge.

    message ─► Begin ─► the task ─► End | Back | Replace ─► published ─► acknowledged
                                      └── in one transaction with what follows from it

It is the outermost middleware around the handler. The task of a message that ends without a run is
ended by the conclusion hook, just before the message is dead-lettered.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from mqcore.consuming.replies import EncodedResult
from mqcore.errors import MqcoreError, Postpone, Reject
from mqcore.log import log
from mqcore.messages.message import Reason, new_id
from mqcore.middleware import Middleware
from mqcore.rules.checks import closest
from mqcore.rules.results import ChildRunFailed, result_of
from mqcore.rules.retry import Ending, Failure, HandlerResult
from mqcore.tasks.context import Replacement, TaskContext
from mqcore.tasks.errors import TaskCancelled, TaskFailed, UnknownTask
from mqcore.tasks.leftovers import Leftovers
from mqcore.tasks.model.changes import Back, Begin, Change, End, Gone, Replace
from mqcore.tasks.model.nodes import Kind, Node, replacement_id
from mqcore.tasks.model.outcomes import (
    Busy,
    Conflict,
    Ended,
    Later,
    Ok,
    Refused,
    Stale,
    Started,
    Terminal,
    Unknown,
)
from mqcore.tasks.model.states import State
from mqcore.tasks.plans import STEP, rows_of
from mqcore.tasks.progress import ProgressReports
from mqcore.tasks.results import input_text
from mqcore.tasks.run import Interruptible, Run, TaskCall
from mqcore.tasks.store.seam import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqcore.consuming.conclusions import Conclusion
    from mqcore.consuming.context import Context
    from mqcore.tasks.connected import Connected
    from mqcore.tasks.model.outcomes import Outcome

__all__ = ["TaskRuns", "conclude"]

_STORE_AWAY = 2.0
"""Seconds after which a message comes back that found the store away."""
_BUSY = 15.0
"""Seconds until a message comes again whose task is running elsewhere, or is concluded again."""
_LOGGED = {Ending.FAILED, Ending.TIMED_OUT, Ending.CRASHED}
_RETRIED = {Ending.FAILED, Ending.RETRY, Ending.TIMED_OUT, Ending.CRASHED}


class TaskRuns(Middleware):
    """The runs of one connection's workers."""

    def __init__(self, connected: Connected) -> None:
        """Made when an app with tasks connects."""
        self._connected = connected
        self.running: dict[str, Run] = {}
        """The runs under way, by their tokens."""
        self.leftovers = Leftovers()

    async def handle(
        self, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
    ) -> object:
        """Run a message of a task; pass on every other one."""
        if ctx.queue not in self._connected.tasks.queues:
            return await call_next(ctx)

        call = self._connected.call_of(ctx)
        if isinstance(call, HandlerResult):
            raise ChildRunFailed(call)
        await self.run_call(call, ctx, call_next)
        return None

    async def run_call(
        self, call: TaskCall, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
    ) -> None:
        """Run a task. Raises what settles its message; returns when that is acknowledged."""
        task = self._connected.tasks.find(call.name)
        if task is None:
            close = closest(call.name, self._connected.tasks.registered)
            hint = f" (the closest one is {close!r})" if close else ""
            raise Reject(
                f"no task named {call.name!r:.100} is registered in this worker{hint}. Deploy its "
                "code here, name its module in Tasks(..., include=[...]), then redrive the dead "
                "letter"
            )

        context = TaskContext(
            id=call.task,
            name=call.name,
            queue=ctx.queue,
            attempt=ctx.attempt,
            run=call.run + ctx.redriven,
            state=ctx.state,
        )
        run = Run(task, call, context)
        if not self._connected.has_store:
            await self._run(run, ctx, call_next)
            return

        token = new_id()
        try:
            if await self._begin(run, ctx, token):
                await self._run(run, ctx, call_next)
        finally:
            if not run.has_left:
                back = Back(call.task, context.run, token, State.QUEUED)
                self.leftovers.add(back, run.begun)

    # Beginning

    async def _begin(self, run: Run, ctx: Context, token: str) -> bool:
        """Begin the attempt; whether it is to run. Raises what settles the message otherwise."""
        call, context = run.call, run.context
        begin = Begin(
            call.task,
            context.run,
            ctx.attempt,
            token,
            self._connected.worker,
            _missing(call, ctx) if context.run else None,
            ctx.delivery.redelivered,
            *self._connected.limits_of(run),
        )
        before = self.leftovers.due(call.task)
        run.begun = self._connected.writer.put(*before, begin)[0]
        try:
            outcome = (await asyncio.shield(run.begun))[-1]
        except StoreError as error:
            raise Postpone(_STORE_AWAY) from error

        self.leftovers.confirm(before)
        if isinstance(outcome, Started):
            run.node = outcome.node
            return True
        run.has_left = True
        if isinstance(outcome, Later):
            if outcome.delay is not None:
                raise Postpone(outcome.delay)
            return False  # the store publishes it again when a slot is free
        if isinstance(outcome, Busy):
            raise Postpone(_BUSY)
        _check_outcome(outcome, call)
        return False

    async def _fill(self, run: Run, ctx: Context) -> None:
        """Give the run what comes from the store: the result of the step before."""
        node = run.node
        if node is None:
            return
        connected = self._connected
        run.progress = ProgressReports(node, connected.writer, connected.clock)
        run.context.row, run.context._keep = node, run.progress.keep  # noqa: SLF001 - as below
        run.context._report = run.progress.report  # noqa: SLF001 - the worker completes it
        if run.call.is_step and node.input:
            try:
                before = await connected.results.node(node.input)
                run.call = replace(
                    run.call, given=await input_text(connected.store, before, node.id)
                )
            except StoreError as error:
                raise Postpone(_STORE_AWAY) from error
            except (TaskFailed, UnknownTask) as error:
                raise Reject(f"the step before has no result: {error}") from error
            if run.task.mode == "process":
                ctx.delivery = connected.with_call(ctx.delivery, run.call)

    # Running

    async def _run(
        self, run: Run, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
    ) -> None:
        token = new_id() if run.node is None else run.node.token
        self.running[token] = run
        run.running = asyncio.current_task()
        ctx.payload = run
        soft = self._watch_soft_timeout(run)
        try:
            try:
                await self._fill(run, ctx)
                value = await call_next(ctx)
            finally:  # what ends the run is not to be interrupted
                del self.running[token]
                if soft is not None:
                    soft.cancel()
        except BaseException as error:  # noqa: BLE001 - a task may raise anything; its message bears it
            await self._failed(run, ctx, error)
        else:
            await self._succeeded(run, ctx, value)
        finally:
            if run.progress is not None:
                run.progress.close()

    def _watch_soft_timeout(self, run: Run) -> asyncio.Task[None] | None:
        limit = run.task.soft_timeout
        if limit is None or run.task.mode == "process":
            return None

        async def watch() -> None:
            await self._connected.clock.sleep(limit)
            run.context.timed_out = True
            for part in run.parts:
                if isinstance(part, Interruptible) and run.running is not None:
                    part.interrupt(run.running)

        return asyncio.create_task(watch())

    # Ending

    async def _apply(self, run: Run, change: Change) -> Outcome:
        """Make the change that ends the attempt, after the last report of its progress."""
        last = [] if run.progress is None else run.progress.last()
        try:
            outcome = (await self._connected.writer.apply(*last, change))[-1]
        except StoreError as error:
            raise Postpone(_STORE_AWAY) from error
        run.has_left = True
        return outcome

    async def _leave(self, run: Run, change: Change) -> Outcome:
        """End the attempt. One that has lost its task is answered with what the row says.

        While that goes on elsewhere the message is postponed: it may be the only one that is left.
        """
        outcome = await self._apply(run, change)
        if not isinstance(outcome, Refused):
            return outcome
        try:
            (node,) = await self._connected.store.nodes([run.call.task])
        except StoreError as error:
            raise Postpone(_STORE_AWAY) from error

        if node is None or node.kind is not Kind.TASK or node.run != run.context.run:
            return Stale()
        if not node.has_ended:
            raise Postpone(_BUSY)
        return Terminal(node.state)

    async def _succeeded(self, run: Run, ctx: Context, value: object) -> None:
        node = run.node
        if node is None:
            return
        if isinstance(value, Replacement):
            await self._replaced(run, ctx, node, value)
            return
        result = value.body if isinstance(value, EncodedResult) else value
        assert isinstance(result, bytes)  # noqa: S101 - our own handlers return nothing else
        await self._leave(run, End(node.id, node.run, node.token, State.SUCCEEDED, result))

    async def _replaced(self, run: Run, ctx: Context, node: Node, value: Replacement) -> None:
        rows = rows_of(value.call.plan, replacement_id(node.id), node.id)
        try:
            self._connected.check(rows)
        except MqcoreError as error:
            await self._failed(run, ctx, Reject(str(error)))
            return
        outcome = await self._leave(run, Replace(node.id, node.run, node.token, rows.first))
        if isinstance(outcome, Ok):
            await self._connected.send_batches(rows.batches)

    async def _failed(self, run: Run, ctx: Context, error: BaseException) -> None:
        """Leave or end the attempt as core will settle its message. Raises, unless it is done."""
        _log_failure(run, ctx, error)
        node = run.node
        if node is None:
            raise error
        is_asked = isinstance(error, (asyncio.CancelledError, TaskCancelled))
        if run.is_cancelled and is_asked:
            _uncancel()
            await self._leave(run, End(node.id, node.run, node.token, State.CANCELLED))
            return

        if isinstance(error, asyncio.CancelledError):
            # The worker stops, or its lease is lost. The message goes to another one.
            with suppress(StoreError, Postpone):
                await self._apply(run, Back(node.id, node.run, node.token, State.QUEUED))
            raise error

        result = result_of(error)
        if result.ending is Ending.POSTPONED:
            delay = result.delay or 0.0
            back = Back(node.id, node.run, node.token, State.QUEUED, delay)
            self._settle(await self._leave(run, back), run, error)
            return

        policy = run.task.retry
        retries = result.ending is not Ending.FAILED or policy.retries(result.failure)
        if not retries or ctx.attempt >= policy.max_attempts or result.ending not in _RETRIED:
            reason = _reason(result, retries=retries)
            failed = End(node.id, node.run, node.token, State.FAILED, None, reason)
            self._settle(await self._leave(run, failed), run, error)
            return

        wait = result.delay
        if wait is None:
            wait = policy.backoff.wait(ctx.attempt, random.random())
        back = Back(node.id, node.run, node.token, State.RETRYING, wait)
        again = ChildRunFailed(replace(result, delay=wait))
        again.__cause__ = error
        self._settle(await self._leave(run, back), run, again)

    def _settle(self, outcome: Outcome, run: Run, error: BaseException) -> None:
        """Raise the error, unless the task was cancelled or has ended elsewhere."""
        if isinstance(outcome, (Ok, Ended)):
            raise error
        _check_outcome(outcome, run.call)


def _log_failure(run: Run, ctx: Context, error: BaseException) -> None:
    """Log what a task has raised, with its name, beside core's event of the message."""
    result = result_of(error)
    if result.ending not in _LOGGED or isinstance(error, asyncio.CancelledError):
        return
    about = "task %s (%s) of queue %r failed in attempt %d"
    facts = run.call.name, run.call.task, ctx.queue, ctx.attempt
    if isinstance(error, ChildRunFailed) and result.failure is not None:  # in a process of its own
        log().warning(f"{about}: %s: %s", *facts, result.failure.type, result.failure.text)
    else:
        log().warning(about, *facts, exc_info=error)


def _uncancel() -> None:
    """Keep our own cancellation from reaching the settlement."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def _missing(call: TaskCall, ctx: Context) -> Node:
    """Return the row of a task as its message describes it, should it have been removed."""
    payload = f"{STEP if call.is_step else ''}{call.arguments}".encode()
    return Node(
        id=call.task, name=call.name, queue=ctx.queue, payload=payload, priority=ctx.priority
    )


def _check_outcome(outcome: Outcome, call: TaskCall) -> None:
    """Raise `Reject` where the message of a task that does not start is dead-lettered.

    One that has failed or expired is dead-lettered again: the process that ended it may have died
    before that.
    """
    match outcome:
        case Terminal(state=State.FAILED | State.EXPIRED as state):
            raise Reject(f"task {call.task} is {state}")
        case Unknown():
            raise Reject(
                f"task {call.task} is not in the store of this worker. Is store= the same as "
                "that of the sender?"
            )
        case Conflict(holder=holder):
            raise Reject(f"task {call.task}: its unique key belongs to the open task {holder}")


async def conclude(connected: Connected, items: Sequence[Conclusion]) -> None:
    """End the tasks whose messages end here without success: the conclusion hook.

    A run that has failed has ended its task already, and this changes nothing. While another copy
    of the message is running, this one is concluded again later.
    """
    ended, changes = [], []
    for each in items:
        task, _, run = each.id.partition(":")
        number = run.partition(":")[0]
        if each.outcome == "done" or not number.isdecimal():
            continue
        state = State.EXPIRED if each.reason == "expired" else State.FAILED
        reason = _described(each.reason, each.error_type, each.error)
        changes.append(Gone(task, int(number) + each.redriven, state, reason))
        ended.append(each)

    outcomes = await connected.writer.apply(*changes) if changes else ()
    for each, outcome in zip(ended, outcomes, strict=True):
        if isinstance(outcome, Busy):
            each.postpone(_BUSY)


_REASONS = {
    Ending.RETRY: Reason.RETRIES_EXHAUSTED,
    Ending.TIMED_OUT: Reason.TIMEOUT,
    Ending.CRASHED: Reason.CRASHED,
    Ending.FAILED: Reason.RETRIES_EXHAUSTED,
    Ending.INVALID: Reason.INVALID,
    Ending.UNDECODABLE: Reason.UNDECODABLE,
}


def _reason(result: HandlerResult, *, retries: bool) -> str:
    """Return why a run has failed for good, in core's words (G11)."""
    reason = _REASONS.get(result.ending, Reason.REJECTED)
    if result.ending is Ending.FAILED and not retries:
        reason = Reason.REJECTED
    failure = result.failure or Failure((), "")
    return _described(reason.value, failure.type, failure.text)


def _described(reason: str, type: str, text: str) -> str:  # noqa: A002 - the exception's type name
    return f"{reason}: {type}: {text}" if type or text else reason
