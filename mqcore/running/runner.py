"""Runs a registered handler: one task for each message or batch.

    Receiver.next ─► undo, decode ─► middleware ─► executor ─► Receiver.conclude

Whatever a handler raises, `SystemExit` included, becomes the result of its message and of nothing
else (G4).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mqcore.consuming.consumer import Received, received
from mqcore.consuming.context import Context
from mqcore.consuming.grace import CLEANED_UP
from mqcore.consuming.starts import note_starts
from mqcore.messages.codec import Payload
from mqcore.rules.results import result_of
from mqcore.rules.retry import Ending, HandlerResult
from mqcore.running.courses import Courses
from mqcore.running.once import Once, OnceResult
from mqcore.spi import Recorded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqcore.consuming.grace import Grace
    from mqcore.consuming.held import HeldDelivery
    from mqcore.consuming.receiver import Receiver
    from mqcore.consuming.replies import EncodedResult
    from mqcore.middleware import Middleware
    from mqcore.publishing.publisher import Publisher
    from mqcore.rules.inbound import Inbound
    from mqcore.running.courses import Course
    from mqcore.running.handlers import HandlerSpec
    from mqcore.spi import Inbox

__all__ = ["Runner"]

_ANY: Payload[Any] = Payload(Any)
_SUCCEEDED, _INTERRUPTED = HandlerResult(Ending.SUCCEEDED), HandlerResult(Ending.INTERRUPTED)


class Runner:
    """One registered handler at work on one receiver."""

    def __init__(
        self,
        spec: HandlerSpec,
        receiver: Receiver,
        *,
        publisher: Publisher,
        inbound: Inbound,
        middleware: Sequence[Middleware] = (),
        state: Any = None,
        inbox: Inbox | None = None,
    ) -> None:
        """`middleware` runs around the handler, the first outermost, the time limit innermost.

        `inbox` is for a handler with `once=`.
        """
        self.spec = spec
        self.receiver = receiver
        self.handled = 0
        """How many runs of the handler have ended, however they did."""
        self.on_ended: Callable[[], None] | None = None
        self._publisher = publisher
        self._inbound = inbound
        self._state = state
        self._clock = receiver.clock
        self._events = receiver.events
        self._loop = asyncio.get_running_loop()
        self._freed = asyncio.Event()
        self._courses = Courses(
            spec,
            receiver.clock,
            inbound.codecs,
            middleware=middleware,
            freed=self._free,
            has_sessions=inbox is not None and inbox.has_sessions,
        )
        self._own = self._courses.own
        self._once: Once | None = None
        if spec.once is not None and inbox is not None:
            pool = self._courses.executor.pool
            self._once = Once(spec, spec.once, inbox, receiver.clock, pool)
        self._has_profiles = spec.profile is not None
        self._slots = self._courses if self._has_profiles else self._courses.executor
        self._halted = asyncio.Event()
        self._running: dict[asyncio.Task[None], Sequence[HeldDelivery]] = {}
        self._cancellable: set[asyncio.Task[None]] = set()
        self._interrupted: set[asyncio.Task[None]] = set()
        self._grace_is_over = False
        if self._has_profiles:
            receiver.choose = self._courses.choose
        if spec.conclusion is not None:
            receiver.conclude_through(spec.conclusion, self._returned)

    def _returned(self, result: EncodedResult) -> Any:
        """Return what a handler in a process has returned, as plain data."""
        return _ANY.decode(result.body, result.content_type, self._inbound.codecs)

    @property
    def running(self) -> int:
        """How many runs of the handler are under way."""
        return len(self._running)

    async def start(self) -> None:
        """Make ready and subscribe. Raises what prevents it."""
        await self._courses.start()
        await self.receiver.start()

    async def run(self) -> None:
        """Start handlers as messages and slots allow, until the receiver is stopped.

        Raises what ended consuming.
        """
        slots = self._slots
        handle = self._handle_by_profile if self._has_profiles else self._handle
        while True:
            while (
                len(self._running) + slots.stuck >= self.spec.concurrency
                and not self.receiver.stopped
            ):
                self._freed.clear()
                await self._freed.wait()
            if self.receiver.stopped:
                return
            await slots.ready(len(self._running))
            if self.spec.batch:
                batch = await self.receiver.next_batch(self.spec.batch, self.spec.linger)
                work = self._handle_batch(batch)
            else:
                held = await self.receiver.next()
                batch = [held] if held is not None else []
                work = handle(held) if held is not None else _nothing()
            if not batch:
                work.close()
                return
            task = self._loop.create_task(work)
            self._running[task] = batch
            task.add_done_callback(self._ended)

    def _free(self) -> None:
        """A slot may be free again."""
        self._freed.set()
        if self.receiver.is_full:
            self._look_whether_full()

    def _look_whether_full(self) -> None:
        """After a shrink a message must not be handed out while too many run."""
        is_full = len(self._running) + self._slots.stuck >= self.spec.concurrency
        self.receiver.is_full = is_full
        if not is_full:
            self.receiver.wake()

    async def resize(self, concurrency: int, prefetch: int) -> None:
        """Run at most so many handlers at once, and hold at most so many messages, from now on.

        Handlers that run go on. Raises what prevents a new subscription; nothing is changed then.
        """
        await self.receiver.resize(prefetch)
        self.spec = replace(self.spec, concurrency=concurrency, prefetch=prefetch)
        self._courses.resize(concurrency)
        self._look_whether_full()
        self._freed.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        batch = self._running.pop(task)
        for held in batch:
            self.receiver.leave(held)
        self.handled += 1
        if self.on_ended is not None:
            self.on_ended()
        self._free()
        if not task.cancelled() and (error := task.exception()) is not None:
            for held in batch:
                self.receiver.fail(held, error)

    async def _handle_by_profile(self, held: HeldDelivery) -> None:
        """Run one message on the course of its profile.

        Preparing that may take a while, and the message may have expired or be lost by then.
        """
        course = self._courses.of(held)
        await self._courses.enter(course, self._halted)
        try:
            if self.receiver.may_still_start(held):
                await self._handle(held)
        finally:
            self._courses.leave(course)

    async def _handle(self, held: HeldDelivery) -> None:
        """Run the handler with one message and settle it."""
        if self.receiver.stopped:  # stopped since it was picked (G13)
            self.receiver.release(held)
            return

        if self.spec.ack_first:
            # A message that may come again has not been begun by any handler: at most once (G2).
            if await self.receiver.acknowledge(held) and self._may_start_acknowledged(held):
                await self._run_once(held)
            return
        if self.receiver.rules.notes_each and not await note_starts(self.receiver, [held]):
            return

        began = self._clock.monotonic()
        result, value = await self._run_once(held)
        took = self._clock.monotonic() - began
        reply = None
        if self._once is not None and isinstance(value, OnceResult):
            if value.recorded is Recorded.DUPLICATE:
                self.receiver.skip(held)
                return
            if value.recorded is Recorded.LOST:
                held.lose()
                return
            if value.recorded is Recorded.ACKNOWLEDGED:
                held.subscription.acknowledged.add(held)
            result, reply, value = value.failed or result, value.reply, value.value
        await self.receiver.conclude(held, result, value, reply=reply, seconds=took)

    def _may_start_acknowledged(self, held: HeldDelivery) -> bool:
        """Check again after the acknowledgement: expiry and the grace may be over (G6, G13).

        The message is acknowledged, so one that may not start is gone.
        """
        if held.expired(self._clock.monotonic()):
            reason = "expired"
            error = "it expired while it was acknowledged, before its handler was started"
        elif self._grace_is_over:
            reason = ""
            error = (
                "the grace of the worker ended while it was acknowledged, before its handler was "
                "started"
            )
        else:
            return True

        message = held.delivery.message
        self._events.emit(
            "message.dropped",
            self.spec.queue.name,
            message.id,
            message.attempt,
            reason=reason,
            error=error,
        )
        return False

    async def _run_once(self, held: HeldDelivery) -> tuple[HandlerResult, object]:
        """Run the handler once; return its result, and what it returned."""
        delivery = self._inbound.opened(held.delivery)
        if isinstance(delivery, HandlerResult):
            return delivery, None

        ctx = Context(self.spec.queue.name, delivery, self._publisher, self._state)
        course = self._own if held.profile is None else self._courses.of(held)
        if course.mode != "process":  # a process decodes by itself
            ctx.payload = self._inbound.decoded(self.spec.payload, delivery.message)
            if isinstance(ctx.payload, HandlerResult):
                return ctx.payload, None
        call = None
        if self._once is not None:
            prepare = self.receiver.final.prepared
            call = partial(self._once.run, held, course.call, prepare)
        return await self._watched([held], ctx, course, call)

    async def _watched(
        self,
        batch: Sequence[HeldDelivery],
        ctx: Context,
        course: Course,
        call: Callable[[Context], Awaitable[object]] | None = None,
    ) -> tuple[HandlerResult, object]:
        """Run the chain of middlewares; only a drain or a lost lease may cancel it."""
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 - we are in one

        longest = None if course.timeout is None else course.timeout + self.spec.lease
        for held in batch:
            self.receiver.begin(held, partial(self._lost, task, ctx, held), longest)

        self._cancellable.add(task)
        try:
            result, value = _SUCCEEDED, await (call or course.call)(ctx)
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything; its message bears it
            # A handler that cancels itself has failed (G4).
            is_ours = isinstance(error, asyncio.CancelledError) and task in self._interrupted
            result, value = _INTERRUPTED if is_ours else result_of(error), None
        self._cancellable.discard(task)
        self._interrupted.discard(task)

        for held in batch:
            self.receiver.end(held)
        if task.cancelling():
            await _at_rest(task)
        return result, value

    def _interrupt(self, task: asyncio.Task[None]) -> None:
        self._interrupted.add(task)
        task.cancel()

    def _lost(self, task: asyncio.Task[None], ctx: Context, held: HeldDelivery) -> None:
        """The lease is lost: cancel an async handler, and only mark the context of a thread (G5).

        Other messages do not wait for it at the isolation lock any longer.
        """
        ctx.lose_lease()
        self.receiver.leave(held)
        if self._courses.of(held).mode == "async" and task in self._cancellable:
            self._interrupt(task)

    async def _handle_batch(self, batch: Sequence[HeldDelivery]) -> None:
        """Run the handler with a list; what it has not settled itself shares the result."""
        if self.receiver.stopped:  # as in `_handle`
            for held in batch:
                self.receiver.release(held)
            return
        if self.receiver.rules.notes_each:
            batch = await note_starts(self.receiver, batch)

        began = self._clock.monotonic()
        items = await self._read(batch)
        if not items:
            return

        ctx = Context(self.spec.queue.name, items[0].delivery, self._publisher, self._state)
        ctx.payload = items
        call = None
        if self._once is not None:
            call = partial(self._once.run_batch, items, self._own.call)
        result, ended = await self._watched([item.held for item in items], ctx, self._own, call)
        took = self._clock.monotonic() - began

        if self._once is not None:
            await self._end_transaction(items, result, ended, took)
            return
        unsettled = [item for item in items if not item.finished]
        for item in unsettled:
            item.finished = True
        await self._conclude_all([(item.held, result) for item in unsettled], took)

    async def _end_transaction(
        self, items: Sequence[Received[Any]], result: HandlerResult, ended: Any, seconds: float
    ) -> None:
        """Settle a batch with `once=`; `ended` is what `Once.run_batch` has returned, or None.

        What the handler asks for an item holds, whatever becomes of the transaction.
        """
        results: list[tuple[HeldDelivery, HandlerResult]] = []
        for item, recorded in zip(items, ended or [None] * len(items), strict=True):
            held, own = item.held, item.held.own_result
            held.is_in_transaction, item.finished = False, True
            if own is not None and own.ending is not Ending.SUCCEEDED:
                results.append((held, own))
            elif recorded is Recorded.DUPLICATE:
                self.receiver.skip(held)
            elif recorded is Recorded.LOST:
                held.lose()
            elif recorded is Recorded.ROLLED_BACK:
                results.append((held, _INTERRUPTED))
            else:
                if recorded is Recorded.ACKNOWLEDGED:
                    held.subscription.acknowledged.add(held)
                results.append((held, result))
        await self._conclude_all(results, seconds)

    async def _read(self, batch: Sequence[HeldDelivery]) -> list[Received[Any]]:
        """Return the items that can be read, and settle the others."""
        items: list[Received[Any]] = []
        unreadable: list[tuple[HeldDelivery, HandlerResult]] = []
        for held in batch:
            try:
                item = received(self.spec.queue, held, self._inbound, self.receiver, self._state)
            except Exception as error:  # noqa: BLE001 - an error of ours ends this message and no other
                self.receiver.fail(held, error)
                continue

            if isinstance(item, HandlerResult):
                unreadable.append((held, item))
            else:
                items.append(item)
        await self._conclude_all(unreadable, 0.0)
        return items

    async def _conclude_all(
        self, results: Sequence[tuple[HeldDelivery, HandlerResult]], seconds: float
    ) -> None:
        """Conclude items of a batch; with a hook together, so that it is called once."""
        if self.receiver.final.conclusions is None:
            for held, result in results:
                await self.receiver.conclude_safely(held, result, seconds=seconds)
            return

        concluding = (
            self.receiver.conclude_safely(held, result, seconds=seconds) for held, result in results
        )
        await asyncio.gather(*concluding)

    def halt(self) -> None:
        """Start nothing from now on. `drain` does the rest."""
        self.receiver.halt()
        self._halted.set()
        self._freed.set()

    async def drain(self, grace: Grace) -> int:
        """Let running handlers end within the grace, then release what is unfinished (G13).

        What remains of the grace is for the broker's answers to settlements. Returns how many
        handlers were unfinished.
        """
        self._halted.set()
        await self.receiver.stop()
        self._freed.set()
        if self._running and not grace.over:
            self._events.emit(
                "consumer.draining", self.spec.queue.name, handlers=len(self._running)
            )
        await grace.wait(tuple(self._running), 0.0)

        self._grace_is_over = True
        unfinished = list(self._running)
        for task in self._cancellable & set(unfinished):
            self._interrupt(task)
        if unfinished:
            await grace.wait(unfinished, CLEANED_UP)

        await self.receiver.close(grace)
        await self._courses.close()
        return len(unfinished)


async def _nothing() -> None:
    """What runs when there is no message."""


async def _at_rest(task: asyncio.Task[None]) -> None:
    """Keep a cancellation that the handler asked for from reaching the settlement."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)  # one that a handler asked for and returned without meeting
    while task.cancelling():
        task.uncancel()
