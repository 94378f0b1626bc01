"""The conclusion hook: user code that is awaited before a final outcome is settled.

    result ─ decide ─► final? ─► Conclusions.ask ─► hook([Conclusion, …]) ─► settle
                                       └── the hook failed ──► postponed, and asked again

All messages of one consumer that end in one loop turn are one call. A hook that fails, or takes too
long, postpones its messages: none is settled without it, and none keeps its place in the prefetch.
Without a hook nothing here runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mqcore.consuming.context import DeliveryInfo
from mqcore.consuming.replies import EncodedResult
from mqcore.rules.backoff import RetryWait
from mqcore.rules.capabilities import Capability
from mqcore.rules.checks import check_seconds
from mqcore.rules.redact import describe_error
from mqcore.rules.results import result_of
from mqcore.rules.retry import Decision, Ending, Failure, HandlerResult, postpone_conclusion
from mqcore.spi import Move, Release

if TYPE_CHECKING:
    from datetime import timedelta

    from mqcore.connection.connection import Connection
    from mqcore.consuming.held import HeldDelivery

__all__ = ["Conclusion", "ConclusionHook", "Conclusions"]

_PATIENCE = 30.0
"""Seconds that one call of a hook may take."""
_LEAST = 1.0
"""Least seconds until a message is concluded again whose hook has failed."""
_FIRST_WAIT, _LAST_WAIT = 1.0, 60.0
_RUNS = {
    Ending.SUCCEEDED,
    Ending.RETRY,
    Ending.FAILED,
    Ending.TIMED_OUT,
    Ending.CRASHED,
    Ending.REJECTED,
}


class Conclusion(DeliveryInfo):
    """The final outcome of one message, before it is settled: what a conclusion hook is given.

    A hook may be called again with the same outcome, for instance when this process ends before the
    broker has the settlement. So what it does must be repeatable.
    """

    def __init__(
        self, held: HeldDelivery, decision: Decision, result: HandlerResult, value: object
    ) -> None:
        """Made by the consumer."""
        super().__init__(held.rules.queue, held.delivery)
        self.delivery = held.delivery
        """The delivery, its message as the broker stores it."""
        self.outcome: Literal["done", "dead", "dropped"] = decision.verdict  # type: ignore[assignment]  # it is final
        """`done`; `dead`: dead-lettered; `dropped`: as dead, in a queue without dead letters."""
        self.reason = decision.reason.value if decision.reason else ""
        """Why it is dead-lettered or dropped, as in its record (G11); empty when it is done."""
        self.ran = result.ending in _RUNS
        """Whether its handler was started with this delivery.

        False for messages that end without a run here: expired, undecodable, taken over too often.
        """
        self.value = value
        """What the handler returned, None unless it is done. In a batch always None."""
        failure = result.failure or _recorded(decision)
        self.error_type = failure.type
        """The class of the exception, or empty."""
        self.error = failure.text
        """The text of the exception, or what the record says where there is none, or empty."""
        self.traceback = failure.traceback
        self._connection: Connection | None = None
        self.postponed_by: float | None = None
        """Seconds after which it is concluded again; None when it is settled now."""

    def postpone(self, delay: float | timedelta) -> None:
        """Do not settle this message now: conclude it again after `delay` seconds.

        A message that is done is handled again. Any other comes back with the outcome that it has,
        and no handler runs.
        """
        self.postponed_by = check_seconds("delay", delay, f"conclusion of message {self.id}")


def _recorded(decision: Decision) -> Failure:
    """Return what the record says of a message that ends without an exception."""
    move = decision.settlement
    death = move.to.message.death if isinstance(move, Move) else None
    return Failure((), death.error if death and not death.error_type else "")


ConclusionHook = Callable[[Sequence[Conclusion]], Awaitable[object]]
"""An async function of all conclusions of one loop turn."""


class Conclusions:
    """Calls the hook of one consumer."""

    def __init__(
        self,
        hook: ConclusionHook,
        connection: Connection,
        read: Callable[[EncodedResult], Any],
    ) -> None:
        """`hook` may fail. `read` decodes what a handler in a process has returned."""
        self._hook = hook
        self._read = read
        self._connection = connection
        self._clock = connection.clock
        self._wait = RetryWait(_FIRST_WAIT, _LAST_WAIT, connection.clock)
        self._next: list[tuple[Conclusion, asyncio.Future[None]]] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def calls(self) -> Sequence[asyncio.Task[None]]:
        """The calls that have not ended."""
        return tuple(self._calls)

    async def ask(
        self, held: HeldDelivery, decision: Decision, result: HandlerResult, value: object = None
    ) -> Decision:
        """Call the hook, and return the decision to settle by: this one, or a postponement."""
        if isinstance(value, EncodedResult):
            value = self._read(value)
        conclusion = Conclusion(held, decision, result, value)
        conclusion._connection = self._connection  # noqa: SLF001 - for parts that serve several brokers
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()
        self._next.append((conclusion, answered))
        if len(self._next) == 1:
            loop.call_soon(self._call_hook)

        await answered
        if (wait := conclusion.postponed_by) is None:
            return decision
        return await self._postponed(held, decision, result, wait)

    def _call_hook(self) -> None:
        batch, self._next = self._next, []
        call = asyncio.ensure_future(self._call(batch))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, batch: Sequence[tuple[Conclusion, asyncio.Future[None]]]) -> None:
        conclusions = [conclusion for conclusion, _ in batch]
        try:
            async with self._clock.timeout(_PATIENCE):
                await self._hook(conclusions)
            self._wait.working()
        except BaseException as error:  # noqa: BLE001 - user code may raise anything; the messages wait
            if self._closed:
                for _, answered in batch:
                    answered.cancel()
                return
            wait = self._wait_after(error, conclusions)
            for conclusion in conclusions:
                if conclusion.postponed_by is None:
                    conclusion.postponed_by = wait

        for _, answered in batch:
            if not answered.done():
                answered.set_result(None)

    def _wait_after(self, error: BaseException, conclusions: Sequence[Conclusion]) -> float:
        """Return how long the messages of a failed call wait; `Postpone` says it itself."""
        asked = result_of(error)
        if asked.ending is Ending.POSTPONED and asked.delay is not None:
            return max(asked.delay, 0.0)

        wait = _LEAST + self._wait.next()
        for each in conclusions:
            self._connection.events.emit(
                "conclusion.failed", each.queue, each.id, each.attempt, error=describe_error(error)
            )
        return wait

    async def _postponed(
        self, held: HeldDelivery, decision: Decision, result: HandlerResult, wait: float
    ) -> Decision:
        capabilities = self._connection.capabilities
        if not (capabilities.has(Capability.DELAY) and capabilities.has(Capability.EXPIRY)):
            # Without delays it waits here, and comes back as it was.
            await self._clock.sleep(min(wait, _LAST_WAIT))
            return Decision(Release(held.delivery.receipt), "released")

        now = self._clock.now()
        return postpone_conclusion(decision, held.delivery, held.rules, result, now=now, wait=wait)

    def close(self) -> None:
        """End what is still called: its messages are released, and concluded elsewhere."""
        self._closed = True
        for call in self._calls:
            call.cancel()
        for _, answered in self._next:
            answered.cancel()
        self._next = []
