"""One run of a task: the function is called with its arguments, and its result is encoded.

It is the same in the event loop, in a thread, in a process, and in eager mode.
"""

from __future__ import annotations

import asyncio
import json
import signal
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mqcore.errors import Reject, ValidationError
from mqcore.messages.codec import JsonCodec, Payload
from mqcore.messages.message import Limits
from mqcore.tasks.context import Replacement, TaskContext, current_context
from mqcore.tasks.errors import SoftTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
    from types import FrameType

    from mqcore.consuming.context import DeliveryInfo
    from mqcore.messages.codec import Codecs
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.progress import ProgressReports
    from mqcore.tasks.task import BaseTask

__all__ = ["CallPayload", "Run", "TaskCall", "in_process", "run_async", "run_in_thread"]

_MOST = Limits().payload


@dataclass(frozen=True, slots=True)
class TaskCall:
    """What a message of a task says. `arguments` and `given` are JSON.

    The task is found by its registered name; nothing is imported because a message names it.
    `given` is the first argument of a step, filled in for a process of its own.
    """

    task: str
    name: str
    run: int = 0
    arguments: str = "{}"
    is_step: bool = False
    given: str | None = None


class CallPayload(Payload[TaskCall]):
    """Writes calls. They have text and numbers only, so JSON keeps them, and nothing is checked."""

    def __init__(self) -> None:
        super().__init__(TaskCall)

    def encode(self, value: TaskCall, codecs: Codecs) -> tuple[bytes, str]:  # noqa: ARG002 - the interface of a payload
        """Return body and content type."""
        return self.adapter.dump_json(value), JsonCodec.content_types[0]


@dataclass(eq=False)
class Run:
    """One attempt."""

    task: BaseTask[Any, Any]
    call: TaskCall
    context: TaskContext
    node: Node | None = None
    """The row as it began; None without a store."""
    progress: ProgressReports | None = None
    begun: asyncio.Future[Any] | None = None
    """The store's answer to its beginning."""
    has_left: bool = False
    """Whether the store has confirmed its end, or that it does not start."""
    running: asyncio.Task[Any] | None = None
    """Where it is cancelled: that of an async task, or that which waits for a process."""
    is_cancelled: bool = False
    parts: list[Any] = field(default_factory=list)

    def cancel(self) -> None:
        """Ask the run to stop (T7). A thread only sees `ctx.cancelled`."""
        self.is_cancelled = self.context.cancelled = True
        if self.task.mode != "thread" and self.running is not None:
            self.running.cancel()

    def calls(self) -> Iterator[Callable[[], Any]]:
        """Yield what to call: the function once, or for a list of arguments once for each.

        Raises `Reject` for arguments that do not fit any more. Then the code has changed since the
        task was sent, and another attempt would not help.
        """
        current_context.set(self.context)
        context = (self.context,) if self.task.parameters.takes_context else ()
        for arguments in self._arguments():
            try:
                args, kwargs = self.task.parameters.decode(arguments, self.call.given)
            except ValidationError as error:
                raise Reject(str(error)) from error
            yield partial(self.task.function, *context, *args, **kwargs)

    @property
    def is_list(self) -> bool:
        """Whether the function runs once for each of a list of arguments."""
        return self.call.arguments.startswith("[")

    def _arguments(self) -> list[str]:
        if not self.is_list:
            return [self.call.arguments]
        return [json.dumps(each) for each in json.loads(self.call.arguments)]

    def finished(self, values: Sequence[object]) -> bytes | Replacement:
        """Return the result as JSON. Raises `Reject` for one that cannot be stored."""
        if not self.is_list and isinstance(values[0], Replacement):
            return values[0]
        try:
            encoded = [self.task.parameters.encode_result(value) for value in values]
        except ValidationError as error:
            raise Reject(str(error)) from error
        result = b"[%s]" % b",".join(encoded) if self.is_list else encoded[0]
        if len(result) > _MOST:
            raise Reject(
                f"task {self.task.name!r}: its result has {len(result):,} bytes, and at most "
                f"{_MOST:,} are stored. Store it elsewhere, and return where it is"
            )
        return result


async def run_async(run: Any) -> Any:
    """Run an async task in the event loop."""
    values = []
    for call in run.calls():
        if run.task.soft_timeout is None:
            values.append(await call())
            continue
        interruptible = Interruptible(call())
        run.parts[:] = [interruptible]
        values.append(await interruptible)
    return run.finished(values)


def run_in_thread(run: Any) -> Any:
    """Run a blocking task in a thread."""
    return run.finished([call() for call in run.calls()])


def in_process(task: BaseTask[Any, Any], call: TaskCall, info: DeliveryInfo) -> bytes:
    """Run a blocking task in this process, which does nothing else."""
    context = TaskContext(
        id=call.task, name=call.name, queue=info.queue, attempt=info.attempt, run=call.run
    )
    run = Run(task, call, context)
    if task.soft_timeout is not None:
        signal.signal(signal.SIGALRM, _soft_timeout)
        signal.setitimer(signal.ITIMER_REAL, task.soft_timeout)
    try:
        result = run_in_thread(run)
    finally:
        if task.soft_timeout is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert isinstance(result, bytes)  # noqa: S101 - a context without reports refuses to replace
    return result


def _soft_timeout(_number: int, _frame: FrameType | None) -> None:
    raise SoftTimeout(_SOFT)


_SOFT = "the task has reached its soft_timeout"


class Interruptible:
    """Awaits a coroutine, and can raise `SoftTimeout` inside it.

    The cancellation of the task around it is what wakes the coroutine up.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._is_late = False
        self._has_ended = False

    def interrupt(self, task: asyncio.Task[Any]) -> None:
        """Raise `SoftTimeout` where the coroutine waits."""
        if not self._has_ended:
            self._is_late = True
            task.cancel()

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            return (yield from self._driven())
        finally:
            self._has_ended = True

    def _driven(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            try:
                if error is None:
                    waiting = self._coroutine.send(None)
                else:
                    waiting = self._coroutine.throw(error)
            except StopIteration as end:
                return end.value

            error = None
            try:
                yield waiting
            except asyncio.CancelledError as cancelled:
                error = self._meant(cancelled)
            except BaseException as other:  # noqa: BLE001 - it belongs to the coroutine
                error = other

    def _meant(self, cancelled: asyncio.CancelledError) -> BaseException:
        if not self._is_late:
            return cancelled
        self._is_late = False
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
        return SoftTimeout(_SOFT)
