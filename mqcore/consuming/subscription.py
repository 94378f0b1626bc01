"""A subscription that is kept alive: it receives, holds and settles the messages of one queue.

`LiveSubscription` asks for as many messages as it may still hold, and registers each claim with the
lease keeper. It sends settlements in batches: one call for all that were decided in one loop turn.
When the connection breaks it subscribes again. When a settlement fails, the message stays ours and
the settlement is tried again: consuming slows down and nothing is lost (G3).
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from mqcore.connection.tasks import begin_later
from mqcore.consuming.driver_calls import closed, paused, resized, why
from mqcore.consuming.grace import ANSWERED, UNSUBSCRIBED
from mqcore.consuming.held import HeldDelivery
from mqcore.consuming.proofs import Proofs
from mqcore.consuming.states import DeliveryState, Step
from mqcore.errors import ConnectionLost, MqcoreError, QueueNotFound
from mqcore.events import Events
from mqcore.rules.backoff import RetryWait
from mqcore.rules.capabilities import Capability
from mqcore.rules.redact import describe_error
from mqcore.rules.retry import Decision
from mqcore.spi import (
    Delivery,
    Done,
    ErrorKind,
    Failed,
    Release,
    Settled,
    Stale,
    Subscription,
    SupportsPause,
    SupportsStart,
    SupportsSweep,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from mqcore.connection.connection import Connection
    from mqcore.consuming.grace import Grace
    from mqcore.consuming.leases import LeaseKeeper
    from mqcore.rules.retry import Rules

__all__ = ["RECEIVE_TIMEOUT", "LiveSubscription"]

RECEIVE_TIMEOUT = 3600.0
"""Seconds that one receive may wait at most. It ends earlier when messages come."""
_SETTLE_TIMEOUT = 10.0
_SWEEP_EVERY, _SWEEP_LIMIT = 5.0, 500
_UNANSWERED = (
    "the broker has not answered before the end; the message comes again, perhaps although "
    "it was settled"
)
_PUMP_ENDS = 0.1
"""Seconds that a cancelled receive may take to end."""
_FIRST_WAIT, _LAST_WAIT = 0.1, 1.0


class LiveSubscription:
    """The messages of one physical queue."""

    def __init__(
        self,
        connection: Connection,
        rules: Rules,
        prefetch: int,
        lease: float,
        *,
        keeper: LeaseKeeper | None,
        redeclare: Callable[[], Awaitable[None]],
        accept: Callable[[HeldDelivery], None],
        fail: Callable[[Exception], None],
    ) -> None:
        """`accept` gets each message, `fail` the error that ends the subscription for good."""
        self.rules = rules
        self.prefetch = prefetch
        self.held: dict[bytes, HeldDelivery] = {}
        self._connection, self._clock = connection, connection.clock
        self._events = connection.events if rules.is_observed else Events()
        self._lease, self._keeper, self._redeclare = lease, keeper, redeclare
        self._accept, self._fail = accept, fail
        self._subscription: Subscription | None = None
        self._room = asyncio.Event()
        self._wait = RetryWait(_FIRST_WAIT, _LAST_WAIT, self._clock)
        self._pending: list[tuple[HeldDelivery, Decision]] = []
        self._carried: set[HeldDelivery] = set()
        """What was being settled when the connection, which is the lease, was lost.

        The next subscription does not count these messages.
        """
        self.acknowledged: set[HeldDelivery] = set()
        """Messages whose acknowledgement was a part of a handler's transaction."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._proofs = Proofs(self._events, rules.queue)
        self._pump: asyncio.Task[None] | None = None
        self._stopped = self._paused = False
        self.beside: Callable[[], int] = lambda: 0
        """How many messages earlier subscriptions of the same consumer hold: they count (G12)."""
        self._swept = self._clock.monotonic()
        self.permit: Callable[[], Awaitable[float]] = _always
        """Awaited before each receive; returns for how many seconds it may wait."""

    @property
    def subscribed(self) -> bool:
        """Whether messages can come in now."""
        return self._subscription is not None and self._connection.connected

    def check_loop(self, doing: str) -> None:
        """Raise `ConfigurationError` when called from another event loop than the broker's."""
        self._connection.check_loop(doing)

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run something in the background that `close` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def start(self) -> None:
        """Subscribe for the first time, and raise what prevents it."""
        self._subscription = await self._subscribe()
        self._connection.on_lost.add(self._cut_off)
        self._pump = begin_later(self._run())

    async def _subscribe(self) -> Subscription:
        """Subscribe with the prefetch that holds when the broker has answered."""
        while True:
            prefetch = self.prefetch
            subscription = await self._connection.subscribe(
                self.rules.source, prefetch, self._lease
            )
            if prefetch == self.prefetch:
                return subscription
            await subscription.close()

    async def resize(self, prefetch: int) -> bool:
        """Hold at most so many unsettled messages from now on; False if the driver cannot."""
        subscription = self._subscription
        if subscription is None:  # the next one takes it from here
            self.prefetch = prefetch
            return True
        if not await resized(subscription, prefetch):
            return False
        self.prefetch = prefetch
        self.has_room()
        return True

    async def _run(self) -> None:
        while asyncio.current_task() is self._pump:
            generation = self._connection.generation
            try:
                if self._subscription is None:
                    self._subscription = await self._subscribe()
                    generation = self._connection.generation
                self._wait.working()
                if self._stopped:
                    return  # what is held can be settled again, and nothing more is received
                while self._subscription is not None:
                    await self._receive(self._subscription)
            except Exception as error:  # noqa: BLE001 - whatever a driver raises: consuming goes on, or says why not
                self._subscription = None
                if not await self._mend(error, generation):
                    return
                await self._clock.sleep(self._wait.next())

    async def _receive(self, subscription: Subscription) -> None:
        room = self.prefetch - len(self.held) - self.beside()
        if room <= 0 and not self._listens_while_full():
            await self._wait_for_room()
        elif self._clock.monotonic() - self._swept >= _SWEEP_EVERY:
            await self._sweep()
        else:
            patience = await self.permit()
            got = await subscription.receive(max(room, 1), patience)
            self._take_in(got)
            if room <= 0 and not got:
                await self._wait_for_room()

    def _listens_while_full(self) -> bool:
        """Whether a receive stays pending although there is no room.

        Where the connection is the lease, its loss must be noticed at once. The driver enforces the
        prefetch (G12).
        """
        return (
            self.permit is _always
            and not self._carried
            and not self.beside()  # the driver does not count those
            and not self._connection.capabilities.has(Capability.LEASE)
        )

    async def _wait_for_room(self) -> None:
        """Wait until a message is settled; sweep expired messages meanwhile every few seconds (G6).

        A receive would find them, but while handlers are busy nothing is received.
        """
        self._room.clear()
        with suppress(TimeoutError):
            async with self._clock.timeout(_SWEEP_EVERY):
                await self._room.wait()
                return
        await self._sweep()

    async def _sweep(self) -> None:
        self._swept = self._clock.monotonic()
        backend = self._connection.backend
        if isinstance(backend, SupportsSweep):
            sweeping = self.spawn(self._take_in_expired(backend))
            await asyncio.shield(
                sweeping
            )  # when we are cancelled, what the sweep has claimed must not be forgotten

    async def _take_in_expired(self, backend: SupportsSweep) -> None:
        self._take_in(await backend.sweep(self.rules.source, _SWEEP_LIMIT, self._lease))

    def _take_in(self, deliveries: Sequence[Delivery]) -> None:
        now = self._clock.monotonic()
        for delivery in deliveries:
            held = HeldDelivery(self._without_our_own(delivery, now), self, now)
            self.held[delivery.receipt] = held
            if self._keeper is not None:
                self._keeper.hold(delivery.receipt, self.rules.source, self._lease, held.lose)
            self._accept(held)

    def _without_our_own(self, delivery: Delivery, now: float) -> Delivery:
        """Subtract a takeover that came from our own lost connection, not from a death (G4)."""
        if delivery.takeovers and self._connection.survived.explains(
            self.rules.source, delivery.message, now
        ):
            return replace(delivery, takeovers=delivery.takeovers - 1)
        return delivery

    def _cut_off(self) -> None:
        """The connection broke, and the subscription with it. Settlements wait for the next one."""
        self._subscription = None
        self._forget_lost()
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()  # a receive of the old connection may never return
            if self._stopped:
                self._mend_stopped()
            else:
                self._pump = begin_later(self._run())

    def _mend_stopped(self) -> None:
        """Subscribe again after a stop, if something is held that has to be settled."""
        if self._subscription is None and self.held:
            self._pump = begin_later(self._run())

    def _forget_lost(self) -> None:
        """Where the connection is the lease, all that we hold is lost.

        Running handlers are notified; what is buffered does not start.
        """
        if self._connection.capabilities.has(Capability.LEASE):
            return
        now = self._clock.monotonic()

        for held in list(self.held.values()):
            message = held.delivery.message
            has_entered = held.entry is not None
            self._connection.survived.add(self.rules.source, message, now, started=has_entered)
            if held.state is DeliveryState.SETTLING:
                self._carried.add(held)
            elif has_entered:
                held.lose()
            else:
                self.end(held, Step.LOSE)

    async def _mend(self, error: Exception, generation: int) -> bool:
        """After a failed receive, forget what is lost; False when consuming must end."""
        self._forget_lost()
        kind = self._connection.backend.classify(error)
        self._events.emit("consumer.interrupted", self.rules.queue, error=describe_error(error))
        if isinstance(error, QueueNotFound) or kind is ErrorKind.NOT_FOUND:
            return await self._revive()
        if not isinstance(error, MqcoreError) and kind is ErrorKind.TRANSIENT:
            self._connection.report(error, generation)
        return True

    async def _revive(self) -> bool:
        """The queue was deleted by another process: declare it again, as our code declares it."""
        try:
            await self._redeclare()
        except ConnectionLost:
            return True
        except MqcoreError as error:
            self._fail(error)
            return False
        return True

    def settle(self, held: HeldDelivery, decision: Decision) -> None:
        """Send this settlement together with all others of the same loop turn.

        One that comes while another of the same message is under way comes too late: a thread that
        ends when its message is being released already.
        """
        if not held.apply(Step.SETTLE):
            self._events.emit(
                "settle.stale", self.rules.queue, held.delivery.message.id, verdict=decision.verdict
            )
            return

        self._pending.append((held, decision))
        if len(self._pending) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        batch, self._pending = self._pending, []
        if batch:
            self.spawn(self._settle(batch))

    async def _settle(self, batch: Sequence[tuple[HeldDelivery, Decision]]) -> None:
        try:
            await self._settle_all(batch)
        finally:
            for held, _ in batch:  # changes those alone that have no answer: it ended by force
                held.apply(Step.GIVE_UP)

    async def _settle_all(self, batch: Sequence[tuple[HeldDelivery, Decision]]) -> None:
        wait = _FIRST_WAIT
        while batch:
            subscription = self._subscription
            results = await self._try_to_settle(batch, subscription)
            again, missing = [], False
            for (held, decision), result in zip(batch, results, strict=True):
                if isinstance(result, Done):
                    held.settled_by = subscription
                    self.end(held, Step.CONFIRM)
                elif isinstance(result, Stale) and held in self.acknowledged:
                    self.acknowledged.discard(held)
                    held.settled_by = subscription
                    self.end(held, Step.CONFIRM)
                elif isinstance(result, Stale):
                    self._events.emit(
                        "settle.stale",
                        self.rules.queue,
                        held.delivery.message.id,
                        verdict=decision.verdict,
                    )
                    self.end(held, Step.REFUSE)
                elif not held.is_gone:
                    again.append((held, decision))
                    missing = missing or (
                        isinstance(result, Failed) and result.kind is ErrorKind.NOT_FOUND
                    )
                    self._events.emit(
                        "settle.failed",
                        self.rules.queue,
                        held.delivery.message.id,
                        verdict=decision.verdict,
                        error=why(result),
                    )
            batch = again
            if batch:
                if missing:
                    with suppress(Exception):
                        await self._redeclare()
                await self._clock.sleep(random.uniform(0, wait))
                wait = min(wait * 2, _LAST_WAIT)

    async def _try_to_settle(
        self, batch: Sequence[tuple[HeldDelivery, Decision]], subscription: Subscription | None
    ) -> Sequence[Settled]:
        """Settle on the current subscription, which knows whether each receipt is still valid."""
        if subscription is None:
            return [Failed(ErrorKind.TRANSIENT, "the connection is being restored")] * len(batch)
        try:
            results = await subscription.settle(
                [decision.settlement for _, decision in batch], timeout=_SETTLE_TIMEOUT
            )
            if len(results) == len(batch):
                return results
            # Each message needs an answer, or it would keep its place in the prefetch.
            text = f"the driver answered {len(results)} of {len(batch)} settlements"
            return [Unknown(text)] * len(batch)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises: repeating a settlement is safe
            return [Unknown(describe_error(error), error)] * len(batch)

    async def proven(self, held: HeldDelivery) -> bool:
        """Whether the broker has the acknowledgement: the message cannot come again (G2)."""
        return await self._proofs.of(held.settled_by, held.delivery.message)

    def lose(self, held: HeldDelivery) -> None:
        """The claim of this message ended without a settlement of ours (G5)."""
        message = held.delivery.message
        self._events.emit("lease.lost", self.rules.queue, message.id, message.attempt)
        self.end(held, Step.LOSE)

    def end(self, held: HeldDelivery, step: Step) -> None:
        """Take the last step of a message: it is settled, or lost."""
        if not held.apply(step):
            return

        self._carried.discard(held)
        receipt = held.delivery.receipt
        self.held.pop(receipt, None)
        if self._keeper is not None:
            self._keeper.drop(receipt)
        if held.settled is not None and not held.settled.done():
            held.settled.set_result(None)
        self._room.set()

    async def note_start(self, *batch: HeldDelivery) -> bool:
        """Record at the broker that handlers start; False when that failed.

        A backend without such notes needs none.
        """
        backend = self._connection.backend
        if not isinstance(backend, SupportsStart):
            return True
        try:
            receipts = [held.delivery.receipt for held in batch]
            answers = await backend.note_start(self.rules.source, receipts)
            lost = [held for held, is_ours in zip(batch, answers, strict=True) if not is_ours]
        except Exception as error:  # noqa: BLE001 - whatever a driver raises: what is not noted is not started
            self._events.emit("consumer.interrupted", self.rules.queue, error=describe_error(error))
            return False
        for held in lost:
            held.lose()
        return True

    def stop_renewing(self, held: HeldDelivery) -> None:
        """Renew this claim no more: it is about to be settled outside of the driver."""
        if self._keeper is not None:
            self._keeper.drop(held.delivery.receipt)

    def limit(self, held: HeldDelivery, until: float) -> None:
        """Renew this claim no longer than `until` (monotonic)."""
        if self._keeper is not None:
            self._keeper.limit(held.delivery.receipt, until)

    async def stop_receiving(self) -> None:
        """Receive nothing more (G13); `pause` must follow.

        What is held here can still be settled, also after the connection was lost and restored.
        """
        if self._stopped:
            return
        self._stopped = True
        if (pump := self._pump) is not None:
            pump.cancel()
            await asyncio.wait([pump], timeout=_PUMP_ENDS)
            if (
                self._pump is pump
            ):  # else the connection was lost, and another pump subscribes already
                self._mend_stopped()

    async def retire(self, settled: Callable[[], None]) -> None:
        """Receive nothing more; return when all that is held here is settled or lost.

        `settled` is called when some of it is.
        """
        await self.stop_receiving()
        self.pause()
        while self.held:
            self._room.clear()
            await self._room.wait()
            settled()

    def has_room(self) -> None:
        """A message that counts here has been settled."""
        self._room.set()

    def pause(self) -> None:
        """Make the broker send nothing more (G13), once.

        What the driver has received and not handed out goes back. It came after all that is held
        here, so it goes back after what was released before this call (G9).
        """
        if self._paused:
            return
        self._paused = True
        if self._pending:
            self._flush()
        if isinstance(self._subscription, SupportsPause):
            self.spawn(paused(self._subscription))

    async def close(self, grace: Grace) -> None:
        """Release what is not being settled, wait for all answers, then unsubscribe.

        A settlement under way is never replaced by a release of the same message: it may have been
        done, and the message would then be stored twice. What has no answer at the end of the grace
        is left as it is. The broker delivers it again after the subscription has ended, so there is
        at most one duplicate (G3).
        """
        await self.stop_receiving()
        for held in list(self.held.values()):
            if held.can_settle:
                self.settle(held, Decision(Release(held.delivery.receipt), "released"))
        self.pause()
        await self._wait_for_answers(grace)

        self._connection.on_lost.discard(self._cut_off)
        if self._pump is not None:
            self._pump.cancel()
        unanswered = list(self.held.values())
        for task in self._tasks:
            task.cancel()
        for held in unanswered:
            self._events.emit(
                "settle.unanswered", self.rules.queue, held.delivery.message.id, error=_UNANSWERED
            )

        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            closing = asyncio.ensure_future(closed(subscription))
            await asyncio.wait([closing], timeout=grace.left(UNSUBSCRIBED))
            closing.cancel()  # the connection ends next, and the broker takes back what it had sent
        for held in unanswered:  # lost: a caller that waits must not believe that it is done
            held.apply(Step.GIVE_UP)
            self.end(held, Step.LOSE)

    async def _wait_for_answers(self, grace: Grace) -> None:
        """Wait until nothing is being settled, or until the grace and its tail are over."""
        await asyncio.sleep(0)  # settlements of this loop turn become a task first
        while self._tasks:
            if not await grace.wait_for_answers(tuple(self._tasks), ANSWERED):
                return
            await asyncio.sleep(0)  # a task that has ended may have settled something


async def _always() -> float:
    return RECEIVE_TIMEOUT
