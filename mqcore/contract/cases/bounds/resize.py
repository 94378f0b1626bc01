"""A consumer that is resized while it holds messages."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.kit import ContractError, NotShown
from mqcore.queue import Queue
from mqcore.spi import DONE, Ack, SupportsResize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.consuming.consumer import Consumer, Received
    from mqcore.consuming.context import Context
    from mqcore.contract.kit import Kit
    from mqcore.spi import Delivery, Subscription

_RESIZE = "Subscription: SupportsResize.resize"
_TWO = "Backend.subscribe: a second subscription of one connection, and Subscription.close"


@case("G12", "G2")
async def a_consumer_is_resized_while_it_holds_messages(kit: Kit) -> None:
    """A consumer that grows and shrinks handles each message once, on its first attempt."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    began: Counter[str] = Counter()
    attempts: list[int] = []
    may_end, changed = asyncio.Event(), asyncio.Event()

    async def handler(job: str, ctx: Context) -> None:
        began[job] += 1
        attempts.append(ctx.attempt + ctx.redelivered)
        changed.set()
        await may_end.wait()

    async def until(count: int, what: str) -> None:
        while len(attempts) < count:
            changed.clear()
            await kit.within(changed.wait(), what=what)

    names = [f"job {number}" for number in range(20)]
    await kit.within(broker.publish_many(jobs, names))
    worker = await kit.worker(broker, jobs, handler, concurrency=2, prefetch=2)
    await until(2, "two runs at once")
    await kit.within(worker.resize(jobs, 6, prefetch=8))
    await until(6, "six runs at once, after the consumer has grown")
    await kit.within(worker.resize(jobs, 1, prefetch=1))
    may_end.set()
    await until(20, "the run of every message, after the consumer has shrunk")
    await kit.within(worker.drain())

    kit.same(began, Counter(names), "runs of each message", _TWO)
    kit.same(set(attempts), {1}, "attempts, none of them a redelivery", _TWO)
    kit.same(await kit.contents(jobs.name), Counter(), "messages left in the queue", _TWO)


@case("G12")
async def a_consumer_of_the_pull_api_grows_and_shrinks(kit: Kit) -> None:
    """A consumer that is full gets more messages when it has grown, and none when it has shrunk.

    A new message is received beside those that are held.
    """
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await kit.within(broker.publish_many(jobs, [f"job {number}" for number in range(8)]))
    async with broker.consume(jobs, prefetch=2) as jobs_here:
        held = [await _next(kit, jobs_here) for _ in range(2)]
        await kit.within(jobs_here.resize(5))
        held += [await _next(kit, jobs_here) for _ in range(3)]
        await kit.within(jobs_here.resize(2))
        for each in held[:4]:
            await kit.within(each.ack())
        held.append(await _next(kit, jobs_here))
        await kit.advance(kit.harness.silence)
        got = await kit.within(jobs_here.get(timeout=0))
        kit.true(got is None, "no third message at a prefetch of 2", got, _RESIZE)
        values = Counter(each.value for each in held)
    kit.same(values, Counter(f"job {number}" for number in range(6)), "messages received", _RESIZE)


async def _next(kit: Kit, consumer: Consumer[str]) -> Received[str]:
    received = await kit.within(consumer.get(), what="a message that the prefetch allows")
    if received is None:
        raise ContractError("a message", "the consumer has ended", _RESIZE)
    return received


@case("G12")
async def a_prefetch_that_changes_is_an_exact_ceiling(kit: Kit) -> None:
    """A Subscription that has grown hands out so many more, and what it holds counts.

    Each settlement then makes room for one, of a message that came before the change or after it.
    """
    queue = await kit.queue()
    await kit.put(queue, *(f"{number}" for number in range(20)))
    consumer = await kit.subscribe(queue, prefetch=2)
    held = await kit.take(consumer, 2)
    await _resize(kit, consumer, 5)
    held += await kit.take(consumer, 3)
    await _is_full(kit, consumer, 5)

    for settled in (held[0], held[-1]):
        outcomes = await kit.settle(consumer, Ack(settled.receipt))
        kit.same(outcomes, [DONE], "outcomes of the settlement", "Subscription.settle")
        held += await kit.take(consumer, 1)
        await _is_full(kit, consumer, 5)

    waiting = await kit.start(consumer.receive(10, 10 * kit.harness.patience))
    await _resize(kit, consumer, 6)
    got: Sequence[Delivery] = await kit.within(waiting, what="a receive that was full has room")
    kit.same(len(got), 1, "messages for a receive that waited while its prefetch grew", _RESIZE)


@case("G12")
async def a_prefetch_that_shrinks_counts_what_is_held(kit: Kit) -> None:
    """A Subscription that has shrunk hands out nothing before it holds less than it may."""
    queue = await kit.queue()
    await kit.put(queue, *(f"{number}" for number in range(10)))
    consumer = await kit.subscribe(queue, prefetch=4)
    held = await kit.take(consumer, 4)
    if not isinstance(consumer, SupportsResize) or not await kit.within(consumer.resize(2)):
        raise NotShown("its prefetch cannot shrink: core subscribes again")

    for each in held[:2]:
        await kit.ack(consumer, [each])
        await _is_full(kit, consumer, 2)
    await kit.ack(consumer, [held[2]])
    await kit.take(consumer, 1)
    await _is_full(kit, consumer, 2)


@case("G12", "G2")
async def a_subscription_that_ends_leaves_another_what_it_holds(kit: Kit) -> None:
    """Where core subscribes again for a new prefetch, both subscriptions can settle what they hold.

    The end of one gives back nothing that the other holds.
    """
    queue = await kit.queue()
    await kit.put(queue, *(f"{number}" for number in range(4)))
    old, new = await kit.subscribe(queue, prefetch=2), await kit.subscribe(queue, prefetch=4)
    first, second = await kit.take(old, 2)
    await kit.take(new, 2)
    await kit.ack(old, [first])
    await kit.within(old.close())
    (back,) = await kit.take(new, 1)
    kit.same(back.message.id, second.message.id, "the message that came back", _TWO)
    beyond = kit.ids(await kit.drain(new))
    kit.same(beyond, [], "messages that came back although another holds them", _TWO)


async def _resize(kit: Kit, consumer: Subscription, prefetch: int) -> None:
    if not isinstance(consumer, SupportsResize) or not await kit.within(consumer.resize(prefetch)):
        raise NotShown("its prefetch cannot grow: core subscribes again")


async def _is_full(kit: Kit, consumer: Subscription, prefetch: int) -> None:
    beyond = kit.ids(await kit.drain(consumer))
    kit.same(beyond, [], f"messages beyond the prefetch of {prefetch}", _RESIZE)
