"""Mutants of bounds, browsing, declaring and routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mutants.mutant import mutant

from mqcore.spi import (
    Alterations,
    Binding,
    Delivery,
    Entry,
    ErrorKind,
    Failed,
    Message,
    Outcome,
    Outgoing,
    QueueCounts,
    QueueNotFound,
    QueueSpec,
)
from mqcore_memory.backend import MemoryBackend, MemorySubscription
from mqcore_memory.bindings import Bindings
from mqcore_memory.queue import Copy, MemoryQueue
from mqcore_memory.store import MemoryStore, Touched
from mqcore_memory.waiting import Holder

# Bounds


@mutant("G12", "bounds.a_full_queue_refuses_what_is_published")
class MaxLengthIgnored(MemoryStore):
    """MAX_LENGTH is claimed, and queues are not bounded."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        queue = self._queues.get(str(out.to))
        if queue is None:
            return super()._publish(out, now, wall, touched)
        spec, queue.spec = queue.spec, replace(queue.spec, max_length=None)
        outcome = super()._publish(out, now, wall, touched)
        queue.spec = spec
        return outcome


@mutant("G12", "bounds.the_bound_is_exact_inside_a_batch")
class MaxLengthOffByOne(MemoryStore):
    """A queue holds one message more than its `max_length`."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        queue = self._queues.get(str(out.to))
        if queue is None or queue.spec.max_length is None:
            return super()._publish(out, now, wall, touched)
        spec, queue.spec = queue.spec, replace(queue.spec, max_length=queue.spec.max_length + 1)
        outcome = super()._publish(out, now, wall, touched)
        queue.spec = spec
        return outcome


@mutant("G12", "bounds.a_move_is_never_refused")
class MaxLengthStopsMoves(MemoryStore):
    """A retry or a dead letter is refused by a full queue."""

    def _store_successor(
        self, entry: Copy, out: Outgoing, now: float, touched: Touched
    ) -> Failed | None:
        target = self._queues.get(str(out.to))
        if (
            target is not None
            and target.spec.max_length is not None
            and target.ready >= target.spec.max_length
        ):
            return Failed(ErrorKind.FULL, "full")
        return super()._store_successor(entry, out, now, touched)


@mutant("G12", "bounds.only_ready_messages_count")
class MaxLengthCountsWhatIsHeld(MemoryStore):
    """Leased and delayed messages count towards the bound."""

    def _publish(self, out: Outgoing, now: float, wall: float, touched: Touched) -> Outcome:
        queue = self._queues.get(str(out.to))
        if (
            queue is not None
            and queue.spec.max_length is not None
            and len(queue.copies) >= queue.spec.max_length
        ):
            return Failed(ErrorKind.FULL, "full")
        return super()._publish(out, now, wall, touched)


@mutant("G12", "bounds.an_overflow_dead_letters_the_oldest_of_the_lowest_priority")
class OverflowTakesTheHighest(MemoryQueue):
    """A full queue evicts its highest priority."""

    def evict(self) -> Message:
        copy = self.copies[
            next(number for level in self._levels[::-1] if (number := level.pop()) is not None)
        ]
        self._forget(copy)
        return copy.message


@mutant("G12", "bounds.an_overflow_leaves_a_record")
class OverflowDrops(MemoryStore):
    """A full queue evicts without a dead letter."""

    def _overflow(self, queue: MemoryQueue, now: float, wall: float, touched: Touched) -> None:
        queue.evict()


# Looking


@mutant("G11", "browse.browsing_changes_nothing")
class PeekConsumes(MemoryQueue):
    """Browsed messages are removed."""

    def browse(self, limit: int, after: str | None, now: float) -> list[Entry]:
        page = super().browse(limit, after, now)
        for entry in page:
            self._forget(self.copies[int(entry.key.split("/")[-1])])
        return page


@mutant("G11", "browse.browsing_changes_nothing")
class PeekMarks(MemoryQueue):
    """Browsed messages are marked as redelivered."""

    def browse(self, limit: int, after: str | None, now: float) -> list[Entry]:
        page = super().browse(limit, after, now)
        for entry in page:
            self.copies[int(entry.key.split("/")[-1])].redelivered = True
        return page


@mutant("G11", "browse.browsing_shows_the_order_of_delivery")
class BrowsesInTheOrderOfPublishing(MemoryQueue):
    """`browse` does not list messages in delivery order."""

    def browse(self, limit: int, after: str | None, now: float) -> list[Entry]:
        page = super().browse(1_000_000, after, now)
        return sorted(page, key=lambda entry: int(entry.key.split("/")[-1]))[:limit]


@mutant("G11", "browse.pages_join_to_the_whole")
class PagesOverlap(MemoryQueue):
    """The last entry of one page is the first of the next."""

    def browse(self, limit: int, after: str | None, now: float) -> list[Entry]:
        page = super().browse(1_000_000, None, now)
        keys = [entry.key for entry in page]
        start = keys.index(after) if after in keys else 0
        return page[start : start + limit] if after not in keys[-1:] else []


@mutant("G11", "browse.browsing_shows_the_order_of_delivery")
class BrowseHidesDelayed(MemoryQueue):
    """`browse` leaves out delayed messages."""

    def browse(self, limit: int, after: str | None, now: float) -> list[Entry]:
        return [entry for entry in super().browse(limit, after, now) if entry.state == "ready"]


@mutant("G11", "browse.taking_leases_the_chosen_and_leaves_the_rest")
class TakesTheFirst(MemoryQueue):
    """`take` claims messages from the head, as many as were chosen."""

    def take(self, holder: Holder, keys: Sequence[str], until: float, now: float) -> list[Delivery]:
        first = [entry.key for entry in self.browse(len(keys), None, now)]
        return super().take(holder, first, until, now)


@mutant("G2", "browse.a_purge_empties_the_queue_and_its_quarantine")
class PurgeLeavesDelayed(MemoryQueue):
    """A purge leaves delayed messages."""

    def purge(self) -> int:
        gone = [copy for copy in self.copies.values() if copy.state == "ready"]
        for copy in gone:
            self._forget(copy)
        return len(gone)


@mutant("G2", "browse.a_purge_empties_the_queue_and_its_quarantine")
class PurgeTakesWhatIsHeld(MemoryQueue):
    """A purge removes what a consumer holds."""

    def purge(self) -> int:
        held = list(self.leases.values())
        for copy in held:
            self.remove(copy)
        return super().purge() + len(held)


@mutant("G2", "browse.a_purge_empties_the_queue_and_its_quarantine")
class PurgeForgetsTheQuarantine(MemoryStore):
    """A purge leaves messages in the quarantine."""

    def purge(self, name: str, now: float) -> int:
        with self._lock:
            return self._queue(name, now).purge()


@mutant("G11", "browse.counts_tell_ready_leased_and_delayed_apart")
class CountsDelayedAsReady(MemoryStore):
    """The count of ready messages includes the delayed ones."""

    def _count(self, queue: MemoryQueue, now: float) -> QueueCounts:
        counts = super()._count(queue, now)
        return replace(counts, ready=counts.ready + counts.delayed)


@mutant("G16", "browse.counts_tell_what_a_queue_was_declared_with")
class CountsTellNoSettings(MemoryStore):
    """`QueueCounts.spec` lacks the settings."""

    def _count(self, queue: MemoryQueue, now: float) -> QueueCounts:
        bare = QueueSpec(
            name=queue.spec.name, role=queue.spec.role, dead_letter=queue.spec.dead_letter
        )
        return replace(super()._count(queue, now), spec=bare)


@mutant("G11", "browse.a_quarantine_counts_in_its_queue_and_is_not_listed")
class CountsWithoutTheQuarantine(MemoryStore):
    """Messages in the quarantine are not counted."""

    def _count(self, queue: MemoryQueue, now: float) -> QueueCounts:
        counts = super()._count(queue, now)
        return replace(counts, ready=queue.ready, leased=len(queue.leases), delayed=queue.delayed)


@mutant("G11", "browse.the_totals_only_grow")
class TotalsSink(MemoryStore):
    """`published` is the number of stored messages, and goes down with each settlement."""

    def _count(self, queue: MemoryQueue, now: float) -> QueueCounts:
        return replace(super()._count(queue, now), published=len(queue.copies))


# Declaring and deleting


@mutant("G14", "routing.other_settings_are_a_mismatch")
class ForgetsAMismatch(MemoryStore):
    """Declaring a queue with other settings changes nothing and raises nothing."""

    def declare(self, specs: Sequence[QueueSpec], now: float, owner: Holder | None = None) -> None:
        super().declare([spec for spec in specs if spec.name not in self._queues], now, owner)


@mutant("G14", "routing.declaring_again_changes_nothing")
class DeclaringAgainEmpties(MemoryStore):
    """Declaring a queue again empties it."""

    def declare(self, specs: Sequence[QueueSpec], now: float, owner: Holder | None = None) -> None:
        super().declare(specs, now, owner)
        for spec in specs:
            self._queues[spec.name].purge()


@mutant("G1", "routing.subscribing_to_a_missing_queue_is_not_found")
class SubscribesToNothing(MemoryStore):
    """Subscribing to a missing queue creates it."""

    def subscribe(self, name: str, holder: Holder, now: float) -> None:
        if name not in self._queues:
            self.declare([QueueSpec(name=name)], now)
        super().subscribe(name, holder, now)


@mutant("G15", "routing.a_clean_up_leaves_nothing_behind")
class DeleteKeepsBindings(MemoryStore):
    """Bindings to a deleted queue stay."""

    def _remove(self, queue: MemoryQueue) -> None:
        kept = [binding for binding in self._bindings.of(None) if binding.queue == queue.spec.name]
        super()._remove(queue)
        self._bindings.add(kept)


@mutant("G15", "routing.the_bindings_of_a_temporary_queue_end_with_it")
class ATemporaryQueueLeavesItsBindings(MemoryStore):
    """Bindings to a temporary queue stay when it ends with its owner."""

    def leave(self, owner: Holder, now: float) -> None:
        kept = self._bindings.of(None)
        super().leave(owner, now)
        self._bindings.add(kept)


@mutant("G15", "routing.the_bindings_of_a_temporary_queue_end_with_it")
class BindingsOfTemporaryQueuesAreHidden(MemoryBackend):
    """Bindings to temporary queues are not listed."""

    async def bindings(self, router: str | None = None) -> Sequence[Binding]:
        listed = await super().bindings(router)
        queues = self._store._queues
        return [it for it in listed if queues[it.queue].spec.role != "temporary"]


@mutant("G14", "browse.the_consumers_of_a_deleted_queue_learn_it")
class ConsumersOfADeletedQueueWaitOn(MemoryStore):
    """Consumers of a deleted queue are not notified."""

    def claim(
        self, name: str, holder: Holder, limit: int, now: float, *, wait: bool = False
    ) -> list[Delivery]:
        try:
            return super().claim(name, holder, limit, now, wait=wait)
        except QueueNotFound:
            return []


@mutant("G2", "browse.a_queue_that_holds_messages_is_not_deleted_if_empty_was_asked")
class DeletesWhatIsNotEmpty(MemoryStore):
    """`if_empty` is ignored."""

    def delete(self, name: str, now: float, *, if_empty: bool = False) -> bool:
        return super().delete(name, now)


@mutant("G1", "browse.who_only_publishes_goes_on")
class RemembersWhatItDeclared(MemoryBackend):
    """An instance declares a queue only once, though another has deleted it."""

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        known: set[str] = self.__dict__.setdefault("known", set())
        await super().declare([spec for spec in queues if spec.name not in known])
        known.update(spec.name for spec in queues)


@mutant("G11", "dead-letter.retention_lets_dead_letters_go")
class RetentionIgnored(MemoryQueue):
    """Dead letters are never removed, whatever the retention."""

    def _index(self, copy: Copy) -> None:
        if copy.message.expires_at is not None:
            self._expiries.push(copy.message.expires_at, copy.number)


@mutant("G16", "capability.a_queue_takes_other_settings")
class AlterChangesNothing(MemoryStore):
    """Altering a queue changes nothing and raises nothing."""

    def alter(self, name: str, settings: Alterations, now: float) -> None:
        super().alter(name, {}, now)


@mutant("G16", "capability.a_queue_takes_other_settings")
class AlterTakesTheRestAway(MemoryStore):
    """Altering a queue loses the settings that are not given."""

    def alter(self, name: str, settings: Alterations, now: float) -> None:
        bare: Alterations = {
            "ttl": None,
            "max_length": None,
            "overflow": "reject",
            "retention": None,
        }
        super().alter(name, {**bare, **settings}, now)


@mutant("G2", "capability.a_queue_takes_other_settings")
class AlterEmptiesTheQueue(MemoryStore):
    """Altering a queue empties it."""

    def alter(self, name: str, settings: Alterations, now: float) -> None:
        super().alter(name, settings, now)
        self._queue(name, now).purge()


@mutant("G6", "capability.a_queue_takes_other_settings")
class AlterSparesWhatIsThere(MemoryQueue):
    """A new retention applies only to later dead letters."""

    def alter(self, spec: QueueSpec) -> None:
        super().alter(spec)
        self._ages = type(self._ages)(self._exists)


# Routing


@mutant("G15", "routing.every_instance_sees_the_same_bindings")
class BindingsOfOneProcess(MemoryBackend):
    """Bindings are stored in the instance that made them."""

    @property
    def _own(self) -> Bindings:
        own: Bindings = self.__dict__.setdefault("own", Bindings())
        return own

    async def bind(self, bindings: Sequence[Binding]) -> None:
        self._own.add(bindings)

    async def bindings(self, router: str | None = None) -> Sequence[Binding]:
        return self._own.of(router)


@mutant("G15", "routing.every_instance_sees_the_same_bindings")
class UnbindIgnored(MemoryStore):
    """A removed binding still applies."""

    def unbind(self, bindings: Sequence[Binding]) -> None:
        pass


@mutant("G15", "routing.a_router_has_one_kind")
class RouterOfTwoKinds(MemoryStore):
    """Binding a router of another kind raises nothing."""

    def bind(self, bindings: Sequence[Binding]) -> None:
        kinds = {binding.router: binding.kind for binding in self.bindings()}
        super().bind(
            [replace(binding, kind=kinds.get(binding.router, binding.kind)) for binding in bindings]
        )


@mutant("G15", "routing.a_message_goes_to_the_queues_that_match")
class BindsOnlyTheLast(MemoryStore):
    """A router keeps only its last binding."""

    def bind(self, bindings: Sequence[Binding]) -> None:
        self.unbind([old for new in bindings for old in self.bindings(new.router)])
        super().bind(bindings[-1:])


@mutant("G12", "bounds.a_subscription_that_ends_leaves_another_what_it_holds")
class OneEndEndsAllConsumers(MemoryStore):
    """The end of a subscription returns what others of its queue hold."""

    def unsubscribe(self, name: str, holder: Holder, now: float) -> None:
        queue = self._queues.get(name)
        for other in list(queue.consumers) if queue is not None else ():
            queue.abandon(other)  # type: ignore[union-attr]  # there are consumers
        super().unsubscribe(name, holder, now)


@mutant("G12", "bounds.a_prefetch_that_changes_is_an_exact_ceiling")
class GrownCountsFromZero(MemorySubscription):
    """A consumer that grows forgets what it holds."""

    async def resize(self, prefetch: int) -> bool:
        self._holder.held = 0
        return await super().resize(prefetch)


@mutant("G12", "bounds.a_prefetch_that_changes_is_an_exact_ceiling")
class GrownSleepsOn(MemorySubscription):
    """A consumer that was full and grows goes on sleeping."""

    async def resize(self, prefetch: int) -> bool:
        self._holder.prefetch = prefetch
        return True


@mutant("G12", "bounds.a_prefetch_that_shrinks_counts_what_is_held")
class NeverShrinks(MemorySubscription):
    """A consumer that shrinks keeps its prefetch, and says that it has changed."""

    async def resize(self, prefetch: int) -> bool:
        return prefetch < self._holder.prefetch or await super().resize(prefetch)


@mutant("G12", "bounds.a_consumer_of_the_pull_api_grows_and_shrinks")
class ResizeDoesNothing(MemorySubscription):
    """A consumer that is resized says so, and changes nothing."""

    async def resize(self, prefetch: int) -> bool:
        return True
