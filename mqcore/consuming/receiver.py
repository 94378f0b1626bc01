"""One queue's messages on their way in, and their settlements on the way back.

    broker ──receive──► subscription ──► buffer ──next()──► whoever handles it ──finish(result)──► decide ──settle──► broker

A `Receiver` keeps a subscription open on the queue and one on its quarantine, survives reconnects, keeps
leases alive, holds never more than `prefetch` unsettled messages of the queue and one suspect, and
sorts out what no handler should see: expired messages are dead-lettered, suspected ones moved to
the quarantine (G4, G6, G12). Handlers (`Runner`) and the pull API (`Consumer`) both stand on it, so
both mean the same.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from mqcore.consuming.grace import Grace
from mqcore.consuming.isolation import Turn
from mqcore.consuming.subscription import RECEIVE_TIMEOUT, HeldDelivery, LiveSubscription
from mqcore.rules.retry import Decision, Ending, Failure, HandlerResult, Rules, admit, decide

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.connection.connection import Connection
    from mqcore.consuming.isolation import IsolationLock
    from mqcore.consuming.leases import LeaseKeeper

__all__ = ["CLOSE_GRACE", "Receiver"]

_EXPIRED, _INTERRUPTED = HandlerResult(Ending.EXPIRED), HandlerResult(Ending.INTERRUPTED)
_TAKEN_OVER = HandlerResult(Ending.TAKEN_OVER)
CLOSE_GRACE = 5.0
"""Seconds that a close waits for answers to settlements, where no drain says how long."""
_SUSPECT_TIMEOUT, _LOOK_AGAIN = 0.5, 5.0
"""Seconds to wait for a suspect that was put back and may have gone or expired, and between two looks whether it has.
"""


class Receiver:
    """The messages of one queue for one consumer in this process."""

    def __init__(
        self,
        connection: Connection,
        rules: Rules,
        *,
        prefetch: int,
        lease: float,
        isolation: IsolationLock,
        keeper: LeaseKeeper | None,
        redeclare: Callable[[], Awaitable[None]],
        blocks_others: bool = True,
    ) -> None:
        """`rules.queue` is consumed.

        `redeclare` brings the queue back when it was deleted, or raises.

        With `blocks_others` a waiting suspect keeps other messages from starting until it has run alone.
        """
        self.rules = rules
        self._blocks_others = blocks_others
        self._connection = connection
        self.clock = connection.clock
        self.events = connection.events
        self._isolation = isolation
        self._order = count()
        self._buffer: list[tuple[int, int, HeldDelivery]] = []
        self._suspect: HeldDelivery | None = None
        self._turn = Turn()
        self._callers = 0
        self._wake = asyncio.Event()
        self._stopped = False
        self._releasing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._until: Grace | None = None
        """Of the close that is under way."""
        self.failure: Exception | None = None
        self.grace: Grace | None = None
        """How long `close` may take, where more than this receiver ends with it."""
        self.on_dead: Callable[[HeldDelivery, Decision], Awaitable[None]] | None = None
        """Told of a message that ends without ever reaching a handler here, before it is settled.
        """

        def subscription(queue: str, size: int) -> LiveSubscription:
            source_rules = replace(rules, source=queue)
            return LiveSubscription(
                connection,
                source_rules,
                size,
                lease,
                keeper=keeper,
                redeclare=redeclare,
                accept=self._accept,
                fail=self._fail,
            )

        self._main = subscription(rules.queue, prefetch)
        self._subscriptions = [self._main]
        if rules.quarantine is not None:
            self._subscriptions.append(subscription(rules.quarantine, 1))
            self._subscriptions[-1].permit = self._permit
        isolation.on_change(self._wake.set)

    @property
    def consuming(self) -> bool:
        """Whether every subscription is live: what `connected` alone does not tell (G14)."""
        return not self._stopped and all(
            subscription.subscribed for subscription in self._subscriptions
        )

    def check_loop(self) -> None:
        """Raise `ConfigurationError` when called from another event loop than the broker's."""
        self._connection.check_loop(f"consuming queue {self.rules.queue!r}")

    @property
    def stopped(self) -> bool:
        """Whether it takes in nothing more."""
        return self._stopped

    @property
    def closed(self) -> bool:
        """Whether nothing is left of it at the broker."""
        return self._closing is not None and self._closing.done()

    @property
    def holding(self) -> int:
        """How many messages are out unsettled, buffered ones included."""
        return sum(len(subscription.held) for subscription in self._subscriptions)

    async def start(self) -> None:
        """Subscribe, and raise what prevents it; later losses are mended in the background."""
        try:
            for subscription in self._subscriptions:
                await subscription.start()
        except BaseException:
            await self.close()
            raise
        self.events.emit("consumer.started", self.rules.queue, prefetch=self._main.prefetch)

    def _fail(self, error: Exception) -> None:
        """A subscription cannot go on: whoever waits for messages must hear of it."""
        self.failure = error
        self._wake.set()

    def _accept(self, held: HeldDelivery) -> None:
        """Sort a message that has just come in.

        An error of ours is the end of this message and of no other.
        """
        try:
            self._sort(held)
        except Exception as error:  # noqa: BLE001 - whatever it is, the message must be settled
            self.fail(held, error)

    def _sort(self, held: HeldDelivery) -> None:
        """Say what becomes of a message that has just come in.

        Runs for each message: keep it short.
        """
        rules = held.rules
        if held.expired(self.clock.monotonic()):
            self._settle_unseen(held, _EXPIRED)
            return

        if (
            held.delivery.unreadable
        ):  # before the quarantine: no handler ever sees it, so none can crash of it (G11)
            self._settle_unseen(
                held, HandlerResult(Ending.UNDECODABLE, Failure((), held.delivery.unreadable))
            )
            return

        admitted = admit(held.delivery, rules)
        if admitted is None:
            self._settle_unseen(held, _TAKEN_OVER)
            return

        held.delivery = admitted
        if rules.source == rules.quarantine:
            self._accept_suspect(held)
            return

        if admitted.takeovers:  # in place; what had to be moved for it was told of then
            self.events.emit(
                "message.taken_over", self.rules.queue, admitted.message.id, admitted.attempt
            )
        heapq.heappush(self._buffer, (-admitted.message.priority, next(self._order), held))
        self._wake.set()

    def _accept_suspect(self, held: HeldDelivery) -> None:
        """Keep a suspect only when it can run at once; one that waited here while its process died would be counted (G4).

        Else it goes back to the quarantine, uncounted, and is asked for again when the isolation lock is
        ours.
        """
        held.alone = True
        if self._turn.reserved or (self._callers and self._enter_exclusive()):
            self._turn.forget()
            held.inside = True
            if held.rules.notes_starts:
                held.subscription.spawn(self._note_then_keep(held))
            else:
                self._keep_suspect(held)
        else:
            self._turn.want()
            self._settle_unseen(held, _INTERRUPTED)

    async def _note_then_keep(self, held: HeldDelivery) -> None:
        """Only what had started counts when its process dies, so the start is on record before it happens (G4)."""
        try:
            noted = await held.subscription.note_start(held)
            if not (noted or self._stopped):
                await self.clock.sleep(
                    _SUSPECT_TIMEOUT
                )  # a backend that refuses it must not be asked in a circle
        except (
            asyncio.CancelledError
        ):  # the subscription is closed, and others of this broker go on
            self.leave(held)
            raise
        if held.gone:
            self.leave(held)
        elif noted and not self._stopped:
            self._keep_suspect(held)
            if not self._callers:
                self._nobody_waits()
        else:
            self._turn.want()
            self._settle_unseen(held, _INTERRUPTED)

    def _keep_suspect(self, held: HeldDelivery) -> None:
        self._suspect = held
        self._wake.set()

    def _enter_exclusive(self) -> bool:
        """Take the isolation lock alone, unless it is an ordinary message's turn.

        The pull API keeps nobody out meanwhile.
        """
        return not (
            self._isolation.ordinary_next and self._buffer
        ) and self._isolation.enter_exclusive(self, wait=self._blocks_others)

    async def _permit(self) -> float:
        """How long the quarantine may be asked: for ever, but shortly for what was put back there and may be gone by now."""
        turn = self._turn
        if turn.asked:
            self._give_gate_back()
            self._isolation.give_up(self)
            turn.forget()
        with suppress(TimeoutError):
            async with self.clock.timeout(_LOOK_AGAIN):
                await turn.allowed.wait()
        turn.asked = turn.reserved or turn.wanted
        return _SUSPECT_TIMEOUT if turn.asked else RECEIVE_TIMEOUT

    def _give_gate_back(self) -> None:
        if self._turn.reserved:
            self._turn.reserved = False
            self._isolation.leave_exclusive()

    def _settle_unseen(self, held: HeldDelivery, result: HandlerResult) -> None:
        decision = self.decide(held, result)
        if (
            decision.final
            and self.on_dead is not None
            and held.delivery.message.reply_to is not None
        ):
            held.subscription.spawn(self._tell_then_settle(held, decision, result))
        else:
            self._send(held, decision, result)

    async def _tell_then_settle(
        self, held: HeldDelivery, decision: Decision, result: HandlerResult
    ) -> None:
        try:
            if self.on_dead is not None:
                await self.on_dead(held, decision)
        except Exception as error:  # noqa: BLE001 - a reply that cannot be sent must not keep the message
            held.report(error)
        self._send(held, decision, result)

    async def next(self) -> HeldDelivery | None:
        """Wait for the next message that may start now; None when the receiver has been stopped.

        Raises what ended consuming.
        """
        self._callers += 1
        try:
            while not self._stopped:
                if (held := self._pick()) is not None:
                    return held
                if self.failure is not None:
                    raise self.failure
                self._wake.clear()
                await self._wake.wait()
            return None
        finally:
            self._callers -= 1
            if not self._callers:
                self._nobody_waits()

    def _nobody_waits(self) -> None:
        """What could only run at once cannot now: neither a suspect nor the isolation lock is kept for a caller who is gone."""
        if self._turn.reserved:
            self._give_gate_back()
            self._turn.want()
        suspect, self._suspect = self._suspect, None
        if suspect is None:
            return
        if suspect.gone:
            self.leave(suspect)
        else:
            self._turn.want()
            self._settle_unseen(suspect, _INTERRUPTED)

    async def next_batch(self, size: int, linger: float) -> list[HeldDelivery]:
        """Wait for a first message, then up to `linger` seconds for more; `[]` when stopped.

        A suspect, and a message on a later attempt, come alone: what fails in a batch is tried
        again in batches of one.
        """
        while (first := await self.next()) is not None:
            batch = [first]
            if not first.alone and first.delivery.attempt == 1:
                await self._fill(batch, size, linger)
            if batch := [held for held in batch if self._may_still_start(held)]:
                return batch
        return []

    async def _fill(self, batch: list[HeldDelivery], size: int, linger: float) -> None:
        try:
            async with self.clock.timeout(linger):
                while len(batch) < size and not self._stopped and not self._turn.wanted:
                    if self._buffer and self._buffer[0][2].delivery.attempt > 1:
                        break
                    if (held := self._pick()) is not None:
                        batch.append(held)
                    else:
                        self._wake.clear()
                        await self._wake.wait()
        except TimeoutError:
            pass

    def _may_still_start(self, held: HeldDelivery) -> bool:
        """Look again after a wait: nothing starts once it has expired, is another's, or the receiver was stopped (G5, G6, G13)."""
        if held.gone:
            self.leave(held)
        elif held.expired(self.clock.monotonic()):
            self._settle_unseen(held, _EXPIRED)
        elif self._stopped:
            self._send(held, self.decide(held, _INTERRUPTED))
        else:
            return True
        return False

    def _pick(self) -> HeldDelivery | None:
        self._drop_unfit()
        suspect, self._suspect = self._suspect, None
        if suspect is not None and self._may_still_start(suspect):
            return suspect
        if self._turn.wanted and self._enter_exclusive():
            self._turn.reserve()
        if not self._buffer or not self._isolation.enter_shared():
            return None
        _, _, held = heapq.heappop(self._buffer)
        held.inside = True
        return held

    def _drop_unfit(self) -> None:
        """Clear the head of the buffer of what may not start: what stays there is a turn that somebody will take."""
        while self._buffer:
            held = self._buffer[0][2]
            if not held.gone and not held.expired(self.clock.monotonic()):
                return
            heapq.heappop(self._buffer)
            if not held.gone:
                self._settle_unseen(held, _EXPIRED)

    def decide(self, held: HeldDelivery, result: HandlerResult) -> Decision:
        """What the result means for this message; changes nothing yet."""
        return decide(
            result,
            held.delivery,
            held.rules,
            now=self.clock.now(),
            expires_in=held.expires_in(self.clock.monotonic()),
            chance=random.random(),
        )

    def finish(
        self,
        held: HeldDelivery,
        result: HandlerResult,
        decision: Decision | None = None,
        *,
        seconds: float = 0.0,
    ) -> Decision:
        """Settle a message by what happened to it.

        The settlement is sent in the background, together with others.
        """
        decision = decision or self.decide(held, result)
        self._send(held, decision, result, seconds)
        return decision

    def fail(self, held: HeldDelivery, error: BaseException) -> None:
        """Dead-letter a message that an error of mqcore, or of a driver or middleware, kept from being settled.

        The reason is `rejected`, and the record has the error. A backend without leases would never
        give the message to anybody again, and one of the `prefetch` places would be lost for good.
        """
        held.report(error)
        self.leave(held)
        if held.gone or held.settling:
            return

        try:
            self.finish(held, HandlerResult(Ending.REJECTED, Failure.of(error)))
        except Exception as again:  # noqa: BLE001 - not even that: where there is a lease, its end settles it
            held.report(again)
            held.subscription.end(held)

    def leave(self, held: HeldDelivery) -> None:
        """Let the next one through the isolation lock; called by itself when the message is finished."""
        if held.inside:
            held.inside = False
            if held.alone:
                self._isolation.leave_exclusive()
            else:
                self._isolation.leave_shared()

    def _send(
        self,
        held: HeldDelivery,
        decision: Decision,
        result: HandlerResult | None = None,
        seconds: float = 0.0,
    ) -> None:
        held.subscription.settle(held, decision)
        self.leave(held)
        message, failure = held.delivery.message, result.failure if result else None
        error = (
            f"{failure.type}: {failure.text}".removeprefix(": ") if failure else ""
        )  # the pull API has no type
        reason = decision.reason.value if decision.reason else ""
        self.events.emit(
            f"message.{decision.verdict}",
            self.rules.queue,
            message.id,
            message.attempt,
            seconds=seconds,
            delay=decision.delay,
            reason=reason,
            error=error,
        )

    def halt(self) -> None:
        """Hand out nothing from now on; `stop` releases what was taken in."""
        self._stopped = True
        self._wake.set()

    async def stop(self) -> None:
        """Take in nothing more and release what no handler has begun (G13).

        What is handled now may still be finished.

        When the caller is cancelled, it goes on: the isolation lock and what is in the buffer must not stay
        taken.
        """
        self.halt()
        if self._releasing is None:
            self._releasing = asyncio.create_task(self._stop())
        await asyncio.shield(self._releasing)

    async def _stop(self) -> None:
        await asyncio.gather(
            *(subscription.stop_receiving() for subscription in self._subscriptions)
        )
        waiting = [
            held for _, _, held in sorted(self._buffer)
        ]  # in order: some brokers take it back so (G9)
        if self._suspect is not None:
            waiting.append(self._suspect)
        self._isolation.give_up(self)
        self._give_gate_back()
        self._buffer, self._suspect = [], None
        for held in waiting:
            if held.gone:
                self.leave(held)
            else:
                self._send(held, self.decide(held, _INTERRUPTED))
        for subscription in self._subscriptions:
            subscription.pause()
        self._wake.set()

    async def close(self, grace: Grace | None = None) -> None:
        """After `stop` and the last `finish`: wait until settlements are answered, then unsubscribe.

        Idempotent. Bounded by `grace`, which is 5 s when none is given. When the caller is
        cancelled, it goes on: claims would be renewed, or messages kept unacknowledged, for as long
        as this process lives.
        """
        until = grace or self.grace or Grace(self.clock, CLOSE_GRACE)
        if self._closing is None:
            self._until = until
            self._closing = asyncio.create_task(self._close(until))
        elif self._until is not None and until is not self._until:
            await until.wait_for_answers([self._closing], 0.0)
            self._until.hurry()  # who asks again may have less time (G13)
        await asyncio.shield(self._closing)

    async def _close(self, until: Grace) -> None:
        await self.stop()
        await asyncio.gather(*(subscription.close(until) for subscription in self._subscriptions))
        self._isolation.forget(self._wake.set)
        self.events.emit("consumer.stopped", self.rules.queue)
