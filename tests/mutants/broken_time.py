"""Mutants of expiry, delay and lease."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

from mutants.mutant import changed, mutant
from mutants.silence import BreakableSubscription

from mqcore.spi import STORED, Delivery, Failed, Message, Outcome, Outgoing
from mqcore_memory.backend import MemoryBackend, MemorySubscription
from mqcore_memory.queue import TICK, Copy, MemoryQueue
from mqcore_memory.store import MemoryStore, Touched
from mqcore_memory.waiting import Holder

# Expiry


@mutant("G6", "ttl.a_late_answer_to_a_claim_makes_no_life_longer")
class CountsALifeFromTheAnswer(BreakableSubscription):
    """`expires_in` is that of the claim, however late the answer arrives."""

    def aged(self, delivery: Delivery, late: float) -> Delivery:
        return delivery


@mutant("G6", "ttl.an_expired_message_is_handed_out_as_expired")
class NeverExpires(MemoryQueue):
    """An expired message is not reported as expired."""

    def _lease(self, copy: Copy, holder: Holder, until: float, now: float) -> Delivery:
        return replace(super()._lease(copy, holder, until, now), expires_in=None)


@mutant("G6", "ttl.expired_and_living_messages_do_not_stand_in_each_others_way")
class ExpiresOnlyAtTheHead(MemorySubscription):
    """Only the first message of a receive is checked for expiry."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        got = await super().receive(limit, timeout)
        return [*got[:1], *(replace(delivery, expires_in=None) for delivery in got[1:])]


@mutant("G6", "ttl.a_sweep_finds_the_expired_wherever_they_stand")
class SweepsOnlyTheHead(MemoryQueue):
    """A sweep finds expired messages at the head only."""

    def sweep(self, holder: Holder, limit: int, until: float, now: float) -> list[Delivery]:
        head = min(
            (copy.place for copy in self.copies.values() if copy.state == "ready"), default=0
        )
        swept = super().sweep(holder, limit, until, now)
        for delivery in swept:
            if (copy := self.leases[delivery.receipt]).place != head:
                self.release(copy, lost=False)
        return [delivery for delivery in swept if delivery.receipt in self.leases]


@mutant("G6", "ttl.an_expired_message_is_handed_out_as_expired")
class DropsWhatExpired(MemoryQueue):
    """The broker removes expired messages by itself."""

    def tick(self, now: float) -> None:
        super().tick(now)
        while (number := self._expiries.pop(now)) is not None:
            if (copy := self.copies[number]).state != "leased":
                self._forget(copy)


@mutant("G6", "ttl.what_comes_back_has_not_become_younger")
class ReleaseWindsTheClockBack(MemoryQueue):
    """A released message lives for its whole ttl again."""

    def tick(self, now: float) -> None:
        self.__dict__["now"] = now
        super().tick(now)

    def release(self, copy: Copy, *, lost: bool) -> None:
        if copy.message.expires_at is not None:
            expires_at = self.__dict__["now"] + copy.message.expires_at - copy.stored
            copy.message = replace(copy.message, expires_at=expires_at)
        super().release(copy, lost=lost)


@mutant("G6", "ttl.a_move_copies_the_expiry_and_the_target_adds_none")
class MoveWindsTheClockBack(MemoryStore):
    """A retried message lives for its whole ttl again."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        if entry.message.expires_at is not None and out.message.expires_at is not None:
            out = changed(out, expires_at=now + entry.message.expires_at - entry.stored)
        return super()._store_successor(entry, out, now, touched)


@mutant("G6", "ttl.the_wait_of_a_retry_does_not_stop_the_clock")
class MoveForgetsTheExpiry(MemoryStore):
    """A retried message never expires."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        return super()._store_successor(entry, changed(out, expires_at=None), now, touched)


@mutant("G6", "ttl.a_dead_letter_never_expires_again")
class DeadLettersExpireAgain(MemoryStore):
    """The successor has the source's expiry, whatever the Move says."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        return super()._store_successor(
            entry, changed(out, expires_at=entry.message.expires_at), now, touched
        )


@mutant("G6", "ttl.a_move_copies_the_expiry_and_the_target_adds_none")
class QueueTtlAppliesToMoves(MemoryStore):
    """A moved message gets the ttl of its target queue."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        target = self._queues.get(str(out.to))
        if target is not None and target.spec.ttl is not None:
            out = changed(out, expires_at=min(out.message.expires_at or inf, now + target.spec.ttl))
        return super()._store_successor(entry, out, now, touched)


@mutant("G6", "ttl.the_shorter_ttl_wins")
class MessageTtlWins(MemoryStore):
    """A message's own ttl applies, though the queue's is shorter."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        outcome = super()._publish(out, now, wall, touched)
        if outcome == STORED and out.ttl is not None:
            copies = touched[str(out.to)].copies
            copy = copies[max(copies)]
            copy.message = replace(copy.message, expires_at=now + out.ttl)
        return outcome


@mutant("G6", "ttl.a_ttl_longer_than_the_delay_counts_from_publish")
class LivesFromDue(MemoryQueue):
    """The ttl of a delayed message counts from the end of its delay."""

    def put(self, message: Message, now: float, delay: float = 0.0) -> None:
        if message.expires_at is not None:
            message = replace(message, expires_at=message.expires_at + delay)
        super().put(message, now, delay)


# Delay


@mutant("G7", "delay.a_delayed_message_comes_at_its_time")
class DelayIgnored(MemoryQueue):
    """DELAY is claimed, and every message is ready at once."""

    def put(self, message: Message, now: float, delay: float = 0.0) -> None:
        super().put(message, now)


@mutant("G7", "delay.a_delayed_message_comes_at_its_time")
class EarlyDelay(MemoryQueue):
    """A delay ends a tenth before its time."""

    def put(self, message: Message, now: float, delay: float = 0.0) -> None:
        super().put(message, now, 0.9 * delay)


@mutant("G7", "delay.delays_keep_to_the_declared_granularity")
class LateDelay(MemoryQueue):
    """A delay ends half a second after its time; 5 ms are declared."""

    def put(self, message: Message, now: float, delay: float = 0.0) -> None:
        super().put(message, now, delay + 0.5 if delay else 0.0)


@mutant("G7", "delay.a_short_delay_is_not_stuck_behind_a_long_one")
class LongDelayBlocksAShortOne(MemoryQueue):
    """A delay does not end before those that began earlier, as with a ttl for each message."""

    def put(self, message: Message, now: float, delay: float = 0.0) -> None:
        before = max(
            (copy.due for copy in self.copies.values() if copy.state == "delayed"), default=0.0
        )
        super().put(message, now, max(delay, before - now) if delay else 0.0)


@mutant("G7", "delay.delays_that_end_together_lose_nobody")
class DueInTheOrderOfPublishing(MemoryQueue):
    """Messages that fell due since the last receive come in publish order."""

    def tick(self, now: float) -> None:
        delayed = [number for number, copy in self.copies.items() if copy.state == "delayed"]
        super().tick(now)
        due = [
            copy
            for number in sorted(delayed)
            if (copy := self.copies.get(number)) and copy.state == "ready"
        ]
        for copy, place in zip(due, sorted(copy.place for copy in due), strict=True):
            copy.place = place
            self._levels[copy.message.priority].push(place, copy.number)


@mutant("G7", "delay.delayed_messages_take_no_consumer_and_no_prefetch")
class DelayedHoldPrefetch(MemoryQueue):
    """Delayed messages count against the prefetch."""

    def claim(self, holder: Holder, limit: int, now: float) -> list[Delivery]:
        return super().claim(
            holder, min(limit, int(holder.prefetch) - holder.held - self.delayed), now
        )

    def nudge(self) -> None:
        room = any(holder.prefetch - holder.held > self.delayed for holder in self.consumers)
        self.waiters.nudge(self.ready if room else 0, self.next_event())


@mutant("G7", "delay.a_delayed_message_comes_at_its_time")
class DueWakesNobody(MemoryQueue):
    """A consumer that waits in an idle queue is not woken at the end of a delay."""

    def next_event(self) -> float:
        return self._ends.first()


@mutant("G7", "delay.a_retried_message_is_delayed_again_and_again")
class SecondDelayIgnored(MemoryStore):
    """A message that was moved before is not delayed again."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        out = replace(out, delay=0.0) if entry.message.hop else out
        return super()._store_successor(entry, out, now, touched)


@mutant("G7", "delay.who_publishes_a_delay_may_leave")
class DelayedGoWithTheirPublisher(MemoryBackend):
    """Delayed messages are stored in the publisher, and lost with it."""

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        self.__dict__.setdefault("mine", set()).update(out.message.id for out in batch if out.delay)
        return await super().publish(batch, timeout=timeout)

    async def close(self) -> None:
        queues = list(self._open._queues.values()) if self._open is not None else []
        for queue in queues:
            for copy in list(queue.copies.values()):
                if copy.state == "delayed" and copy.message.id in self.__dict__.get("mine", ()):
                    queue._forget(copy)
        await super().close()


@mutant("G7", "delay.a_delay_above_the_maximum_is_refused")
class ClampsADelay(MemoryStore):
    """A delay above the declared maximum is shortened silently."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        return super()._publish(
            replace(out, delay=min(out.delay, self.max_delay)), now, wall, touched
        )


# Lease


@mutant("G5", "lease.a_lease_that_is_not_renewed_ends")
class LeaseNeverEnds(MemoryQueue):
    """Leases never end."""

    def _lease(self, copy: Copy, holder: Holder, until: float, now: float) -> Delivery:
        return super()._lease(copy, holder, inf, now)

    def renew(self, receipt: bytes, until: float) -> bool:
        return super().renew(receipt, inf)


@mutant("G5", "lease.a_lease_that_is_not_renewed_ends")
class LeaseEndsEarly(MemoryQueue):
    """A lease lasts half as long as it should."""

    def _lease(self, copy: Copy, holder: Holder, until: float, now: float) -> Delivery:
        return super()._lease(copy, holder, now + (until - now) / 2, now)


@mutant("G5", "lease.a_lease_that_is_not_renewed_ends")
class EndOfLeaseWakesNobody(MemoryQueue):
    """A consumer that waits in an idle queue is not woken at the end of a lease."""

    def next_event(self) -> float:
        return self._delays.first()


@mutant("G5", "lease.a_renewed_lease_holds")
class RenewLies(MemoryQueue):
    """A renewal is answered True, and the lease ends as before."""

    def renew(self, receipt: bytes, until: float) -> bool:
        return receipt in self.leases


@mutant("G5", "lease.what_was_settled_cannot_be_renewed")
class RenewsWhatIsLost(MemoryQueue):
    """The renewal of a lost claim is answered True."""

    def renew(self, receipt: bytes, until: float) -> bool:
        super().renew(receipt, until)
        return True


@mutant("G5", "lease.any_open_instance_may_renew_and_settle")
class OnlyTheOwnerRenews(MemoryBackend):
    """An instance renews only what it received itself; the renewing thread has another."""

    async def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
        mine = {subscription._holder for subscription in self._subscriptions}
        leases = self._store._queues[queue].leases
        own = [
            receipt for receipt in receipts if (copy := leases.get(receipt)) and copy.holder in mine
        ]
        renewed = dict(zip(own, await super().renew(queue, own, lease), strict=True))
        return [renewed.get(receipt, False) for receipt in receipts]


@mutant("G5", "lease.a_lease_that_is_not_renewed_ends")
class TakeoverLoses(MemoryQueue):
    """Messages whose lease ends are lost."""

    def tick(self, now: float) -> None:
        while (receipt := self._ends.pop(now + TICK)) is not None:
            self.remove(self.leases[receipt])
        super().tick(now)


@mutant("G4", "lease.a_lease_that_is_not_renewed_ends")
class TakeoverWithoutACount(MemoryQueue):
    """Messages whose lease ended are not counted as taken over."""

    def tick(self, now: float) -> None:
        while (receipt := self._ends.pop(now + TICK)) is not None:
            self.release(self.leases[receipt], lost=False)
        super().tick(now)


@mutant("G5", "lease.the_late_settlement_of_an_old_owner_is_stale")
class SettlesForAStaleOwner(MemoryQueue):
    """A receipt names the message and not the claim: an old owner can settle it."""

    def _lease(self, copy: Copy, holder: Holder, until: float, now: float) -> Delivery:
        delivery = super()._lease(copy, holder, until, now)
        receipt = b"copy %d" % copy.number
        self.leases[receipt] = self.leases.pop(delivery.receipt)
        copy.receipt = receipt
        self._ends.push(until, receipt)
        return replace(delivery, receipt=receipt)


@mutant("G5", "lease.an_ended_lease_gives_its_owner_room_again")
class HeldForEverByADeadOwner(MemoryQueue):
    """A message whose lease ended still counts against the prefetch."""

    def release(self, copy: Copy, *, lost: bool) -> None:
        holder: Any = copy.holder
        super().release(copy, lost=lost)
        if lost and holder is not None:
            holder.held += 1
