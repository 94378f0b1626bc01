"""Profile *priority*: 0 lowest to 10 highest, strict, first in first out inside a level."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.kit import NotShown
from mqcore.errors import ValidationError
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import DONE, Capability, Level, Outgoing, Release, SupportsBrowse, SupportsTake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqcore.contract.kit import Kit

_NEEDS = (Capability.PRIORITY,)
_ALL = 11
_ORDER = "Subscription.receive: the highest level first"


def _levels(kit: Kit) -> list[int]:
    """Return the levels that the backend must distinguish: all, or 0 and 10 where it has fewer."""
    declared = int(kit.limit(Capability.PRIORITY, "levels") or _ALL)
    return list(range(_ALL)) if declared >= _ALL else [0, 10]


def _strict(kit: Kit) -> None:
    if kit.capabilities[Capability.PRIORITY].level is Level.APPROXIMATE:
        raise NotShown("PRIORITY is declared approximate")


@case("G8", ids="P01", needs=_NEEDS)
async def the_highest_goes_first(kit: Kit) -> None:
    """Messages are received by priority from 10 down to 0, at every declared level."""
    queue, levels = await kit.queue(), _levels(kit)
    mixed = [*levels[1::2], *reversed(levels[::2])]
    await kit.publish(
        *[Outgoing(queue, kit.message(f"{level}", priority=level)) for level in mixed]
    )
    got = kit.ids(await kit.take(await kit.subscribe(queue), len(levels)))
    kit.same(got, [f"{level}" for level in reversed(levels)], "the highest first", _ORDER)


@case("G8", ids="P02", needs=_NEEDS)
async def inside_a_level_the_first_goes_first(kit: Kit) -> None:
    """Inside a level messages are received in publish order."""
    queue = await kit.queue()
    names = {f"{number:02}": (0, 10)[number % 3 % 2] for number in range(30)}
    for name, level in names.items():
        await kit.put(queue, name, priority=level)
    expected = sorted(names, key=lambda name: (-names[name], name))
    kit.same(
        kit.ids(await kit.take(await kit.subscribe(queue), 30)),
        expected,
        "each level in order",
        _ORDER,
    )


@case("G8", ids="P07", needs=_NEEDS)
async def five_is_the_default(kit: Kit) -> None:
    """A message without a priority gets 5."""
    broker, queue = await kit.broker(), Queue(kit.name())
    for body, priority in ((b"four", 4), (b"six", 6)):
        await kit.within(broker.publish(queue, body, priority=priority))
    await kit.within(broker.publish(queue, b"default"))
    got = await kit.take(await kit.subscribe(queue.name), 3)
    kit.same(
        {delivery.message.body: delivery.message.priority for delivery in got}[b"default"],
        5,
        "the default priority",
        "Message.priority",
    )

    if len(_levels(kit)) == _ALL:
        kit.same(
            [delivery.message.body for delivery in got],
            [b"six", b"default", b"four"],
            "4 < the default < 6",
            _ORDER,
        )


@case("G8", ids="P03", needs=_NEEDS)
async def a_low_one_waits_as_long_as_there_are_higher_ones(kit: Kit) -> None:
    """Priority is strict: a low message waits as long as there are higher ones."""
    _strict(kit)
    queue = await kit.queue()
    await kit.put(queue, "low", priority=0)
    consumer = await kit.subscribe(queue, prefetch=1)
    actual = []
    await kit.put(queue, "high-0", priority=10)

    for number in range(1, 15):
        await kit.put(queue, f"high-{number}", priority=10)
        got = await kit.take(consumer, 1)
        actual += kit.ids(got)
        await kit.ack(consumer, got)

    lows = [name for name in actual[1:] if name == "low"]  # the first may have been prefetched
    kit.same(lows, [], "low messages received while there are high ones", _ORDER)


@case("G8", ids="P01 P03", needs=_NEEDS, alone=True)
async def what_was_confirmed_first_does_not_go_first(kit: Kit) -> None:
    """A high message confirmed after a low one is received first, also by another instance.

    Tried 30 times on a busy machine.
    """
    queue, other, turns = await kit.queue(), await kit.open(), 30
    standing = (
        await kit.subscribe(queue, backend=other, prefetch=1)
        if kit.capabilities.has(Capability.LEASE)
        else None
    )

    with _busy():
        for turn in range(turns):
            low, high = f"low-{turn}", f"high-{turn}"
            await kit.put(queue, low, priority=0)
            await kit.put(queue, high, priority=10)
            # A broker that pushes has sent the low message to the consumer that existed before.
            old = standing is not None and turn % 2
            consumer = (
                standing
                if old and standing
                else await kit.subscribe(queue, backend=other, prefetch=1)
            )
            actual = []
            for _ in range(2):
                got = await kit.take(consumer, 1)
                actual += kit.ids(got)
                await kit.ack(consumer, got)
            who = "an older consumer" if old else "a new consumer"
            kit.same(actual, [high, low], f"turn {turn}, for {who}", _ORDER)
            if consumer is not standing:
                await kit.within(consumer.close())


@contextmanager
def _busy() -> Iterator[None]:
    """Keep the processor busy, so that steps that usually come first sometimes come later."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            sum(range(10_000))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()

    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@case("G8", ids="P04", needs=_NEEDS)
async def a_high_message_passes_all_that_nobody_has_yet(kit: Kit) -> None:
    """A high message overtakes the backlog and the driver's buffer, but not what handlers hold."""
    queue, prefetch = await kit.queue(), 20
    await kit.put(queue, *(f"low-{number}" for number in range(60)), priority=0)
    consumer = await kit.subscribe(queue, prefetch=prefetch)
    held = await kit.receive(consumer, 5, wait=1.0)
    await kit.put(queue, "high", priority=10)
    await kit.ack(consumer, held)
    await kit.advance(kit.harness.silence)
    before = 0

    while kit.ids(got := await kit.take(consumer, 1)) != ["high"]:
        before += 1
        await kit.ack(consumer, got)

    kit.measured["priority inversion (messages)"] = before
    most = prefetch if kit.capabilities[Capability.PRIORITY].level is Level.APPROXIMATE else 0
    look = "Subscription.receive: sort what the driver has buffered"
    kit.true(
        before <= most,
        f"the high one after at most {most} low ones",
        f"{before} low ones came first",
        look,
    )


@case("G8", ids="P05", needs=_NEEDS)
async def a_message_keeps_its_priority(kit: Kit) -> None:
    """A message keeps its priority on the first and on later deliveries."""
    queue = await kit.queue()
    await kit.put(queue, "a", priority=9)
    await kit.put(queue, "z", priority=1)
    consumer = await kit.subscribe(queue)

    for _ in range(2):
        got = await kit.take(consumer, 2)
        kit.same(
            [(delivery.message.id, delivery.message.priority) for delivery in got],
            [("a", 9), ("z", 1)],
            "id and priority, in order",
            _ORDER,
        )
        await kit.settle(consumer, *[Release(delivery.receipt) for delivery in reversed(got)])


@case(
    "G8",
    "G9",
    ids="P01 P05",
    needs=_NEEDS,
    each={"0-10": (0, 10), "0-1": (0, 1), "4-5": (4, 5), "5-6": (5, 6)},
)
async def a_released_message_does_not_pass_a_higher_one(kit: Kit, pair: tuple[int, int]) -> None:
    """A released message does not overtake one of a higher priority, also of the next level."""
    low, high = pair
    if not set(pair) <= set(_levels(kit)):
        raise NotShown("PRIORITY declares fewer levels than 11")
    queue = await kit.queue()
    await kit.put(queue, "low", priority=low)
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    await kit.put(queue, "high", priority=high)
    await kit.settle(consumer, Release(delivery.receipt))
    await kit.advance(kit.harness.silence)
    kit.same(
        kit.ids(await kit.take(consumer, 1)),
        ["high"],
        f"{high} before {low}",
        "Subscription.settle: Release",
    )


@case("G8", "G3", ids="P05", needs=_NEEDS)
async def priority_survives_a_crash_and_a_move(kit: Kit) -> None:
    """Messages keep their priority after a takeover and after a Move."""
    queue = await kit.queue()
    await kit.put(queue, "plain", priority=0)
    await kit.put(queue, "moved", "crashed", priority=10)
    consumer = await kit.subscribe(queue)
    moved = (await kit.take(consumer, 3))[0]
    settled = await kit.settle(consumer, kit.successor(moved, queue))
    kit.same(
        (moved.message.id, settled),
        ("moved", [DONE]),
        "the moved message, and the outcome",
        "Subscription.settle: Move",
    )

    await kit.within(consumer.close())
    await kit.advance(kit.harness.silence)
    got = kit.ids(await kit.take(await kit.subscribe(queue), 3))
    kit.same(
        (set(got[:2]), got[2]),
        ({"moved", "crashed"}, "plain"),
        "the order by priority",
        _ORDER,
    )


@case("G8", "G7", ids="P05 D07", needs=(*_NEEDS, Capability.DELAY))
async def priority_survives_a_delay(kit: Kit) -> None:
    """Messages that fall due are sorted by priority among the ready ones."""
    queue = await kit.queue()
    await kit.put(queue, "low", delay=0.3, priority=0)
    await kit.put(queue, "high", delay=0.5, priority=10)
    await kit.put(queue, "ready", priority=0)
    await kit.advance(
        0.6 + float(kit.limit(Capability.DELAY, "granularity") or 0.0) + kit.harness.silence
    )
    got = kit.ids(await kit.take(await kit.subscribe(queue), 3))
    kit.same(
        (got[0], set(got)),
        ("high", {"high", "low", "ready"}),
        "the first message, and all messages",
        _ORDER,
    )


@case("G8", needs=_NEEDS)
async def a_moved_message_has_the_priority_that_the_move_says(kit: Kit) -> None:
    """A Move may change the priority, and the successor is sorted by the new one."""
    queue = await kit.queue()
    await kit.put(queue, "a", priority=0)
    await kit.put(queue, "b", priority=5)
    consumer = await kit.subscribe(queue)
    by_name = {delivery.message.id: delivery for delivery in await kit.take(consumer, 2)}
    await kit.settle(
        consumer, kit.successor(by_name["a"], queue, priority=10), Release(by_name["b"].receipt)
    )
    await kit.advance(kit.harness.silence)
    got = await kit.take(consumer, 2)
    expected = [("a", 10), ("b", 5)]
    kit.same(
        [(delivery.message.id, delivery.message.priority) for delivery in got],
        expected,
        "id and priority, in order",
        "Subscription.settle: Move",
    )


@case("G8", "G10", ids="P05", needs=_NEEDS)
async def priority_survives_a_retry(kit: Kit) -> None:
    """A retried message keeps its priority."""
    broker, queue = await kit.broker(), Queue(kit.name(), retry=RetryPolicy(3, fixed(0)))
    for body, priority in ((b"low", 0), (b"high", 10)):
        await kit.within(broker.publish(queue, body, priority=priority))

    async with broker.consume(queue, prefetch=2) as deliveries:
        both = [await kit.within(anext(deliveries)) for _ in range(2)]
        for received in reversed(both):
            await kit.within(received.retry())

    got = await kit.take(await kit.subscribe(queue.name), 2)
    seen = [
        (delivery.message.body, delivery.message.priority, delivery.attempt) for delivery in got
    ]
    kit.same(
        seen,
        [(b"high", 10, 2), (b"low", 0, 2)],
        "body, priority and attempt, in order",
        "Subscription.settle: Move",
    )


@case("G8", "G11", ids="P05", needs=_NEEDS, protocols=(SupportsBrowse, SupportsTake))
async def priority_survives_a_dead_letter_and_a_redrive(kit: Kit) -> None:
    """A dead letter keeps its priority, and is sorted by it after a redrive."""
    broker, queue = await kit.broker(), Queue(kit.name())
    async with broker.consume(queue, prefetch=1) as deliveries:
        for body, priority in ((b"low", 0), (b"high", 10)):
            await kit.within(broker.publish(queue, body, priority=priority))
            await kit.within((await kit.within(anext(deliveries))).reject())

    letters = broker.dead_letters(queue)
    kept = {letter.body: letter.message.priority for letter in await kit.within(letters.list())}
    kit.same(
        kept,
        {b"low": 0, b"high": 10},
        "priorities of the dead letters",
        "Subscription.settle: Move",
    )

    await kit.within(letters.redrive())
    got = await kit.take(await kit.subscribe(queue.name), 2)
    kit.same(
        [delivery.message.body for delivery in got],
        [b"high", b"low"],
        "bodies in order after the redrive",
        _ORDER,
    )


@case("G8", ids="P06", needs=_NEEDS)
async def a_priority_off_the_scale_is_refused(kit: Kit) -> None:
    """A priority other than an int from 0 to 10 raises ValidationError; nothing is stored."""
    broker, queue = await kit.broker(), Queue(kit.name())
    await kit.within(broker.declare(queue))
    for bad in (-1, 11, 5.0, True, "high"):
        work = broker.publish(queue, b"", priority=bad)  # type: ignore[arg-type]  # what is not typed is tried as well
        await kit.raises(ValidationError, work, f"priority={bad!r} refused", "Broker.publish")
    kit.same(await kit.contents(queue.name), Counter(), "messages stored", "Broker.publish")


@case("G8", ids="P08", needs=_NEEDS)
async def a_backlog_in_one_queue_holds_up_no_other(kit: Kit) -> None:
    """A full consumer of one queue does not hold up messages of another queue."""
    busy, other = await kit.queue(), await kit.queue()
    await kit.put(busy, *(f"{number}" for number in range(50)), priority=10)
    stuck, free = await kit.subscribe(busy, prefetch=1), await kit.subscribe(other, prefetch=1)
    await kit.take(stuck, 1)
    await kit.put(other, "low", priority=0)
    kit.same(
        kit.ids(await kit.take(free, 1)), ["low"], "the other queue's message", "Backend.subscribe"
    )


@case(
    "G8",
    "G6",
    ids="P09",
    needs=(*_NEEDS, Capability.EXPIRY),
    each={"high": (10, 0), "low": (0, 10)},
)
async def an_expired_message_blocks_no_living_one(kit: Kit, levels: tuple[int, int]) -> None:
    """Expired messages of any priority do not block living ones."""
    dead, alive = levels
    queue = await kit.queue()
    await kit.put(queue, *(f"dead-{number}" for number in range(5)), ttl=0.3, priority=dead)
    await kit.put(queue, "alive", priority=alive)
    await kit.advance(0.5)
    consumer = await kit.subscribe(queue, prefetch=1)
    actual = {}

    for _ in range(6):
        (delivery,) = await kit.take(consumer, 1)
        actual[delivery.message.id] = delivery.expires_in is not None and delivery.expires_in <= 0
        await kit.ack(consumer, [delivery])

    kit.same(
        actual,
        {f"dead-{number}": True for number in range(5)} | {"alive": False},
        "which messages had expired",
        _ORDER,
    )


@case("G8", ids="P04", needs=_NEEDS)
async def a_worker_handles_the_most_urgent_of_what_it_has(kit: Kit) -> None:
    """A worker starts the message of highest priority among those it has buffered."""
    broker, queue = await kit.broker(), Queue(kit.name())
    started: asyncio.Queue[bytes] = asyncio.Queue()
    go = asyncio.Event()

    async def handler(body: bytes) -> None:
        await started.put(body)
        await go.wait()

    await kit.within(broker.publish(queue, b"first", priority=5))
    await kit.worker(broker, queue, handler, concurrency=1, prefetch=10)
    await kit.within(started.get())
    for body, priority in ((b"low", 0), (b"high", 10)):
        await kit.within(broker.publish(queue, body, priority=priority))
    await kit.advance(kit.harness.silence)
    go.set()
    order = [await kit.within(started.get()) for _ in range(2)]
    kit.same(order, [b"high", b"low"], "the order of handling", _ORDER)
