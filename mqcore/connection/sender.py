"""`Sender`: sends the messages that are published in one turn of the event loop as one batch.

    publish() ─┐
    publish() ─┼─ one loop turn ─► one Backend.publish(batch) ─► an outcome for each caller
    publish() ─┘

Callers that publish at the same moment share one request and one confirmation. A shared request is
never cancelled for the deadline of one caller: that caller gets `Unknown` (G1).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from mqcore.connection.tasks import begin_later
from mqcore.errors import MqcoreError
from mqcore.rules.redact import describe_error
from mqcore.spi import ErrorKind, Failed, Unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.connection.connection import Connection
    from mqcore.spi import Outcome, Outgoing

__all__ = ["Sender"]

_IS_CLOSED = "this broker is closed"
_LAST_ANSWER = 1.0
"""Seconds that `close` waits for the broker to answer what was sent."""


class _Call:
    """One caller's part of a batch: its messages, its deadline, and the future of its outcomes."""

    __slots__ = ("batch", "deadline", "future", "sent", "timeout")

    def __init__(
        self,
        batch: Sequence[Outgoing],
        timeout: float,
        deadline: float,
        future: asyncio.Future[list[Outcome]],
    ) -> None:
        self.batch, self.timeout, self.deadline = batch, timeout, deadline
        self.future, self.sent = future, False


class Sender:
    """Sends the publishes of one connection."""

    def __init__(self, connection: Connection) -> None:
        """Nothing is sent yet."""
        self._connection = connection
        self._clock = connection.clock
        self._waiting: list[_Call] = []
        """Calls that the next batch takes."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def publish(self, batch: Sequence[Outgoing], timeout: float) -> list[Outcome]:
        """Store messages, and return an outcome for each, in order.

        It ends within `timeout` seconds, and does not raise for a failure of the broker. What was
        not sent by then is `Failed`; what was sent and not answered is `Unknown` (G1).
        """
        loop = asyncio.get_running_loop()
        call = _Call(batch, timeout, self._clock.monotonic() + timeout, loop.create_future())
        if timeout <= 0:
            return [self._expired(call)] * len(batch)

        self._waiting.append(call)
        if len(self._waiting) == 1:
            # The task runs in the next turn of the loop, after all callers of this turn.
            self._tasks.add(begin_later(self._send()))

        try:
            async with self._clock.timeout(timeout):
                return await call.future
        except TimeoutError:
            return [self._expired(call)] * len(batch)

    async def close(self, limit: float | None) -> None:
        """Answer all calls: wait for the broker's answers for 1 s, or for half of `limit`."""
        if self._tasks:
            patience = _LAST_ANSWER if limit is None else limit / 2
            _, late = await asyncio.wait(self._tasks, timeout=patience)
            for task in late:
                task.cancel()

        # One that was cancelled before it began has taken no calls.
        calls, self._waiting = self._waiting, []
        _answer(calls, Failed(ErrorKind.PERMANENT, _IS_CLOSED))

    async def _send(self) -> None:
        """Send what was published in the last turn of the loop, after a reconnect if necessary."""
        calls, self._waiting = self._waiting, []

        try:
            while calls := [call for call in calls if not call.future.done()]:
                if not self._connection.connected_event.is_set():
                    if not await self._wait_connected(calls):
                        return
                    # The caller of an expired call knows that nothing is stored: do not send it.
                    continue
                if self._connection.is_closed:
                    _answer(calls, Failed(ErrorKind.PERMANENT, _IS_CLOSED))
                    return
                await self._send_batch(calls)
        finally:
            self._tasks.discard(asyncio.current_task())

    async def _send_batch(self, calls: list[_Call]) -> None:
        batch = calls[0].batch
        deadline = calls[0].deadline
        if len(calls) > 1:
            batch = [out for call in calls for out in call.batch]
            deadline = max(call.deadline for call in calls)
        for call in calls:
            call.sent = True

        connection, generation = self._connection, self._connection.generation
        remaining = max(deadline - self._clock.monotonic(), 0.0)
        try:
            outcomes = await connection.backend.publish(batch, timeout=remaining)
        except asyncio.CancelledError:
            outcomes = [Unknown("this broker was closed before an answer came")] * len(batch)
        except Exception as error:  # noqa: BLE001 - a driver's exception is classified
            outcomes = self._outcomes_of(error, generation, calls, len(batch))
        else:
            if len(outcomes) != len(batch):  # sent again, it might be stored again and again
                text = f"the driver answered {len(outcomes)} of {len(batch)} messages"
                outcomes = [Unknown(text)] * len(batch)

        start = 0
        for call in calls:
            own = outcomes[start : start + len(call.batch)]
            start += len(call.batch)
            if own and not call.future.done():
                call.future.set_result(list(own))

    async def _wait_connected(self, calls: list[_Call]) -> bool:
        """Wait for the connection, at most until the last deadline; whether it is there."""
        remaining = max(call.deadline for call in calls) - self._clock.monotonic()
        with suppress(TimeoutError):
            async with self._clock.timeout(max(remaining, 0.0)):
                await self._connection.connected_event.wait()
                return True
        return False

    def _outcomes_of(
        self, error: Exception, generation: int, calls: list[_Call], size: int
    ) -> list[Outcome]:
        """Return the outcomes of a batch after an exception; none if it is to be sent again."""
        kind = self._connection.backend.classify(error)
        if kind is ErrorKind.PERMANENT and not isinstance(error, MqcoreError):
            # An unexpected exception. The driver may have failed after writing the batch (G1).
            return [Unknown(f"the driver failed: {describe_error(error)}", error)] * size

        # A driver raises an error that it knows only if nothing was sent.
        if kind is not ErrorKind.TRANSIENT:
            return [Failed(kind, describe_error(error), error)] * size
        for call in calls:
            call.sent = False
        self._connection.report(error, generation)
        return []

    def _expired(self, call: _Call) -> Outcome:
        if call.sent:
            return Unknown(f"no answer within {call.timeout:g} s")

        error = self._connection.error
        why = f" ({describe_error(error)})" if error else ""
        connected = self._connection.connected_event.is_set()
        away = "" if connected else f": no connection to the broker{why}"
        return Failed(ErrorKind.TRANSIENT, f"not sent within {call.timeout:g} s{away}", error)


def _answer(calls: Sequence[_Call], outcome: Outcome) -> None:
    for call in calls:
        if not call.future.done():
            call.future.set_result([outcome] * len(call.batch))
