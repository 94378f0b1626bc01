"""Receives one queue's messages and settles them.

    broker ─receive─► subscription ─► buffer ─next─► handler or caller
    broker ◄─settle── subscription ◄─ decide ◄────── conclude, finish

A `Receiver` has a subscription on the queue and one on its quarantine. It survives reconnects and
keeps leases alive. It holds at most `prefetch` unsettled messages of the queue and one suspect.
Messages that no handler may see are settled on arrival: expired ones are dead-lettered, suspects
are moved to the quarantine (G4, G6, G12). Handlers (`Runner`) and the pull API (`Consumer`) both
use it, so both mean the same.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

from mqcore.consuming.conclusions import Conclusions
from mqcore.consuming.final_steps import FinalSteps
from mqcore.consuming.grace import Grace
from mqcore.consuming.isolation import Entry
from mqcore.consuming.quarantine import Quarantine
from mqcore.consuming.retiring import Retiring
from mqcore.consuming.states import Step
from mqcore.consuming.subscription import LiveSubscription
from mqcore.events import Events
from mqcore.messages.delivery import Ack
from mqcore.rules.retry import (
    Decision,
    Ending,
    Failure,
    HandlerResult,
    Rules,
    admit,
    decide,
    done,
    recorded,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.connection.connection import Connection
    from mqcore.consuming.conclusions import ConclusionHook
    from mqcore.consuming.held import HeldDelivery
    from mqcore.consuming.isolation import IsolationLock
    from mqcore.consuming.leases import LeaseKeeper
    from mqcore.consuming.replies import EncodedResult, Replies
    from mqcore.messages.message import Message
    from mqcore.rules.profile import Profile

__all__ = ["CLOSE_GRACE", "Receiver"]

_SUCCEEDED, _EXPIRED = HandlerResult(Ending.SUCCEEDED), HandlerResult(Ending.EXPIRED)
_INTERRUPTED, _TAKEN_OVER = HandlerResult(Ending.INTERRUPTED), HandlerResult(Ending.TAKEN_OVER)
CLOSE_GRACE = 5.0
"""Seconds that a close waits for answers to settlements, where no drain says how long."""


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
        replies: Replies | None = None,
    ) -> None:
        """`rules.queue` is consumed; `lease` is in seconds.

        `redeclare` declares the queue again when it was deleted, or raises. With `replies` requests
        are answered when their final result is known; the pull API answers none.
        """
        self.rules, self.clock = rules, connection.clock
        self.events = connection.events if rules.is_observed else Events()
        self.failure: Exception | None = None
        self.grace: Grace | None = None
        """How long `close` may take, where more than this receiver ends with it."""
        self.choose: Callable[[Message], Profile | None] | None = None
        """Says how a message is run, where a consumer treats its messages differently."""
        self._connection = connection
        self._isolation = isolation
        self.final = FinalSteps(replies)
        """What is awaited before a final outcome is settled."""
        self._order = count()
        self._buffer: list[tuple[int, int, HeldDelivery]] = []
        self._callers = 0
        self._wake = asyncio.Event()
        self._stopped = False
        self._releasing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._until: Grace | None = None
        """The grace of the close that is under way."""

        def subscription(queue: str, size: int) -> LiveSubscription:
            return LiveSubscription(
                connection,
                replace(rules, source=queue),
                size,
                lease,
                keeper=keeper,
                redeclare=redeclare,
                accept=self._accept,
                fail=self._fail,
            )

        self._main = subscription(rules.queue, prefetch)
        self._make = subscription
        self._subscriptions = [self._main]
        self._retiring = Retiring(connection.clock)
        self.is_full = False
        """Whether nothing is handed out, although callers wait: there are too many of them."""
        self._quarantine = Quarantine(self, isolation, connection.clock)
        if rules.quarantine is not None:
            self._subscriptions.append(subscription(rules.quarantine, 1))
            self._subscriptions[-1].permit = self._quarantine.permit
        isolation.on_change(self._wake.set)

    def conclude_through(self, hook: ConclusionHook, read: Callable[[EncodedResult], Any]) -> None:
        """Await `hook` before each final outcome of a message is settled."""
        self.final.conclusions = Conclusions(hook, self._connection, read)

    @property
    def consuming(self) -> bool:
        """Whether every subscription is live: `connected` alone does not show that (G14)."""
        return not self._stopped and all(
            subscription.subscribed for subscription in self._subscriptions
        )

    @property
    def stopped(self) -> bool:
        """Whether it receives nothing more."""
        return self._stopped

    @property
    def closed(self) -> bool:
        """Whether it has nothing left at the broker."""
        return self._closing is not None and self._closing.done()

    @property
    def holding(self) -> int:
        """How many messages are unsettled, buffered ones included."""
        held = sum(len(subscription.held) for subscription in self._subscriptions)
        return held + self._retiring.holding()

    @property
    def has_callers(self) -> bool:
        """Whether a handler or a caller waits for a message."""
        return self._callers > 0

    @property
    def has_ordinary(self) -> bool:
        """Whether an ordinary message is buffered."""
        return bool(self._buffer)

    def check_loop(self) -> None:
        """Raise `ConfigurationError` when called from another event loop than the broker's."""
        self._connection.check_loop(f"consuming queue {self.rules.queue!r}")

    def wake(self) -> None:
        """Let those that wait for a message try again."""
        self._wake.set()

    async def resize(self, prefetch: int) -> None:
        """Hold at most so many unsettled messages from now on.

        Messages that are held stay, and count. Where a driver cannot change a prefetch, a new
        subscription replaces the old one. Raises what prevents it; the old one then goes on.
        """
        if prefetch == self._main.prefetch or self._stopped or await self._main.resize(prefetch):
            return
        new = self._make(self.rules.queue, prefetch)
        new.beside = self._retiring.holding
        await new.start()
        if self._stopped:  # a drain was faster, and has not seen this one
            await new.close(Grace(self.clock, 0.0))
            return
        self._retiring.add(self._main, self._has_room)
        self._main = self._subscriptions[0] = new

    def _has_room(self) -> None:
        self._main.has_room()

    # Arrival

    async def start(self) -> None:
        """Subscribe, and raise what prevents it. Later losses are repaired in the background."""
        try:
            for subscription in self._subscriptions:
                await subscription.start()
        except BaseException:
            await self.close()
            raise
        self.events.emit("consumer.started", self.rules.queue, prefetch=self._main.prefetch)

    def _fail(self, error: Exception) -> None:
        """A subscription has ended for good: raise its error to those that wait for messages."""
        self.failure = error
        self._quarantine.give_up()  # other consumers of this broker go on (G4)
        self._wake.set()

    def _accept(self, held: HeldDelivery) -> None:
        """Sort a message that has come in; an error of ours ends this message and no other."""
        try:
            self._sort(held)
        except Exception as error:  # noqa: BLE001 - whatever it is, the message must be settled
            self.fail(held, error)

    def _sort(self, held: HeldDelivery) -> None:
        """Buffer a message that has come in, or settle it.

        Runs for each message: keep it short.
        """
        is_expired = held.expired(self.clock.monotonic())
        if is_expired or held.delivery.message.death is not None:
            result = recorded(held.delivery) or (_EXPIRED if is_expired else None)
            if result is not None:
                self._settle_unseen(held, result)
                return

        # Before the quarantine: no handler ever sees it, so none can crash of it (G11).
        if held.delivery.unreadable:
            failure = Failure((), held.delivery.unreadable)
            self._settle_unseen(held, HandlerResult(Ending.UNDECODABLE, failure))
            return

        if self.choose is not None:
            held.profile = self.choose(held.delivery.message)

        admitted = admit(held.delivery, held.rules)
        if admitted is None:
            self._settle_unseen(held, _TAKEN_OVER)
            return

        held.delivery = admitted
        if held.is_suspect:
            self._quarantine.accept(held)
            return

        if admitted.takeovers:  # in place; one that had to be moved for it was reported then
            self.events.emit(
                "message.taken_over", self.rules.queue, admitted.message.id, admitted.attempt
            )
        heapq.heappush(self._buffer, (-admitted.message.priority, next(self._order), held))
        self._wake.set()

    def _settle_unseen(self, held: HeldDelivery, result: HandlerResult) -> None:
        """Settle a message that no handler has seen; conclude it first if this is final."""
        decision = self.decide(held, result)
        if decision.final and self.final.awaits(held):
            self.leave(held)  # nothing runs, so no other message waits for it
            held.subscription.spawn(self._conclude_unseen(held, decision, result))
        else:
            self._send(held, decision, result)

    async def _conclude_unseen(
        self, held: HeldDelivery, decision: Decision, result: HandlerResult, *, replies: bool = True
    ) -> None:
        decision = await self.final.unseen(held, decision, result, replies=replies)
        self._send(held, decision, result)

    # Handing out

    async def next(self) -> HeldDelivery | None:
        """Wait for the next message that may start now; None when the receiver was stopped.

        Raises what ended consuming.
        """
        if not self._stopped and (ready := self._pick()) is not None:
            return ready

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
                self._quarantine.put_all_back()

    async def next_batch(self, size: int, linger: float) -> list[HeldDelivery]:
        """Wait for a first message, then up to `linger` seconds for more; `[]` when stopped.

        A suspect, and a message on a later attempt, come alone: what fails in a batch is tried
        again in batches of one.
        """
        while (first := await self.next()) is not None:
            batch = [first]
            if not first.is_suspect and first.delivery.attempt == 1:
                await self._fill(batch, size, linger)
            if batch := [held for held in batch if self.may_still_start(held)]:
                return batch
        return []

    async def _fill(self, batch: list[HeldDelivery], size: int, linger: float) -> None:
        with suppress(TimeoutError):
            async with self.clock.timeout(linger):
                while len(batch) < size and not self._stopped and not self._quarantine.is_awaited:
                    if self._buffer and self._buffer[0][2].delivery.attempt > 1:
                        break
                    if (held := self._pick()) is not None:
                        batch.append(held)
                    else:
                        self._wake.clear()
                        await self._wake.wait()

    def may_still_start(self, held: HeldDelivery) -> bool:
        """Check again after a wait (G5, G6, G13).

        Nothing starts once it has expired, is another consumer's, or the receiver was stopped.
        """
        if held.is_gone:
            self.leave(held)
        elif held.expired(self.clock.monotonic()):
            self._settle_unseen(held, _EXPIRED)
        elif self._stopped:
            self._send(held, self.decide(held, _INTERRUPTED))
        else:
            return True
        return False

    def _pick(self) -> HeldDelivery | None:
        """Hand out the suspect that is kept, or the first ordinary message, if the lock allows."""
        self._drop_unfit()
        if self.is_full:
            return None
        suspect = self._quarantine.take()
        if suspect is not None and self.may_still_start(suspect):
            suspect.apply(Step.START)
            return suspect

        self._quarantine.reserve()
        if not self._buffer or not self._isolation.enter_shared():
            return None

        _, _, held = heapq.heappop(self._buffer)
        held.entry = Entry.SHARED
        held.apply(Step.START)
        return held

    def _drop_unfit(self) -> None:
        """Remove from the head of the buffer what may not start any more.

        What stays there is a message that a caller will get.
        """
        while self._buffer:
            held = self._buffer[0][2]
            is_expired = held.deadline is not None and held.expired(self.clock.monotonic())
            if not is_expired and not held.is_gone:
                return
            heapq.heappop(self._buffer)
            if not held.is_gone:
                self._settle_unseen(held, _EXPIRED)

    def begin(self, held: HeldDelivery, on_lost: Callable[[], None], longest: float | None) -> None:
        """A handler starts with this message.

        `on_lost` is called when the claim is lost before `end`. The claim is renewed for at most
        `longest` seconds, indefinitely when that is None (G5).
        """
        held.on_lost = on_lost
        if longest is not None:
            held.subscription.limit(held, self.clock.monotonic() + longest)
        message = held.delivery.message
        self.events.emit("message.started", self.rules.queue, message.id, message.attempt)

    def end(self, held: HeldDelivery) -> None:
        """The handler of this message has ended."""
        held.on_lost = None

    # Settling

    def decide(self, held: HeldDelivery, result: HandlerResult) -> Decision:
        """Return what the result means for this message; changes nothing yet."""
        if result.ending is Ending.SUCCEEDED:  # the usual case needs no clock and no chance
            return done(held.delivery)

        return decide(
            result,
            held.delivery,
            held.rules,
            now=self.clock.now(),
            expires_in=held.expires_in(self.clock.monotonic()),
            chance=random.random(),
        )

    async def acknowledge(self, held: HeldDelivery) -> bool:
        """Acknowledge a message before its handler starts; whether it cannot come again (G2)."""
        self._send(held, self.decide(held, _SUCCEEDED), _SUCCEEDED)
        await held.wait_settled()
        return not held.is_lost and await held.subscription.proven(held)

    async def conclude(
        self,
        held: HeldDelivery,
        result: HandlerResult,
        value: object = None,
        *,
        reply: EncodedResult | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Settle a message by its result; `value` is what its handler returned.

        A request is answered first when this result is final: its reply is a successor too (G3). A
        `reply` that is given is encoded already.
        """
        if self.final.awaits(held):
            result, reply = self.final.prepared(held, result, value, reply)
            decision = self.decide(held, result)
            decision = await self.final.handled(held, decision, result, value, reply)
        else:
            decision = self.decide(held, result)
        self._send(held, decision, result, seconds)

    async def conclude_safely(
        self, held: HeldDelivery, result: HandlerResult, *, seconds: float = 0.0
    ) -> None:
        """Conclude; an error of ours ends this message and no other."""
        try:
            await self.conclude(held, result, seconds=seconds)
        except Exception as error:  # noqa: BLE001 - whatever it is, the message must be settled
            self.fail(held, error)

    def finish(self, held: HeldDelivery, result: HandlerResult) -> None:
        """Settle a message by its result, without waiting for anything."""
        if self.final.awaits(held):
            held.subscription.spawn(self.conclude_safely(held, result))
        else:
            self._send(held, self.decide(held, result), result)

    def skip(self, held: HeldDelivery) -> None:
        """Acknowledge a message that was handled before, without its handler.

        A request is not answered: what its handler returned then is not stored. It may not have
        been concluded.
        """
        if self.final.conclusions is None:
            self._send(held, Decision(Ack(held.delivery.receipt), "skipped"))
        else:
            concluding = self._conclude_unseen(held, done(held.delivery), _SUCCEEDED, replies=False)
            held.subscription.spawn(concluding)

    def release(self, held: HeldDelivery) -> None:
        """Give a message back, not counted: no handler has begun it."""
        self._send(held, self.decide(held, _INTERRUPTED), _INTERRUPTED)

    def fail(self, held: HeldDelivery, error: BaseException) -> None:
        """Dead-letter a message that could not be settled because of an error of ours.

        That is an error of mqcore, of a driver or of a middleware. The reason is `rejected`, and
        the record has the error. A backend without leases would otherwise never deliver the message
        again, and one of the `prefetch` places would be lost.
        """
        held.report(error)
        self.leave(held)
        if not held.can_settle:
            return

        try:
            result = HandlerResult(Ending.REJECTED, Failure.of(error))
            decision = self.decide(held, result)
            if self.final.conclusions is not None:
                concluding = self._conclude_unseen(held, decision, result, replies=False)
                held.subscription.spawn(concluding)
            else:
                self._send(held, decision, result)
        except Exception as second:  # noqa: BLE001 - where there is a lease, its end settles the message
            held.report(second)
            held.subscription.end(held, Step.LOSE)

    def leave(self, held: HeldDelivery) -> None:
        """Leave the isolation lock; called by itself when the message is settled."""
        entry, held.entry = held.entry, None
        if entry is not None:
            self._isolation.leave(entry)

    def _send(
        self,
        held: HeldDelivery,
        decision: Decision,
        result: HandlerResult | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Send the settlement in the background, together with others, and leave the lock."""
        held.subscription.settle(held, decision)
        self.leave(held)

        message, failure = held.delivery.message, result.failure if result else None
        error = (
            f"{failure.type}: {failure.text}".removeprefix(": ") if failure else ""
        )  # the pull API has no type
        self.events.emit(
            f"message.{decision.verdict}",
            self.rules.queue,
            message.id,
            message.attempt,
            seconds=seconds,
            delay=decision.delay,
            reason=decision.reason.value if decision.reason else "",
            error=error,
        )

    # The end

    def halt(self) -> None:
        """Hand out nothing from now on; `stop` releases what was received."""
        self._stopped = True
        self._wake.set()

    async def stop(self) -> None:
        """Receive nothing more, and release what no handler has begun (G13).

        What is handled now may still be finished. When the caller is cancelled, this goes on: the
        isolation lock must be left, and the buffer released.
        """
        self.halt()
        if self._releasing is None:
            self._releasing = asyncio.create_task(self._stop())
        await asyncio.shield(self._releasing)

    async def _stop(self) -> None:
        subscriptions = [*self._subscriptions, *self._retiring.subscriptions]
        await asyncio.gather(*(subscription.stop_receiving() for subscription in subscriptions))

        # In order: some brokers put messages back in the order of their release (G9).
        waiting = [held for _, _, held in sorted(self._buffer)]
        if (suspect := self._quarantine.stop()) is not None:
            waiting.append(suspect)
        self._buffer = []

        for held in waiting:
            if held.is_gone:
                self.leave(held)
            else:
                self._send(held, self.decide(held, _INTERRUPTED))

        for subscription in subscriptions:
            subscription.pause()
        self._wake.set()

    async def close(self, grace: Grace | None = None) -> None:
        """After `stop` and the last result: wait for answers to settlements, then unsubscribe.

        Idempotent. Bounded by `grace`, 5 s when none is given. When the caller is cancelled, this
        goes on: claims would be renewed, or messages kept unacknowledged, for as long as this
        process lives.
        """
        until = grace or self.grace or Grace(self.clock, CLOSE_GRACE)
        if self._closing is None:
            self._until = until
            self._closing = asyncio.create_task(self._close(until))
        elif self._until is not None and until is not self._until:
            await until.wait_for_answers([self._closing], 0.0)
            self._until.hurry()  # a second close may have less time (G13)
        await asyncio.shield(self._closing)

    async def _close(self, until: Grace) -> None:
        await self.stop()
        await self.final.close(until)
        subscriptions = [*self._subscriptions, *self._retiring.end()]
        await asyncio.gather(*(subscription.close(until) for subscription in subscriptions))
        self._isolation.forget(self._wake.set)
        self.events.emit("consumer.stopped", self.rules.queue)
