"""Mutants of Move, of dead letters and of the dedup window."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from mutants.mutant import changed, mutant

from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    ErrorKind,
    Failed,
    Move,
    Outcome,
    Outgoing,
    Settled,
    Settlement,
    Stored,
)
from mqcore_memory.queue import Copy, MemoryQueue
from mqcore_memory.store import MemoryStore, Touched

_NUMBERS = count(1_000_000_000)

# Successor first


@mutant("G3", "retry.a_failed_move_leaves_its_source_leased")
class MoveLosesWhenTheTargetIsMissing(MemoryStore):
    """A Move to a missing queue is `Done`, and the message is lost."""

    def _settle(
        self, source: MemoryQueue, item: Settlement, now: float, touched: Touched
    ) -> Settled:
        settled = super()._settle(source, item, now, touched)
        if isinstance(settled, Failed):
            source.remove(source.leases[item.receipt])
            return DONE
        return settled


@mutant("G3", "retry.a_failed_move_leaves_its_source_leased")
class MoveLetsGoFirst(MemoryStore):
    """A Move removes its source, then stores the successor, which may fail."""

    def _settle(
        self, source: MemoryQueue, item: Settlement, now: float, touched: Touched
    ) -> Settled:
        entry = source.leases.get(item.receipt)
        if entry is None or not isinstance(item, Move):
            return super()._settle(source, item, now, touched)
        source.remove(entry)
        return self._store_successor(entry, item.to, now, touched) or DONE


@mutant("G3", "retry.a_failed_move_leaves_its_source_leased")
class AFailedMoveReleases(MemoryStore):
    """A Move that fails releases its source instead of leaving it leased."""

    def _settle(
        self, source: MemoryQueue, item: Settlement, now: float, touched: Touched
    ) -> Settled:
        settled = super()._settle(source, item, now, touched)
        if isinstance(settled, Failed):
            source.release(source.leases[item.receipt], lost=False)
        return settled


@mutant("G3", "retry.a_stale_move_stores_nothing")
class AStaleMoveStores(MemoryStore):
    """A Move after a lost lease stores a successor, although ATOMIC_MOVE is declared."""

    def _settle(
        self, source: MemoryQueue, item: Settlement, now: float, touched: Touched
    ) -> Settled:
        settled = super()._settle(source, item, now, touched)
        if settled == STALE and isinstance(item, Move):
            self._publish(item.to, now, 0.0, touched)
        return settled


@mutant("G3", "retry.a_move_stores_the_successor_and_lets_go_of_the_source")
class MoveKeepsItsSource(MemoryStore):
    """A Move stores the successor and does not remove the source."""

    def _settle(
        self, source: MemoryQueue, item: Settlement, now: float, touched: Touched
    ) -> Settled:
        settled = super()._settle(source, item, now, touched)
        if settled == DONE and isinstance(item, Move):
            source.put(replace(item.to.message, hop=item.to.message.hop - 1), now)
        return settled


@mutant("G3", "retry.a_move_keeps_its_id_and_is_not_taken_for_a_duplicate")
class AMoveIsARelease(MemoryStore):
    """A Move to the message's own queue is only a release."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        if any(
            entry.number in queue.copies for name, queue in self._queues.items() if name == out.to
        ):
            out = replace(
                out,
                message=replace(entry.message, hop=out.message.hop, lineage=out.message.lineage),
            )
        return super()._store_successor(entry, out, now, touched)


@mutant("G4", "retry.a_move_stores_the_successor_and_lets_go_of_the_source")
class ForgetsAttempts(MemoryStore):
    """Each successor is at its first attempt."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        return super()._store_successor(entry, changed(out, attempt=1), now, touched)


@mutant("G10", "retry.a_move_stores_the_successor_and_lets_go_of_the_source")
class ForgetsTheFirstFailure(MemoryStore):
    """`failed_at` and `redriven` are not stored with a successor."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        return super()._store_successor(
            entry, changed(out, failed_at=None, redriven=0), now, touched
        )


# Dead letters


@mutant("G11", "dead-letter.a_dead_letter_keeps_the_original_and_its_record")
class DeadLetterWithoutBody(MemoryStore):
    """A dead letter has its record and an empty body."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        out = changed(out, body=b"") if out.message.death is not None else out
        return super()._store_successor(entry, out, now, touched)


@mutant("G11", "dead-letter.a_dead_letter_keeps_the_original_and_its_record")
class DeadLetterWithoutHeaders(MemoryStore):
    """A dead letter has lost its headers."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        out = changed(out, headers={}) if out.message.death is not None else out
        return super()._store_successor(entry, out, now, touched)


@mutant("G11", "dead-letter.a_dead_letter_keeps_the_original_and_its_record")
class DeadLetterWithoutRecord(MemoryStore):
    """A dead letter does not say why it died."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        return super()._store_successor(entry, changed(out, death=None), now, touched)


@mutant("G11", "dead-letter.a_dead_letter_keeps_the_original_and_its_record")
class DeadLetterWithoutError(MemoryStore):
    """A dead letter's record has lost the error's text."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        if out.message.death is not None:
            out = changed(out, death=replace(out.message.death, error="", traceback=""))
        return super()._store_successor(entry, out, now, touched)


# The dedup window


@mutant("G1", "retry.a_move_keeps_its_id_and_is_not_taken_for_a_duplicate")
class MoveTakenForADuplicate(MemoryStore):
    """The window uses the id alone, so that a retry counts as a duplicate, and is lost."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        target = self._queues.get(str(out.to))
        if target is not None and any(key[0] == out.message.id for key in target.window._numbers):
            return None
        return super()._store_successor(entry, out, now, touched)


@mutant("G1", "dead-letter.copies_of_one_routed_message_stay_two_wherever_they_meet")
class CopiesOfOneRouteMeet(MemoryStore):
    """The window ignores the lineage: two copies of one routed message become one."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        target, message = self._queues.get(str(out.to)), out.message
        if target is not None and any(
            key[:2] == (message.id, message.hop) for key in target.window._numbers
        ):
            return None
        failed = super()._store_successor(entry, out, now, touched)
        if target is not None and failed is None:
            # As a backend does that publishes the successor and then acks.
            target.remember(message, now)
        return failed


@mutant("G1", "retry.two_copies_of_one_id_in_one_queue_are_both_moved[published-twice]")
class SuccessorsAreRemembered(MemoryStore):
    """The window remembers successors, so that another copy of the same name is lost."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        failed = super()._store_successor(entry, out, now, touched)
        if failed is None:
            self._queues[str(out.to)].remember(out.message, now)
        return failed


@mutant("G1", "retry.two_copies_of_one_id_in_one_queue_are_both_moved[from-two-queues]")
class SuccessorsGoByIdAndHop(MemoryStore):
    """As that, and a successor's name ignores its lineage, so that copies from two queues meet."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        name = (str(out.to), out.message.id, out.message.hop)
        if name in (moved := self.__dict__.setdefault("moved", set())):
            return None
        failed = super()._store_successor(entry, out, now, touched)
        moved.update([name] if failed is None else [])
        return failed


@mutant("G3", "retry.a_successor_that_is_stored_twice_is_one_copy")
class MoveNeverADuplicate(MemoryStore):
    """A Move that is repeated after a crash stores a second copy, although DEDUP is declared."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        if (target := self._queues.get(str(out.to))) is not None:
            target.window._numbers.pop(out.message.copy_name, None)
        return super()._store_successor(entry, out, now, touched)


@mutant("G1", "core.a_message_published_again_is_one_copy")
class DedupIgnored(MemoryStore):
    """DEDUP is claimed, and a message published twice is stored twice."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        if (queue := self._queues.get(str(out.to))) is not None:
            queue.window._numbers.pop(out.message.copy_name, None)
        return super()._publish(out, now, wall, touched)


@mutant("G1", "core.a_message_published_again_is_one_copy")
class DedupForgetsAtTheAck(MemoryQueue):
    """The window forgets a message when it is acknowledged."""

    def remove(self, copy: Copy) -> None:
        super().remove(copy)
        self.window._numbers.pop(copy.message.copy_name, None)


@mutant("G1", "core.a_message_published_again_is_one_copy")
class DedupAcrossQueues(MemoryStore):
    """All queues share one window, so that a second queue gets no copy."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        if out.to in self._queues and any(
            queue.window.has(out.message.copy_name) for queue in self._queues.values()
        ):
            return Stored(duplicate=True)
        return super()._publish(out, now, wall, touched)


@mutant("G1", "core.a_message_published_again_is_one_copy")
class DuplicateNotSaid(MemoryStore):
    """One copy is stored, and the outcome does not report the duplicate."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        outcome = super()._publish(out, now, wall, touched)
        return STORED if isinstance(outcome, Stored) else outcome


@mutant("G1", "uniformity.a_full_queue_remembers_what_it_holds_and_not_what_it_refused")
class RefusedIsRemembered(MemoryStore):
    """The window remembers what was refused, so that the next try is `Stored`, and gone."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        outcome = super()._publish(out, now, wall, touched)
        if isinstance(outcome, Failed) and outcome.kind is ErrorKind.FULL:
            self._queues[str(out.to)].window.add(out.message.copy_name, next(_NUMBERS), now)
        return outcome


@mutant("G1", "uniformity.id_hop_lineage_and_queue_make_the_name")
class WindowOfOne(MemoryQueue):
    """The window remembers the last message only; a million are declared."""

    def put(self, message: object, now: float, delay: float = 0.0) -> None:
        self.window._numbers.clear()
        super().put(message, now, delay)  # type: ignore[arg-type]  # it is a Message


# Postpone


@mutant("G10", "retry.a_wait_beyond_the_expiry_ends_at_the_expiry")
class RefusesADelayThatEndsAtTheExpiry(MemoryStore):
    """A Move whose delay ends when its message expires is refused."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        expiry = out.message.expires_at
        if out.delay and expiry is not None and now + out.delay >= expiry - 0.1:
            return Failed(ErrorKind.PERMANENT, "it would expire meanwhile")
        return super()._store_successor(entry, out, now, touched)


@mutant("G10", "retry.a_postponed_message_comes_again_as_it_was")
class CountsEachDelayedMove(MemoryStore):
    """A Move with a delay is taken for a retry, and adds an attempt."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        if out.delay and out.message.attempt == entry.message.attempt:
            counted = replace(out.message, attempt=out.message.attempt + 1)
            out = replace(out, message=counted)
        return super()._store_successor(entry, out, now, touched)


@mutant("G6", "retry.a_message_that_could_not_be_concluded_comes_back")
class ForgetsTheDeathOfWhatIsDelayed(MemoryStore):
    """A Move with a delay drops the death record of its message."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        if out.delay:
            out = replace(out, message=replace(out.message, death=None))
        return super()._store_successor(entry, out, now, touched)


@mutant("G6", "retry.a_message_that_could_not_be_concluded_comes_back")
class IgnoresTheTtlOfADelayedMove(MemoryStore):
    """A Move with a delay never expires."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        out = replace(out, ttl=None) if out.delay else out
        return super()._store_successor(entry, out, now, touched)
