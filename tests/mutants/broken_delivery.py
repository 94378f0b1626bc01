"""Mutants of publishing, receiving, settling and closing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mutants.mutant import changed, mutant

from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    Ack,
    Capabilities,
    Delivery,
    ErrorKind,
    Failed,
    Message,
    Outcome,
    Outgoing,
    Settled,
    Settlement,
)
from mqcore_memory.backend import MemoryBackend, MemorySubscription
from mqcore_memory.queue import Copy, MemoryQueue
from mqcore_memory.store import MemoryStore, Touched
from mqcore_memory.waiting import Holder

# Publishing


@mutant("G1", "core.an_outcome_comes_for_each_item_in_its_order")
class SwallowsAMissingQueue(MemoryStore):
    """A publish to a missing queue is answered `Stored`, and the message is lost."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        outcome = super()._publish(out, now, wall, touched)
        return (
            STORED
            if isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND
            else outcome
        )


@mutant("G1", "core.an_outcome_comes_for_each_item_in_its_order")
class MixesUpOutcomes(MemoryStore):
    """The outcomes of a batch come in the order of the broker's answers: refusals last."""

    def publish(self, batch: Sequence[Outgoing], now: float, wall: float) -> list[Outcome]:
        return sorted(
            super().publish(batch, now, wall), key=lambda outcome: isinstance(outcome, Failed)
        )


@mutant("G1", "core.an_outcome_comes_for_each_item_in_its_order")
class FailsTheWholeBatch(MemoryStore):
    """One item that cannot be stored fails all of its batch."""

    def publish(self, batch: Sequence[Outgoing], now: float, wall: float) -> list[Outcome]:
        failed = next(
            (found for out in batch if isinstance(found := self._target(out, now, {}), Failed)),
            None,
        )
        return super().publish(batch, now, wall) if failed is None else [failed] * len(batch)


@mutant("G1", "core.a_publish_that_ends_in_an_error_has_stored_nothing")
class RaisesAfterItHasStored(MemoryBackend):
    """A publish that a close interrupts raises, and the message is stored."""

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        outcomes = await super().publish(batch, timeout=timeout)
        await asyncio.sleep(0)  # the confirmation is on its way
        _ = self._store  # raises when this instance was closed meanwhile
        return outcomes


@mutant("G1", "core.a_publish_that_ends_in_an_error_has_stored_nothing")
class RefusesAfterItHasStored(MemoryBackend):
    """As above, by an outcome."""

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        outcomes = await super().publish(batch, timeout=timeout)
        await asyncio.sleep(0)
        return (
            outcomes
            if self._open is not None
            else [Failed(ErrorKind.TRANSIENT, "closed")] * len(batch)
        )


@mutant("G9", "core.a_receive_gives_up_to_its_limit_at_once")
class TurnsABatchAround(MemoryStore):
    """The messages of one batch are stored in reverse order."""

    def publish(self, batch: Sequence[Outgoing], now: float, wall: float) -> list[Outcome]:
        return super().publish(batch[::-1], now, wall)[::-1]


@mutant("G1", "core.overlapping_publishes_lose_nothing")
class StoresTwice(MemoryQueue):
    """Each message is stored twice."""

    def put(self, message: Any, now: float, delay: float = 0.0) -> None:
        super().put(message, now, delay)
        super().put(message, now, delay)


# Receiving


@mutant("G2", "delivery.what_a_consumer_leaves_unsettled_goes_to_one_who_waits")
class AcksOnReceive(MemorySubscription):
    """A message is removed when it is handed out."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        got = await super().receive(limit, timeout)
        self._store.settle(
            self._queue, [Ack(delivery.receipt) for delivery in got], self._clock.monotonic()
        )
        return got

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        return [DONE] * len(batch)


@mutant("G2", "delivery.nothing_is_handed_out_while_it_is_held")
class HandsOutTwice(MemorySubscription):
    """A held message is handed out again when no other is ready."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._held: dict[bytes, Delivery] = {}

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        got = await super().receive(limit, timeout)
        if not got:
            return [
                delivery for receipt, delivery in self._held.items() if receipt in self._leases
            ][:limit]
        self._held |= {delivery.receipt: delivery for delivery in got}
        return got

    @property
    def _leases(self) -> dict[bytes, Copy]:
        return self._store._queues[self._queue].leases


@mutant("G9", "delivery.what_comes_out_of_order_says_so")
class NeverSaysRedelivered(MemoryQueue):
    """A message that was handed out before is not marked."""

    def _lease(self, copy: Copy, holder: Holder, until: float, now: float) -> Delivery:
        return replace(super()._lease(copy, holder, until, now), redelivered=False)


@mutant(
    "G4",
    "delivery.what_a_consumer_leaves_unsettled_goes_to_one_who_waits",
    "lease.what_a_dead_consumer_held_goes_to_another_in_time",
)
class NeverTakenOver(MemoryQueue):
    """A dead consumer's messages come back as if they had been released."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        super().release(copy, lost=False)


@mutant("G12", "bounds.prefetch_is_an_exact_ceiling", "delivery.prefetch_is_an_exact_ceiling")
class IgnoresPrefetch(MemorySubscription):
    """A consumer is handed every message."""

    def __init__(self, store: MemoryStore, queue: str, holder: Holder, *parts: Any) -> None:
        holder.prefetch = 1_000_000
        super().__init__(store, queue, holder, *parts)


@mutant(
    "G12",
    "delivery.a_settlement_makes_room_for_a_receive_that_waits",
    "bounds.prefetch_is_an_exact_ceiling",
)
class GivesNoRoomAgain(MemoryQueue):
    """Acknowledged messages still count against the prefetch."""

    def remove(self, copy: Copy) -> None:
        if copy.holder is not None:
            copy.holder.held += 1
        super().remove(copy)


@mutant("G12", "core.a_receive_gives_up_to_its_limit_at_once")
class ReceivesBeyondTheLimit(MemorySubscription):
    """`receive` returns one more than it was asked for."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        return await super().receive(limit + 1, timeout)


@mutant("G2", "core.a_consumer_that_waits_is_woken_by_a_publish")
class WaitsUntilItHasAll(MemorySubscription):
    """`receive` returns one message only when its time is over."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        end = self._clock.monotonic() + timeout
        got = list(await super().receive(limit, timeout))
        while len(got) < limit and (left := end - self._clock.monotonic()) > 0 and self._open:
            got += await super().receive(limit - len(got), left)
        return got


@mutant("G2", "core.a_receive_from_an_empty_queue_ends_with_nothing")
class NothingIsAnError(MemorySubscription):
    """An empty queue ends `receive` with an exception."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        got = await super().receive(limit, timeout)
        if not got and self._open:
            raise TimeoutError
        return got


@mutant("G2", "core.a_cancelled_receive_strands_nothing")
class StrandsWhatACancelledReceiveClaimed(MemorySubscription):
    """A `receive` that is cancelled after its claim loses the messages."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        got = await super().receive(limit, timeout)
        for _ in range(8):
            await asyncio.sleep(0)
        return got


# What was published is what comes


@mutant("G17", "foreign.a_compressed_body_is_decoded_and_kept_as_it_was_sent")
class DropsTheContentEncoding(MemoryStore):
    """The body is stored without its encoding."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        return super()._publish(changed(out, encoding=None), now, wall, touched)


@mutant("G17", "foreign.a_reply_goes_to_a_reply_queue_and_to_no_other")
class TakesEveryQueueForAReplyQueue(MemoryBackend):
    """A reply goes to any queue that the request names."""

    reply_queues = ("",)


@mutant("G17", "foreign.every_field_of_a_message_comes_back")
class DropsAHeader(MemoryStore):
    """The first header of a message is missing."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        headers = dict(list(out.message.headers.items())[1:])
        return super()._publish(changed(out, headers=headers), now, wall, touched)


@mutant("G17", "foreign.a_body_comes_back_byte_for_byte")
class TakesABodyForText(MemoryStore):
    """A body is decoded as UTF-8, and other bytes are changed."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        body = out.message.body.decode("utf-8", "replace").encode()
        return super()._publish(changed(out, body=body), now, wall, touched)


@mutant("G17", "foreign.every_field_of_a_message_comes_back")
class ForgetsWhereToReply(MemoryStore):
    """`reply_to` and `correlation_id` do not arrive."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        return super()._publish(
            changed(out, reply_to=None, correlation_id=None), now, wall, touched
        )


@mutant("G17", "foreign.what_is_changed_afterwards_changes_nothing")
class SharesWithThePublisher(MemoryStore):
    """The publisher's own message is stored, and changes with it."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        outcome = super()._publish(out, now, wall, touched)
        if outcome == STORED and out.ttl is None:
            copies = touched[str(out.to)].copies
            copies[max(copies)].message = out.message
        return outcome


@mutant("G17", "foreign.what_is_changed_afterwards_changes_nothing")
class SharesWithTheConsumer(MemoryQueue):
    """A change that a consumer makes to a header is seen by the next."""

    def put(self, message: Any, now: float, delay: float = 0.0) -> None:
        super().put(replace(message, headers=dict(message.headers)), now, delay)


# Settling


@mutant("G2", "delivery.a_released_message_comes_again_as_it_was")
class LosesOnRelease(MemoryQueue):
    """A released message is lost."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        if lost:
            super().release(copy, lost=lost)
        else:
            self.remove(copy)


@mutant("G4", "delivery.a_message_survives_any_number_of_releases")
class CountsReleases(MemoryQueue):
    """A release is an attempt, as with a broker's own counter."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        copy.message = replace(copy.message, attempt=copy.message.attempt + 1)
        super().release(copy, lost=lost)


@mutant("G4", "delivery.a_released_message_comes_again_as_it_was")
class ReleaseIsATakeover(MemoryQueue):
    """A release looks like a crash."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        super().release(copy, lost=True)


@mutant("G4", "delivery.a_release_leaves_takeovers_as_they_were[taken-over]")
class AReleaseTakesTakeoversAway(MemoryQueue):
    """A release clears the takeovers of other consumers."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        super().release(copy, lost=lost)
        copy.takeovers = int(lost)


@mutant("G4", "takeover.every_takeover_is_counted")
class CountsOneTakeover(MemoryQueue):
    """A flag is taken for a count: three deaths look like one, and nothing is isolated."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        super().release(copy, lost=lost)
        copy.takeovers = min(copy.takeovers, 1)


@mutant("G4", "takeover.a_takeover_after_a_release_is_one_more")
class AReleaseForgetsOne(MemoryQueue):
    """After a release a message's takeovers are only a flag."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        super().release(copy, lost=lost and not copy.redelivered)


@mutant("G4", "takeover.a_move_begins_a_copy_that_nobody_has_taken_over")
class ForgetsEarlierTakeovers(MemoryQueue):
    """`Message.takeovers` is not stored."""

    def put(self, message: Message, now: float, delay: float = 0.0) -> None:
        super().put(replace(message, takeovers=0), now, delay)


@mutant("G4", "takeover.only_a_claim_that_noted_its_start_is_said_to_have_started")
class NeverNotesAStart(MemoryQueue):
    """A noted start is forgotten: a killer that dies alone is never counted."""

    def note_start(self, receipt: bytes) -> bool:
        return receipt in self.leases


@mutant("G4", "takeover.only_a_claim_that_noted_its_start_is_said_to_have_started")
class EveryTakeoverWasStarted(MemoryQueue):
    """Every lost claim is reported as started."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        super().release(copy, lost=lost)
        copy.started = copy.started or lost


@mutant("G4", "takeover.only_a_claim_that_noted_its_start_is_said_to_have_started")
class AReleaseKeepsTheNote(MemoryQueue):
    """A start that one consumer noted and released counts when the next is lost."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        noted = copy.noted
        super().release(copy, lost=lost)
        copy.noted = noted


@mutant("G9", "delivery.released_messages_return_to_their_old_places")
class ReleasesToTheEnd(MemoryQueue):
    """A released message goes to the end, although ORDER says `release_in_place`."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        if copy.place:
            copy.place = next(self._numbers)
        super().release(copy, lost=lost)


@mutant("G5", "delivery.a_second_settlement_is_stale_and_changes_nothing")
class StaleAnswersDone(MemoryStore):
    """A settlement that comes too late is answered `Done`."""

    def settle(self, name: str, batch: Sequence[Settlement], now: float) -> list[Settled]:
        return [
            DONE if settled == STALE else settled for settled in super().settle(name, batch, now)
        ]


@mutant("G2", "delivery.what_is_acked_is_gone")
class SettlesOnlyTheFirst(MemoryStore):
    """Only the first settlement of a batch takes effect, and all are answered `Done`."""

    def settle(self, name: str, batch: Sequence[Settlement], now: float) -> list[Settled]:
        return super().settle(name, batch[:1], now) * len(batch)


@mutant("G5", "delivery.an_outcome_comes_for_each_settlement_in_its_order")
class MixesUpSettled(MemoryStore):
    """The answers to a batch of settlements come with the stale ones last."""

    def settle(self, name: str, batch: Sequence[Settlement], now: float) -> list[Settled]:
        return sorted(super().settle(name, batch, now), key=lambda settled: settled == STALE)


# Closing


@mutant("G2", "delivery.what_a_consumer_leaves_unsettled_goes_to_one_who_waits")
class LosesOnClose(MemoryQueue):
    """Messages of a consumer that closes are lost."""

    def abandon(self, holder: Holder) -> None:
        for copy in [copy for copy in self.leases.values() if copy.holder is holder]:
            self.remove(copy)


@mutant("G5", "delivery.closing_one_consumer_leaves_others_alone")
class KeepsOnClose(MemoryQueue):
    """Messages of a consumer that closes stay leased until the lease ends."""

    def abandon(self, holder: Holder) -> None:
        pass


@mutant("G13", "core.a_consumer_closes_at_once_and_for_good")
class ReceiveOutlivesClose(MemorySubscription):
    """`close` does not end a waiting `receive`."""

    async def close(self) -> None:
        if self._open:
            self.closed(self)
            self._store.unsubscribe(self._queue, self._holder, self._clock.monotonic())


@mutant("G13", "core.a_full_consumer_closes_at_once_too")
class CloseWaitsForSettlements(MemoryBackend):
    """`close` waits until every held message has been settled."""

    async def close(self) -> None:
        while any(subscription._holder.held for subscription in self._subscriptions):
            await self._clock.sleep(0.1)
        await super().close()


@mutant("G13", "core.open_and_close_come_in_any_order_and_again")
class CloseTwiceRaises(MemoryBackend):
    """The second `close` raises."""

    async def close(self) -> None:
        self._store  # noqa: B018 - it raises when there is none
        await super().close()


@mutant("G14", "core.open_and_close_come_in_any_order_and_again")
class OpensOnlyOnce(MemoryBackend):
    """`open` after `close` fails: this instance cannot reconnect."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        if self.__dict__.setdefault("used", False):
            raise ConnectionError("this instance was closed")
        return await super().open(lost)

    async def close(self) -> None:
        self.__dict__["used"] = True
        await super().close()


@mutant("G14", "core.open_and_close_come_in_any_order_and_again")
class ReportsALossAtClose(MemoryBackend):
    """`lost` is called when the application itself closes."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        self.__dict__["lost"] = lost
        return await super().open(lost)

    async def close(self) -> None:
        if self._open is not None:
            self.__dict__["lost"](ConnectionError("closed"))
        await super().close()


@mutant("G1", "core.a_closed_instance_refuses_every_call_in_clear_words")
class PublishesWhenClosed(MemoryBackend):
    """A publish after `close` is accepted, and lost."""

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        return (
            [STORED] * len(batch)
            if self._open is None
            else await super().publish(batch, timeout=timeout)
        )
