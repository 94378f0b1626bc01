"""`Control`: sends commands to workers and collects their answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from mqcore.broker import session_of
from mqcore.consuming.grace import Grace
from mqcore.consuming.replies import REPLY_QUEUES
from mqcore.control.protocol import QUEUES, ROUTER, Answer, Command, queue_of
from mqcore.control.server import binds_workers
from mqcore.errors import QueueNotFound, UnsupportedFeature
from mqcore.messages.message import Message, new_id
from mqcore.rules.capabilities import Capability
from mqcore.rules.retry import Ending, HandlerResult
from mqcore.spi import QueueSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from types import TracebackType

    from mqcore.broker import Broker
    from mqcore.consuming.receiver import Receiver

__all__ = ["TIMEOUT", "Control"]

TIMEOUT = 5.0
"""Seconds within which workers have to answer."""
_DONE = HandlerResult(Ending.SUCCEEDED)


class Control:
    """Sends commands to the workers on a broker. Used with `async with`, on an open broker."""

    def __init__(self, broker: Broker) -> None:
        """Nothing is sent yet."""
        self._session = session_of(broker)
        self._replies = f"{REPLY_QUEUES}{new_id()}"
        self._waiting: dict[str, asyncio.Queue[Answer]] = {}
        self._receiver: Receiver | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Make ready to receive answers."""
        await self._session.connection.declare([QueueSpec(name=self._replies, role="temporary")])
        self._receiver = await self._session.temporary_receiver(self._replies)
        self._reader = asyncio.create_task(self._read(self._receiver))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Receive no more answers."""
        self._session.connection.forget([self._replies])
        if self._receiver is not None:
            await self._receiver.close(Grace(self._session.clock, 0))
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self, receiver: Receiver) -> None:
        while (held := await receiver.next()) is not None:
            message = held.delivery.message
            receiver.finish(held, _DONE)
            answers = self._waiting.get(message.correlation_id or "")
            if answers is not None:
                with suppress(ValueError):  # not an answer
                    answers.put_nowait(Answer.decode(message.body))

    async def send(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        workers: Collection[str] = (),
        known: Collection[str] = (),
        timeout: float = TIMEOUT,
    ) -> Sequence[Answer]:
        """Send a command, and return the answers of all workers, by name.

        `workers` are those it goes to, by default all. `known` are workers that the caller knows to
        live, which helps where the broker cannot tell. It returns at the last answer, or after
        `timeout` seconds: a worker that has not answered by then has an answer with an error, and
        may execute the command nevertheless. Raises `UnsupportedFeature` where all workers are
        meant and neither the broker nor the caller knows any, and other typed errors.
        """
        correlation = new_id()
        command = Message(
            id=correlation,
            body=Command(name, arguments or {}).encode(),
            content_type="application/json",
            correlation_id=correlation,
            reply_to=self._replies,
            published_at=self._session.clock.now(),
        )
        incoming = self._waiting[correlation] = asyncio.Queue()
        try:
            until = self._session.clock.monotonic() + timeout
            if workers:
                answers = await self._to_each(command, set(workers), timeout)
                expected = set(workers)
            else:
                answers, expected = await self._to_all(command, set(known), timeout)
            await self._collect(incoming, answers, expected, until)
        finally:
            del self._waiting[correlation]

        missing = expected - answers.keys()
        answers |= {worker: Answer(worker, error=_no_answer(timeout)) for worker in missing}
        return [answers[worker] for worker in sorted(answers)]

    async def _to_each(
        self, command: Message, workers: set[str], timeout: float
    ) -> dict[str, Answer]:
        """Send a command to each of these workers; return an answer for each that is gone."""
        names = sorted(workers)
        options: Any = {"ttl": timeout} if self._expires else {}
        publisher = self._session.publisher
        results = await asyncio.gather(
            *(publisher.send(queue_of(each), command, options, timeout) for each in names),
            return_exceptions=True,
        )
        gone: dict[str, Answer] = {}
        for worker, result in zip(names, results, strict=True):
            if isinstance(result, QueueNotFound):
                gone[worker] = Answer(worker, error=_GONE)
            elif isinstance(result, BaseException):
                raise result
        return gone

    @property
    def _expires(self) -> bool:
        """Whether a command can expire, so that it is not executed long after it was sent."""
        return self._session.connection.capabilities.has(Capability.EXPIRY)

    async def _to_all(
        self, command: Message, known: set[str], timeout: float
    ) -> tuple[dict[str, Answer], set[str]]:
        """Send a command to all workers.

        Returns an answer for each that is gone, and the names of those that will answer.
        """
        if not binds_workers(self._session):
            if not known:
                raise UnsupportedFeature(_UNKNOWN.format(self._session.connection.backend.url))
            return await self._to_each(command, known, timeout), known

        bindings = await self._session.queues.bindings(ROUTER)
        workers = {each.queue.removeprefix(QUEUES) for each in bindings}
        gone = await self._to_each(command, workers, timeout)
        # A queue may end while its binding is read; its worker has left in order.
        return {}, workers - gone.keys()

    async def _collect(
        self,
        incoming: asyncio.Queue[Answer],
        answers: dict[str, Answer],
        expected: set[str],
        until: float,
    ) -> None:
        """Add the answers as they come, up to the last one."""
        clock = self._session.clock
        while not expected <= answers.keys():
            try:
                async with clock.timeout(until - clock.monotonic()):
                    answer = await incoming.get()
            except TimeoutError:
                return
            answers[answer.worker] = answer


_GONE = "it has no queue for commands: it has ended, or it was started without them (--no-control)"
_UNKNOWN = (
    "{} cannot reach all workers at once, because it has no routers. Name the workers, or give the "
    "tasks a store, which knows them"
)


def _no_answer(timeout: float) -> str:
    return f"no answer within {timeout:g} s: it is busy, or has gone. It may still do it"
