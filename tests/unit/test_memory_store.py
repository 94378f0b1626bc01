"""The state machine of the memory backend at any time, beyond what the seam shows."""

from collections.abc import Callable
from math import inf

import pytest

from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    Ack,
    Binding,
    Delivery,
    Failed,
    Message,
    Move,
    Outgoing,
    QueueNotFound,
    QueueSpec,
    Release,
    Stored,
)
from mqcore_memory.dedup import Window
from mqcore_memory.heap import Heap
from mqcore_memory.store import IDLE_LIMIT, MemoryStore
from mqcore_memory.waiting import Holder, Waiters


def message(name: str, **fields: object) -> Message:
    return Message(id=name, body=name.encode(), **fields)  # type: ignore[arg-type]  # a test names real fields


class Bench:
    """A store with one queue, one consumer and the time in its hands."""

    def __init__(self, **store: float) -> None:
        self.now = 100.0
        self.store = MemoryStore(**store)  # type: ignore[arg-type]  # a test names real options
        self.store.declare([QueueSpec(name="q")], self.now)
        self.wakes: list[str] = []
        self.one = self.consumer("one")

    def consumer(
        self, name: str, prefetch: float = inf, *, alive: bool = True, queue: str = "q"
    ) -> Holder:
        def wake() -> bool:
            self.wakes.append(name)
            return alive

        holder = Holder(prefetch, 30.0, wake)
        self.store.subscribe(queue, holder, self.now)
        return holder

    def put(self, *names: str, delay: float = 0.0, ttl: float | None = None) -> None:
        batch = [Outgoing("q", message(name), delay, ttl) for name in names]
        assert self.store.publish(batch, self.now, 0.0) == [STORED] * len(names)

    def claim(
        self, holder: Holder | None = None, limit: int = 100, *, wait: bool = False
    ) -> list[Delivery]:
        return self.store.claim("q", holder or self.one, limit, self.now, wait=wait)

    def ack(self, deliveries: list[Delivery]) -> None:
        assert self.store.settle("q", [Ack(it.receipt) for it in deliveries], self.now) == [
            DONE
        ] * len(deliveries)

    def sizes(self) -> list[int]:
        queue = self.store._queues["q"]
        heaps: list[Heap[int] | Heap[bytes]] = [
            *queue._levels,
            queue._delays,
            queue._ends,
            queue._expiries,
            queue._ages,
        ]
        return [len(queue.copies), len(queue.leases), sum(len(heap) for heap in heaps)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def names(deliveries: list[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


# Memory


def test_what_is_settled_leaves_nothing_behind_a_claim_that_is_kept_for_long(bench: Bench) -> None:
    bench.put("kept", ttl=1e6)
    bench.claim()
    for number in range(2_000):
        bench.put(f"{number}", ttl=1e5 + number)
        bench.ack(bench.claim())
    copies, leases, items = bench.sizes()
    assert (copies, leases) == (1, 1)
    assert items < 300, f"2,000 settled messages left {items} items in the heaps"


def test_renewing_one_claim_for_ever_leaves_nothing_behind(bench: Bench) -> None:
    bench.put("long")
    (delivery,) = bench.claim()
    for _ in range(2_000):
        bench.now += 10.0
        assert bench.store.renew("q", [delivery.receipt], 30.0, bench.now) == [True]
    assert bench.sizes()[2] < 150


def test_releasing_one_message_for_ever_leaves_nothing_behind(bench: Bench) -> None:
    bench.put("kept", "bounced", ttl=1e6)
    for _ in range(2_000):
        kept, bounced = bench.claim()
        assert bench.store.settle(
            "q", [Release(bounced.receipt), Release(kept.receipt)], bench.now
        ) == [DONE, DONE]
    assert bench.sizes()[2] < 300


def test_a_heap_gives_up_its_dead_and_counts_a_pair_once() -> None:
    living = {1, 2, 3}
    heap: Heap[int] = Heap(lambda _key, item: item in living)
    for item in (3, 1, 2, 4, 1):
        heap.push(item, item)
    living.discard(1)
    assert heap.first() == 2
    assert [heap.pop(2.5), heap.pop(2.5), heap.pop(), heap.pop()] == [2, None, 3, None]
    assert heap.first() == inf


# Dedup


def test_an_id_is_remembered_exactly_as_long_as_the_window(bench: Bench) -> None:
    bench.put("a")
    bench.ack(bench.claim())
    bench.now += 599.9
    assert bench.store.publish([Outgoing("q", message("a"))], bench.now, 0.0) == [
        Stored(duplicate=True)
    ]
    bench.now += 0.2
    bench.put("a")
    assert names(bench.claim()) == ["a"], "a duplicate must not have renewed the window"


def test_no_more_ids_are_remembered_than_the_size_says() -> None:
    bench = Bench(dedup_size=3)
    bench.put("a", "b", "c")
    assert bench.store.publish([Outgoing("q", message("a"))], bench.now, 0.0) == [
        Stored(duplicate=True)
    ]
    bench.put("d")
    bench.put("a")
    window = bench.store._queues["q"].window
    assert [window.has((name, 0, "")) for name in "abcd"] == [True, False, True, True]


def test_a_name_that_was_added_again_is_kept_for_its_later_time() -> None:
    window = Window(10.0, 100)
    window.add(("a", 1, ""), 1, now=0.0)
    window.add(("a", 1, ""), 7, now=8.0)
    window.trim(now=11.0)
    assert window.has(("a", 1, ""))
    assert not window.has(("a", 1, ""), since=7)
    window.trim(now=18.0)
    assert not window.has(("a", 1, ""))


def test_a_move_is_not_taken_for_one_of_an_earlier_life_of_its_id(bench: Bench) -> None:
    """G1, G3: an id used again after the window must not meet the hops of its first use."""
    bench.put("order-17")
    bench.now += 400.0
    (delivery,) = bench.claim()
    retry = Outgoing("q", message("order-17", hop=1, attempt=2))
    assert bench.store.settle("q", [Move(delivery.receipt, retry)], bench.now) == [DONE]
    bench.ack(bench.claim())
    bench.now += 300.0  # the window of (order-17, 0) is over, that of (order-17, 1) is not
    bench.put("order-17")
    (delivery,) = bench.claim()
    assert bench.store.settle("q", [Move(delivery.receipt, retry)], bench.now) == [DONE]
    assert names(bench.claim()) == ["order-17"], (
        "the retry of the second life was taken for that of the first: lost"
    )


def test_two_copies_of_one_id_are_both_moved() -> None:
    """G3: the window of the first copy had passed at the second; the second must not be lost."""
    bench = Bench(dedup_size=1)
    bench.put("a")
    bench.put("x")
    bench.put("a")
    for delivery in bench.claim():
        successor = Outgoing("q", delivery.message.moved("q"), 1.0)
        assert bench.store.settle("q", [Move(delivery.receipt, successor)], bench.now) == [DONE]
    bench.now += 2.0
    assert sorted(names(bench.claim())) == ["a", "a", "x"]


def test_a_successor_that_was_stored_before_is_stored_once(bench: Bench) -> None:
    """G1: publish the successor, crash, move again with the same name: one copy."""
    bench.put("a")
    (delivery,) = bench.claim()
    successor = Outgoing("q", message("a", hop=1, attempt=2))
    assert bench.store.publish([successor], bench.now, 0.0) == [STORED]
    assert bench.store.settle("q", [Move(delivery.receipt, successor)], bench.now) == [DONE]
    assert [it.attempt for it in bench.claim()] == [2]


# Bounds and bindings


def test_what_is_dropped_is_counted(bench: Bench) -> None:
    bench.store.declare([QueueSpec(name="short", max_length=1, overflow="dead_letter")], bench.now)
    for name in "abc":
        assert bench.store.publish([Outgoing("short", message(name))], bench.now, 0.0) == [STORED]
    assert bench.store._queues["short"].dropped == 2


def test_a_router_without_bindings_is_gone_and_may_come_back_as_another_kind(bench: Bench) -> None:
    topic = Binding(router="r", kind="topic", queue="q", pattern="a.*")
    direct = Binding(router="r", kind="direct", queue="q", pattern="a")
    for one, other in [(topic, direct), (direct, topic)]:
        bench.store.bind([one])
        bench.store.unbind([one])
        assert bench.store.bindings() == []
        bench.store.bind([other])
        bench.store.unbind([other])


# Time


def test_a_timer_that_fires_a_rounding_error_early_finds_what_it_was_set_for(bench: Bench) -> None:
    bench.put("delayed", delay=0.3)
    bench.put("expiring", delay=5.0, ttl=0.3)
    bench.now = 100.3 - 1e-9
    first, second = bench.claim()
    assert (first.message.id, first.expires_in) == ("delayed", None)
    assert second.message.id == "expiring"
    assert second.expires_in is not None
    assert second.expires_in <= 0, (
        "it stands here because it has expired; a hair of life would start its handler early"
    )


def test_what_fell_due_earlier_stands_before_what_was_published_later_even_if_nobody_looked(
    bench: Bench,
) -> None:
    bench.put("delayed", delay=3.0)
    bench.now += 5.0
    bench.put("later")
    assert names(bench.claim()) == ["delayed", "later"]


def test_ended_leases_come_back_to_their_places_in_whatever_order_they_end(bench: Bench) -> None:
    bench.put("a", "b", "c")
    a, b, c = bench.claim()
    bench.store.renew("q", [a.receipt], 50.0, bench.now)
    bench.store.renew("q", [b.receipt], 40.0, bench.now)
    bench.now += 60.0
    assert names(bench.claim()) == ["a", "b", "c"]
    assert bench.store.settle("q", [Ack(c.receipt)], bench.now) == [STALE]


def test_a_lease_that_has_ended_is_refused_even_if_nobody_came_for_the_message(
    bench: Bench,
) -> None:
    bench.put("a")
    (delivery,) = bench.claim()
    bench.now += 31.0
    assert bench.store.renew("q", [delivery.receipt], 30.0, bench.now) == [False]
    assert bench.store.settle("q", [Ack(delivery.receipt)], bench.now) == [STALE]


def test_a_taken_message_that_was_delayed_returns_to_the_rest_of_its_delay(bench: Bench) -> None:
    bench.put("soon", delay=10.0)
    owner = Holder()
    (entry,) = bench.store.browse("q", 10, None, bench.now)
    (delivery,) = bench.store.take("q", [entry.key], 60.0, owner, bench.now)
    assert bench.store.settle("q", [Release(delivery.receipt)], bench.now) == [DONE]
    assert bench.claim() == []
    bench.now += 10.0
    assert names(bench.claim()) == ["soon"]


def test_what_an_owner_took_comes_back_when_it_leaves(bench: Bench) -> None:
    bench.put("a")
    owner = Holder()
    (entry,) = bench.store.browse("q", 10, None, bench.now)
    (delivery,) = bench.store.take(
        "q", [entry.key, entry.key, "no/such/key", "9/0.0/0.0/99"], 60.0, owner, bench.now
    )
    assert (owner.held, bench.claim()) == (1, [])
    bench.store.leave(owner, bench.now)
    assert [(it.message.id, it.takeovers) for it in bench.claim()] == [("a", 1)]
    assert owner.held == 0
    assert bench.store.settle("q", [Ack(delivery.receipt)], bench.now) == [STALE]


def test_a_temporary_queue_that_nobody_has_consumed_yet_has_an_hour_too(bench: Bench) -> None:
    bench.store.declare([QueueSpec(name="replies", role="temporary")], bench.now)
    bench.now += IDLE_LIMIT - 1
    assert bench.store.publish([Outgoing("replies", message("a"))], bench.now, 0.0) == [STORED]


def test_a_temporary_queue_goes_after_an_hour_without_a_consumer(bench: Bench) -> None:
    bench.store.declare([QueueSpec(name="replies", role="temporary")], bench.now)
    holder = Holder()
    bench.store.subscribe("replies", holder, bench.now)
    bench.now += 2 * IDLE_LIMIT
    assert bench.store.publish([Outgoing("replies", message("a"))], bench.now, 0.0) == [STORED]
    bench.store.unsubscribe("replies", holder, bench.now)
    bench.now += IDLE_LIMIT - 1
    assert bench.store.count(["replies"], bench.now)[0].ready == 1
    bench.now += 1
    (outcome,) = bench.store.publish([Outgoing("replies", message("b"))], bench.now, 0.0)
    assert isinstance(outcome, Failed)
    assert bench.store.settle("replies", [Ack(b"x")], bench.now) == [STALE]
    with pytest.raises(QueueNotFound, match="replies"):
        bench.store.subscribe("replies", holder, bench.now)
    bench.store.declare([], bench.now)
    assert list(bench.store._queues) == ["q"], "a temporary queue that nobody asks for must go too"


# Waking


def test_one_message_wakes_one_consumer_and_what_it_leaves_wakes_the_next(bench: Bench) -> None:
    two = bench.consumer("two")
    for holder in (bench.one, two):
        assert bench.claim(holder, wait=True) == []
    bench.put("a", "b")
    assert bench.wakes == ["one"]
    assert names(bench.claim(bench.one, limit=1)) == ["a"]
    assert bench.wakes == ["one", "two"]
    assert names(bench.claim(two)) == ["b"]


def test_a_consumer_that_was_woken_and_cannot_come_hands_on_its_wake(bench: Bench) -> None:
    two = bench.consumer("two")
    for holder in (bench.one, two):
        bench.claim(holder, wait=True)
    bench.put("a")
    bench.store.stop_waiting("q", bench.one)
    assert bench.wakes == ["one", "two"]


def test_a_consumer_that_came_by_itself_is_not_woken_any_more(bench: Bench) -> None:
    assert bench.claim(wait=True) == []
    bench.put("a", delay=5.0)
    assert bench.claim(wait=True) == []
    woken = len(bench.wakes)
    bench.now += 5.0
    assert names(bench.claim(limit=1, wait=True)) == ["a"]
    bench.put("b")
    assert len(bench.wakes) == woken


def test_a_lease_that_was_made_shorter_wakes_whoever_minds_the_time(bench: Bench) -> None:
    other = bench.consumer("other")
    bench.put("a")
    (delivery,) = bench.claim()
    assert bench.claim(other, wait=True) == []
    bench.store.renew("q", [delivery.receipt], 5.0, bench.now)
    assert bench.wakes == ["other"]
    assert bench.claim(other, wait=True) == []
    assert other.until == 105.0


def test_a_consumer_that_left_while_it_waited_is_not_woken_in_the_place_of_another(
    bench: Bench,
) -> None:
    two = bench.consumer("two")
    for holder in (bench.one, two):
        bench.claim(holder, wait=True)
    bench.store.unsubscribe("q", bench.one, bench.now)
    bench.put("a")
    assert bench.wakes == ["two"]


def test_nobody_is_woken_for_what_he_may_not_have(bench: Bench) -> None:
    full = bench.consumer("full", prefetch=1)
    bench.put("a")
    (held,) = bench.claim(full)
    assert bench.claim(full, wait=True) == []
    bench.put("b")
    assert bench.wakes == []
    bench.ack([held])
    assert bench.wakes == ["full"], "his prefetch has room again"


def test_a_consumer_whose_loop_has_ended_does_not_swallow_a_wake(bench: Bench) -> None:
    dead, alive = bench.consumer("dead", alive=False), bench.consumer("alive")
    for holder in (dead, alive):
        bench.claim(holder, wait=True)
    bench.put("a")
    assert bench.wakes == ["dead", "alive"]


def test_one_of_those_who_wait_minds_the_time_for_all(bench: Bench) -> None:
    two = bench.consumer("two")
    bench.put("later", delay=10.0)
    for holder in (bench.one, two):
        bench.claim(holder, wait=True)
    assert (bench.one.until, two.until) == (110.0, inf)
    bench.put("sooner", delay=5.0)
    assert bench.wakes == ["one"], "its timer is set for a later moment"
    bench.claim(bench.one, wait=True)
    assert bench.one.until == 105.0
    bench.put("much later", delay=50.0)
    assert bench.wakes == ["one"]
    bench.store.stop_waiting("q", bench.one)
    assert bench.wakes == ["one", "two"], "the timer has left with the first one"
    bench.claim(two, wait=True)
    assert two.until == 105.0


def test_a_lease_that_begins_while_others_wait_wakes_them_once_and_not_each_time(
    bench: Bench,
) -> None:
    idle = bench.consumer("idle", prefetch=0)
    bench.claim(idle, wait=True)
    woken = 0
    for number in range(100):
        bench.put(str(number))
        claimed = bench.claim()
        if len(bench.wakes) > woken:
            woken = len(bench.wakes)
            assert bench.claim(idle, wait=True) == []
        bench.ack(claimed)
        bench.now += 0.1
    assert bench.wakes == ["idle"], (
        "it set its timer for the end of the first lease; later ones end later"
    )


def test_the_one_who_minds_the_time_comes_back_when_a_lease_ends(bench: Bench) -> None:
    idle = bench.consumer("idle")
    bench.put("a")
    bench.claim()
    assert bench.claim(idle, wait=True) == []
    assert idle.until == 130.0
    bench.now = 130.0
    assert [(it.message.id, it.takeovers) for it in bench.claim(idle, wait=True)] == [("a", 1)]


@pytest.mark.parametrize("how", ["delete", "leave"])
def test_who_waits_at_a_queue_that_goes_is_woken_to_learn_it(bench: Bench, how: str) -> None:
    owner = Holder()
    bench.store.declare([QueueSpec(name="t", role="temporary")], bench.now, owner)
    holder = bench.consumer("t", queue="t")
    assert bench.store.claim("t", holder, 1, bench.now, wait=True) == []
    go: dict[str, Callable[[], object]] = {
        "delete": lambda: bench.store.delete("t", bench.now),
        "leave": lambda: bench.store.leave(owner, bench.now),
    }
    go[how]()
    assert bench.wakes == ["t"]
    with pytest.raises(QueueNotFound, match="'t' was deleted"):
        bench.store.claim("t", holder, 1, bench.now)


def test_a_queue_that_was_made_anew_is_not_that_of_the_old_consumer(bench: Bench) -> None:
    bench.put("old")
    (delivery,) = bench.claim()
    bench.store.delete("q", bench.now)
    assert bench.one.held == 0
    bench.store.declare([QueueSpec(name="q")], bench.now)
    with pytest.raises(QueueNotFound, match="subscribe again"):
        bench.claim()
    assert bench.store.settle("q", [Ack(delivery.receipt)], bench.now) == [STALE]


def test_waiters_without_anything_to_do_are_left_alone() -> None:
    def wake() -> bool:
        raise AssertionError("there was no reason to wake anybody")

    waiters = Waiters()
    waiters.nudge(1, 0.0)
    waiters.add(Holder(wake=wake), inf)
    waiters.nudge(0, inf)
