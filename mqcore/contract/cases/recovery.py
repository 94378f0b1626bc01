"""Profile *recovery*: a broker that restarts or falls silent, and queues deleted by others."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.kit import NotShown
from mqcore.queue import Queue
from mqcore.spi import (
    STALE,
    STORED,
    Ack,
    Capability,
    ErrorKind,
    Failed,
    Outgoing,
    QueueSpec,
    Stored,
    SupportsDelete,
    Unknown,
)

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from mqcore.contract.kit import Kit

_RESUMES, _SLACK, _NOTICED = 2.0, 1.0, 15.0
"""Seconds: until work resumes (G14), slack for a busy machine, until a dead peer is noticed."""


@case("G14", "G2", hooks=("restart",))
async def a_worker_goes_on_when_the_broker_is_back(kit: Kit) -> None:
    """Within 2 s of a restart of the server publishing and consuming work again."""
    queue, actual = Queue(kit.name(), str), asyncio.Queue[str]()
    broker = await kit.broker()

    async def handle(word: str) -> None:
        actual.put_nowait(word)

    await kit.worker(broker, queue, handle)
    await kit.within(broker.publish(queue, "before"))
    kit.same(
        await kit.within(actual.get()), "before", "the message handled", "Subscription.receive"
    )

    await kit.kill(kit.backend)  # the case's instance would rightly call `lost`
    await kit.harness.restart()
    began = kit.now
    await kit.within(broker.publish(queue, "after", timeout=kit.harness.patience))
    published = kit.now - began
    while await kit.within(actual.get()) != "after":
        continue  # an unsettled message may come again
    handled = kit.now - began
    kit.measured["resumed_after_restart_seconds"] = handled
    times = f"published after {published:.2f} s, handled after {handled:.2f} s"
    kit.true(
        handled <= _RESUMES + _SLACK,
        f"handled within {_RESUMES:g} s (and {_SLACK:g} s of slack)",
        times,
        "Backend.open",
    )


@case("G14", hooks=("cut",))
async def a_silent_peer_is_noticed_on_an_idle_connection(kit: Kit) -> None:
    """When an idle connection falls silent, `lost` is called once within 15 s."""
    losses: asyncio.Queue[Exception] = asyncio.Queue()
    backend = kit.harness.make_backend()
    await kit.within(backend.open(losses.put_nowait))
    await kit.kill(kit.backend)

    async with cast("AbstractAsyncContextManager[None]", kit.harness.cut()):
        began = kit.now
        await kit.within(losses.get(), _NOTICED + _SLACK)
        kit.measured["silence_noticed_seconds"] = kit.now - began
        await kit.within(backend.close(), _RESUMES + _SLACK)

    kit.same(losses.qsize(), 0, "further calls of `lost`", "Backend.open")
    kit.lost.clear()  # the case itself cut the connection


@case("G14", "G12", ids="C46", hooks=("cut",))
async def a_full_consumer_learns_of_a_loss(kit: Kit) -> None:
    """On a connection loss `receive` raises at once, also while it waits on a full prefetch."""
    lost, queue, backend = asyncio.Event(), await kit.queue(), kit.harness.make_backend()
    await kit.within(backend.open(lambda _: lost.set()))
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue, prefetch=1, backend=backend)
    await kit.take(consumer, 1)
    waiting = await kit.start(consumer.receive(1, 600.0))
    kit.true(
        not waiting.done(),
        "a receive that waits while the prefetch is used up",
        waiting,
        "Subscription.receive: prefetch",
    )

    await kit.kill(kit.backend)
    async with cast("AbstractAsyncContextManager[None]", kit.harness.cut()):
        await kit.within(lost.wait(), _NOTICED + _SLACK, what="`lost` called")
        await kit.within(asyncio.wait([waiting]), _SLACK, what="the full consumer's receive ends")
        actual = waiting.exception() or waiting.result()
        look = "Subscription.receive: after a loss, with its prefetch used up"
        kit.true(isinstance(actual, Exception), "an exception", f"it returned {actual!r}", look)
        kit.kind(cast("Exception", actual), ErrorKind.TRANSIENT, look)
        await kit.within(backend.close(), _RESUMES + _SLACK)

    kit.lost.clear()  # the case itself cut the connection


@case("G1", "G14", ids="B03", needs=(Capability.DEDUP, Capability.DURABLE), hooks=("restart",))
async def a_name_is_known_after_a_restart(kit: Kit) -> None:
    """Deduplication survives a restart of the server, also for acked messages."""
    if kit.limit(Capability.DEDUP, "restart") is False:
        raise NotShown("DEDUP states restart=False: its window ends with the server")
    queue, look = await kit.queue(), "Backend.publish: DEDUP, or state its limit restart=False"
    await kit.put(queue, "acked", "ready")
    consumer = await kit.subscribe(queue, prefetch=1)
    await kit.ack(consumer, await kit.take(consumer, 1))
    await kit.within(consumer.close())

    await kit.kill(kit.backend)
    await kit.harness.restart()
    backend = await kit.open()
    again = [Outgoing(queue, kit.message(name)) for name in ("acked", "ready")]
    outcomes = await kit.publish(*again, backend=backend)
    kit.same(
        outcomes,
        [Stored(duplicate=True)] * 2,
        "outcomes of publishing again after the restart",
        look,
    )

    consumer = await kit.subscribe(queue, backend=backend)
    kit.same(
        kit.ids(await kit.take(consumer, 1)), ["ready"], "the message that was not acked", look
    )
    kit.same(kit.ids(await kit.receive(consumer)), [], "further copies", look)


@case("G3", "G1", ids="C43", hooks=("mute",))
async def a_move_without_an_answer_keeps_its_source(kit: Kit) -> None:
    """A Move whose answer is lost is not Done, and does not lose its message.

    The source is removed together with storing the successor, or stays.
    """
    queue, look = (
        await kit.queue(),
        "Subscription.settle: Move, when the successor's answer does not come",
    )
    target = f"{queue}.dlq"
    await kit.put(queue, "a")
    mover = await kit.open()
    consumer = await kit.subscribe(queue, lease=2.0, backend=mover)
    (held,) = await kit.take(consumer, 1)

    async with kit.harness.mute(mover):
        settling = consumer.settle([kit.successor(held, target)], timeout=1.0)
        (outcome,) = await kit.within(settling, 3.0)
        kit.true(isinstance(outcome, Unknown | Failed), "Unknown, or Failed", outcome, look)
        await kit.kill(mover)  # so that the answer never comes

    one_step = kit.capabilities.has(Capability.ATOMIC_MOVE)
    if one_step and (moved := await kit.contents(target)):
        kit.same(moved, Counter("a"), "messages in the target queue", look)
        kit.same(await kit.contents(queue), Counter(), "messages in the source queue", look)
        return
    (again,) = await kit.take(await kit.subscribe(queue), 1)
    kit.same(again.message.id, "a", "the id of the source message", look)
    moved = await kit.contents(target)
    kit.true(
        moved.total() <= (not one_step),
        "no successor, or without ATOMIC_MOVE at most one",
        moved,
        look,
    )


@case("G14", "G5", ids="C06", protocols=(SupportsDelete,))
async def consumers_learn_that_another_process_deleted_their_queue(kit: Kit) -> None:
    """When another process deletes a queue, its consumers raise NOT_FOUND.

    Settlements are stale, and the instance works with a new queue of that name.
    """
    queue, look = (
        await kit.queue(),
        "Subscription.receive: the queue is deleted by another instance",
    )
    await kit.put(queue, "held")
    full, waits = await kit.subscribe(queue, prefetch=1), await kit.subscribe(queue)
    (held,) = await kit.take(full, 1)
    waiting = [await kit.start(consumer.receive(1, 600.0)) for consumer in (full, waits)]
    await kit.within(cast("SupportsDelete", await kit.open()).delete(queue))

    for task in waiting:
        error = await kit.raises(Exception, task, "an error of receive, NOT_FOUND", look)
        kit.kind(error, ErrorKind.NOT_FOUND, look)
    kit.same(
        await kit.settle(full, Ack(held.receipt)),
        [STALE],
        "a late settlement",
        "Subscription.settle",
    )
    for consumer in (full, waits):
        await kit.within(consumer.close(), _RESUMES)

    await kit.within(kit.backend.declare([QueueSpec(name=queue)]))
    consumer = await kit.subscribe(queue)
    await kit.put(queue, "new")
    kit.same(kit.ids(await kit.take(consumer, 1)), ["new"], "a message of the new queue", look)


@case("G14", ids="C06", protocols=(SupportsDelete,))
async def a_worker_goes_on_when_another_process_deleted_its_queue(kit: Kit) -> None:
    """A worker declares and consumes its queue again after another process deleted it.

    The worker's connection is kept.
    """
    queue, actual = Queue(kit.name(), str), asyncio.Queue[str]()

    async def handle(word: str) -> None:
        actual.put_nowait(word)

    broker = await kit.broker()
    await kit.worker(broker, queue, handle)
    await kit.within(broker.publish(queue, "before"))
    kit.same(
        await kit.within(actual.get()), "before", "the message handled", "Subscription.receive"
    )

    other = await kit.open()
    await kit.within(cast("SupportsDelete", other).delete(queue.name))
    message, deadline = (
        kit.message("after", body=b'"after"', content_type="application/json"),
        kit.now + 15.0,
    )
    while (await kit.publish(Outgoing(queue.name, message), backend=other)) != [STORED]:
        kit.true(
            kit.now < deadline,
            "the queue declared again within 15 s",
            "it is missing",
            "Subscription.receive",
        )
        await kit.advance(0.1)
    kit.same(await kit.within(actual.get()), "after", "the message handled", "Subscription.receive")
