"""Where a handler runs: in the event loop, in a thread, or in a process of its own (G4)."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from mqcore.consuming.replies import EncodedResult
from mqcore.errors import ConfigurationError
from mqcore.log import log
from mqcore.rules.results import ChildRunFailed
from mqcore.rules.retry import Ending, Failure, HandlerResult
from mqcore.running.pinned import current_thread
from mqcore.running.process_slot import ProcessSlot, SlotDied, SlotRequest
from mqcore.running.threads import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.clock import Clock
    from mqcore.consuming.context import Context
    from mqcore.messages.codec import Codecs
    from mqcore.running.handlers import HandlerSpec

__all__ = ["Executor", "executor_for"]


_FIRST_WAIT, _LAST_WAIT = 0.1, 10.0


class Executor(Protocol):
    """Runs one handler, at most `concurrency` times at once: the runner sees to that."""

    @property
    def pool(self) -> ThreadPool | None:
        """The threads of a blocking handler."""

    @property
    def stuck(self) -> int:
        """How many slots are taken by runs that are not waited for any more."""

    async def start(self) -> None:
        """Make ready. Raises `ConfigurationError` when the handler cannot run there."""

    async def ready(self, handed: int, /) -> None:
        """Return when a run could start at once, so that no message waits for preparations.

        `handed` messages are being handled, some of them perhaps on their way to `run`.
        """

    async def run(self, ctx: Context) -> Any:
        """Run the handler once and return what it returns; raises what it raises.

        Cancelling ends it as far as that is possible.
        """

    def resize(self, concurrency: int, /) -> None:
        """Run at most so many at once from now on. What runs goes on."""

    async def close(self) -> None:
        """End what is idle, and kill what can be killed."""


def executor_for(
    spec: HandlerSpec,
    clock: Clock,
    codecs: Codecs,
    freed: Callable[[], None],
    *,
    has_sessions: bool = False,
) -> Executor:
    """Return the executor for a handler.

    It calls `freed` when a stuck slot may be free again. With `has_sessions`, a blocking handler
    runs in the thread of its transaction.
    """
    if spec.mode == "process":
        return _Processes(spec, clock, codecs)
    if spec.mode == "async":
        return _Coroutines(spec)
    return _PinnedThreads(spec, clock, freed) if has_sessions else _Threads(spec, clock, freed)


class _Coroutines:
    """In the event loop."""

    pool = None
    stuck = 0

    def __init__(self, spec: HandlerSpec) -> None:
        self._spec = spec

    async def start(self) -> None:
        return

    async def ready(self, _handed: int, /) -> None:
        return

    async def run(self, ctx: Context) -> Any:
        return await (
            self._spec.call(ctx.payload, ctx)
            if self._spec.takes_context
            else self._spec.call(ctx.payload)
        )

    def resize(self, _concurrency: int, /) -> None:
        return

    async def close(self) -> None:
        return


class _Threads:
    """In a thread. It cannot be stopped, so its slot stays taken until it ends."""

    def __init__(self, spec: HandlerSpec, clock: Clock, freed: Callable[[], None]) -> None:
        self._spec = spec
        self._clock = clock
        self.pool = ThreadPool(spec.concurrency, f"mqcore-{spec.queue.name}", freed)
        self._in_thread: Callable[[Callable[[], Any]], Awaitable[Any]] = self.pool.run

    @property
    def stuck(self) -> int:
        return self.pool.stuck

    async def start(self) -> None:
        return

    async def ready(self, _handed: int, /) -> None:
        return

    async def run(self, ctx: Context) -> Any:
        call = partial(self._spec.call, ctx.payload)
        if self._spec.takes_context:
            call = partial(self._spec.call, ctx.payload, ctx.blocking())
        with self._clock.busy():
            result = await self._in_thread(call)
        if result is not None and inspect.isawaitable(result):
            _drop(result)
            raise TypeError(
                "the handler returned an awaitable that is never awaited, so nothing was done; "
                "make it `async def`"
            )
        return result

    def resize(self, concurrency: int, /) -> None:
        self.pool.resize(concurrency)

    async def close(self) -> None:
        self.pool.close()


class _PinnedThreads(_Threads):
    """In the thread that has entered the handler's transaction (`once=`)."""

    def __init__(self, spec: HandlerSpec, clock: Clock, freed: Callable[[], None]) -> None:
        super().__init__(spec, clock, freed)
        self._in_thread = _in_current_thread


async def _in_current_thread(call: Callable[[], Any]) -> Any:
    thread = current_thread.get()
    assert thread is not None  # noqa: S101 - its transaction has been entered there
    return await thread.run(call)


def _drop(awaitable: Awaitable[object]) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()


class _Processes:
    """In a process: a run past its limit is killed, and a death costs one attempt and no worker."""

    pool = None
    stuck = 0

    def __init__(self, spec: HandlerSpec, clock: Clock, codecs: Codecs) -> None:
        self._clock = clock
        self._wants_results = spec.conclusion is not None
        target = f"{spec.call.__module__}:{spec.call.__qualname__}"
        self._make = partial(ProcessSlot, target, codecs.names, codecs.most)
        self._slots = [self._make() for _ in range(spec.concurrency)]
        self._size = spec.concurrency
        self._idle = list(self._slots)
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()

    async def start(self) -> None:
        """Start one process, to check that it can import the handler; others start on demand."""
        try:
            await self._slots[0].start()
        except SlotDied as error:
            raise ConfigurationError(
                f"{error}. Importing its module must not end the process"
            ) from error

    async def ready(self, handed: int, /) -> None:
        """Start a process before a message is taken.

        One that dies at its start then costs no attempt, and delays no message.

        Those that were handed out and have no process yet take theirs first, so there is one more
        than they need.
        """
        coming = max(handed - (len(self._slots) - len(self._idle)), 0)
        for slot in self._idle[-1 - coming :][::-1]:
            await self._up(slot)

    async def _up(self, slot: ProcessSlot) -> None:
        wait = _FIRST_WAIT
        while (
            not self._closed.is_set() and slot in self._idle
        ):  # one that a run has taken is started by it
            try:
                with self._clock.busy():
                    await slot.start()
            except (SlotDied, OSError) as error:
                if self._closed.is_set():
                    return  # it was killed by us
                log().warning("%s; trying again in %.1f s", error, wait)
                with suppress(TimeoutError):
                    async with self._clock.timeout(wait):
                        await self._closed.wait()
                wait = min(wait * 2, _LAST_WAIT)
            except RuntimeError:
                if slot in self._idle and not self._closed.is_set():
                    raise
                return  # a shrink has closed it
            else:
                break

    async def run(self, ctx: Context) -> Any:
        slot = self._take()
        message = ctx.delivery.message
        wants_result = self._wants_results or message.reply_to is not None
        request = SlotRequest(
            queue=ctx.queue, message=message, redelivered=ctx.redelivered, wants_result=wants_result
        )

        try:
            with self._clock.busy():
                answer = await slot.run(request)
        except BaseException as error:
            self._idle.insert(0, slot)  # its process has gone: the next run takes one that is up
            self._end_surplus()
            if isinstance(error, SlotDied):
                raise ChildRunFailed(HandlerResult(Ending.CRASHED, Failure.of(error))) from error
            raise

        self._idle.append(slot)
        self._end_surplus()
        if answer.result.ending is not Ending.SUCCEEDED:
            raise ChildRunFailed(answer.result)
        if answer.body is None:
            return None
        return EncodedResult(answer.body, answer.content_type or "")

    def _take(self) -> ProcessSlot:
        """Take an idle slot, or a new one: a shrink may have ended that of a message on its way."""
        if self._idle or self._closed.is_set():
            return self._idle.pop()
        slot = self._make()
        self._slots.append(slot)  # one too many, which ends after its run
        return slot

    def resize(self, concurrency: int, /) -> None:
        self._size = concurrency
        missing = [self._make() for _ in range(concurrency - len(self._slots))]
        self._slots += missing
        self._idle[:0] = missing  # those that are up are taken first
        self._end_surplus()

    def _end_surplus(self) -> None:
        """End the processes of idle slots that are too many; a busy one ends after its run."""
        while len(self._slots) > self._size and self._idle:
            slot = self._idle.pop(0)
            self._slots.remove(slot)
            ending = asyncio.ensure_future(slot.close())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        self._closed.set()
        await asyncio.gather(*(slot.close() for slot in self._slots), *self._ending)
