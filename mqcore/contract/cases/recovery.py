"""Profile *recovery*: a broker that goes and comes back, and one that falls silent. Only a harness that may do that can show it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.queue import Queue
from mqcore.spi import ErrorKind

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from mqcore.contract.kit import Kit

_RESUMES, _SLACK, _NOTICED = 2.0, 1.0, 15.0
"""Seconds: until work goes on (G14), what a busy machine may add to that, and until a dead peer is noticed."""


@case("G14", "G2", hooks=("restart",))
async def a_worker_goes_on_when_the_broker_is_back(kit: Kit) -> None:
    """Killed and started again: 2 s after it accepts connections it is published to and consumed from, with nobody's help."""
    queue, came = Queue(kit.name(), str), asyncio.Queue[str]()
    broker = await kit.broker()

    async def handle(word: str) -> None:
        came.put_nowait(word)

    await kit.worker(broker, queue, handle)
    await kit.within(broker.publish(queue, "before"))
    kit.same(await kit.within(came.get()), "before", "the message handled", "Subscription.receive")
    await kit.kill(kit.backend)  # the case's own instance would call `lost`, as it must
    await kit.harness.restart()
    began = kit.now
    await kit.within(broker.publish(queue, "after", timeout=kit.harness.patience))
    published = kit.now - began
    while await kit.within(came.get()) != "after":
        continue  # what was not settled before the end may come again
    handled = kit.now - began
    kit.measured["resumed_after_restart_seconds"] = handled
    told = f"published after {published:.2f} s, handled after {handled:.2f} s"
    kit.true(
        handled <= _RESUMES + _SLACK, f"handled within {_RESUMES:g} s (and {_SLACK:g} s of slack)", told, "Backend.open"
    )


@case("G14", hooks=("cut",))
async def a_silent_peer_is_noticed_on_an_idle_connection(kit: Kit) -> None:
    """The network is cut without a word: `lost` is called within 15 s, once, although nothing was asked for."""
    told: asyncio.Queue[Exception] = asyncio.Queue()
    backend = kit.harness.make_backend()
    await kit.within(backend.open(told.put_nowait))
    await kit.kill(kit.backend)
    async with cast("AbstractAsyncContextManager[None]", kit.harness.cut()):
        began = kit.now
        await kit.within(told.get(), _NOTICED + _SLACK)
        kit.measured["silence_noticed_seconds"] = kit.now - began
        await kit.within(backend.close(), _RESUMES + _SLACK)
    kit.same(told.qsize(), 0, "further calls of `lost`", "Backend.open")
    kit.lost.clear()  # it was we who cut it


@case("G14", "G12", ids="C46", hooks=("cut",))
async def a_full_consumer_learns_of_a_loss(kit: Kit) -> None:
    """It holds its whole prefetch and waits for room: `receive` raises as soon as `lost` is called, not when its time is over."""
    told, queue, backend = asyncio.Event(), await kit.queue(), kit.harness.make_backend()
    await kit.within(backend.open(lambda _: told.set()))
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue, prefetch=1, backend=backend)
    await kit.take(consumer, 1)
    waiting = await kit.start(consumer.receive(1, 600.0))
    kit.true(not waiting.done(), "nothing beyond the prefetch", waiting, "Subscription.receive: prefetch")
    await kit.kill(kit.backend)
    async with cast("AbstractAsyncContextManager[None]", kit.harness.cut()):
        await kit.within(told.wait(), _NOTICED + _SLACK, what="`lost` called")
        await kit.within(asyncio.wait([waiting]), _SLACK, what="an end of the full consumer's receive")
        came = waiting.exception() or waiting.result()
        look = "Subscription.receive: after a loss, with its prefetch used up"
        kit.true(isinstance(came, Exception), "an exception", f"it returned {came!r}", look)
        kit.kind(cast("Exception", came), ErrorKind.TRANSIENT, look)
        await kit.within(backend.close(), _RESUMES + _SLACK)
    kit.lost.clear()  # it was we who cut it
