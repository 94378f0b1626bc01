"""Profile *handover*: unseen messages and waiting consumers when a consumer stops."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.cases.browse import shows_delayed
from mqcore.contract.kit import NotShown
from mqcore.spi import DONE, STORED, Capability, Outgoing, Release, SupportsBrowse, SupportsTake

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.spi import Delivery, Subscription

_LONG = 600.0
"""Seconds for a receive that the case ends itself."""
_TURNS = 10
_PROMPT = 0.2
"""Seconds, beyond a delay's granularity, in which the next waiting consumer has the message.

A driver that polls every half second is too slow.
"""
_EARLY = 0.005
_CANCELLED = "Subscription.receive: cancellation"
_Waits = tuple["Subscription", "asyncio.Task[list[Delivery]]"]


# Claims that are under way


@case("G2", "G4", ids="C07 L03")
async def what_nobody_has_seen_goes_back_as_it_was(kit: Kit) -> None:
    """Messages of a cancelled receive return with unchanged marks when the consumer closes."""
    queue = await kit.queue()
    for turn in range(12):
        await kit.put(queue, f"taken-{turn}")
        dies = await kit.subscribe(queue, lease=2.0)
        await kit.take(dies, 1)
        await kit.within(dies.close())
        await kit.put(queue, f"new-{turn}")
        unseeing = await kit.subscribe(queue)
        got = await _cancelled(unseeing, 2, turn)
        await kit.ack(unseeing, got)
        await kit.within(unseeing.close())
        consumer = await kit.subscribe(queue)
        rest = await kit.take(consumer, 2 - len(got))
        await kit.ack(consumer, rest)
        await kit.within(consumer.close())
        marks = {
            delivery.message.id: (delivery.redelivered, delivery.takeovers)
            for delivery in got + rest
        }
        # Without leases the broker marks everything that it had sent.
        if not kit.capabilities.has(Capability.LEASE):
            marks = {
                name: (False, 0) if name.startswith("new") else mark for name, mark in marks.items()
            }
        expected = {f"taken-{turn}": (True, 1), f"new-{turn}": (False, 0)}
        kit.same(
            marks,
            expected,
            f"turn {turn}: redelivered and takeovers as before",
            f"{_CANCELLED}, Subscription.close",
        )


@case("G2", ids="C07")
async def what_a_cancelled_receive_claimed_comes_with_the_next_ones(kit: Kit) -> None:
    """What a cancelled receive had claimed is handed out by the next receives, once, unmarked."""
    queue, claims = await kit.queue(), kit.capabilities.has(Capability.LEASE)
    consumer = await kit.subscribe(queue)
    for turn in range(12):
        names = [f"{turn}-{letter}" for letter in "abc"]
        await kit.put(queue, *names)
        got = await _cancelled(consumer, 2, turn // 2)
        # The claim arrives before the next call, or after it.
        await kit.advance(0.02 * (turn % 2))
        deadline = kit.now + kit.harness.patience
        while len(got) < len(names) and kit.now < deadline:
            page = await kit.receive(consumer, 1, wait=0.0)
            # The claim is under way. A backend with leases has claimed again and found the rest.
            if not page:
                kit.true(
                    not got or not claims,
                    f"one of {names} with each call",
                    "nothing from one",
                    _CANCELLED,
                )
                await kit.advance(0.01)
            got += page
        marks = [
            (delivery.message.id, delivery.redelivered, delivery.takeovers) for delivery in got
        ]
        kit.same(
            marks,
            [(name, False, 0) for name in names],
            f"turn {turn}: id, redelivered, takeovers, in order",
            _CANCELLED,
        )
        kit.same(
            kit.ids(await kit.receive(consumer, wait=0.0)),
            [],
            f"turn {turn}: further messages",
            _CANCELLED,
        )
        await kit.ack(consumer, got)

    await kit.within(consumer.close())
    kit.same(await kit.contents(queue), Counter(), "messages left in the queue", _CANCELLED)


@case("G2", ids="C07", prompt=True)
async def what_is_on_its_way_when_the_time_ends_comes_with_the_next_receive(kit: Kit) -> None:
    """A claim under way when a receive times out is handed out by the next receive, unmarked."""
    queue, look = (
        await kit.queue(),
        "Subscription.receive: its time ends while a claim is under way",
    )
    consumer = await kit.subscribe(queue)

    for turn in range(40):
        publishing = asyncio.create_task(kit.put(queue, f"{turn}"))
        deadline = kit.now + kit.harness.patience
        got: list[Delivery] = []
        while not got and kit.now < deadline:
            got = await kit.receive(consumer, 1, wait=0.001 * (1 + turn % 5))
        await kit.within(publishing)
        marks = [
            (delivery.message.id, delivery.redelivered, delivery.takeovers) for delivery in got
        ]
        kit.same(marks, [(f"{turn}", False, 0)], f"turn {turn}: id, redelivered, takeovers", look)
        await kit.ack(consumer, got)

    await kit.within(consumer.close())
    kit.same(await kit.contents(queue), Counter(), "messages left in the queue", look)


async def _cancelled(consumer: Subscription, limit: int, steps: int) -> list[Delivery]:
    """Start to receive, cancel it after `steps` turns of the loop, and return what it received."""
    receiving = asyncio.ensure_future(consumer.receive(limit, _LONG))
    for _ in range(steps):
        await asyncio.sleep(0)
    receiving.cancel()
    (got,) = await asyncio.gather(receiving, return_exceptions=True)
    if isinstance(got, Exception):
        raise got
    return [] if isinstance(got, BaseException) else list(got)


# Waking the next consumer


async def _waiting(kit: Kit, queue: str, turn: int) -> tuple[list[_Waits], _Waits]:
    """Start four waiting consumers; return those that will go, and the one that stays.

    Mostly the one that stays has waited for the shortest time, so that the wake-up must pass the
    others.
    """
    backends = [kit.backend, await kit.open()] if turn % 2 else [kit.backend] * 2
    consumers = [await kit.subscribe(queue, backend=backends[number % 2]) for number in range(4)]
    waiting = [(consumer, await kit.start(_received(consumer))) for consumer in consumers]
    stays = waiting.pop(0 if turn % 4 == 3 else -1)  # noqa: PLR2004 - a turn in four
    return waiting, stays


async def _received(consumer: Subscription) -> list[Delivery]:
    return list(await consumer.receive(1, _LONG))


def _all_prompt(kit: Kit, late: list[float], limit: float, what: str, look: str) -> None:
    """Fail when more than one turn took longer than `limit`: a busy machine may delay one."""
    slow = sorted(late)[-2]
    kit.true(
        slow <= limit,
        f"{what} within {limit:g} s",
        f"after {[round(item, 3) for item in late]} s",
        look,
    )


@case("G2", ids="C23 C09", prompt=True)
async def who_goes_after_it_was_woken_wakes_the_next(kit: Kit) -> None:
    """When a woken consumer closes, the next waiting consumer gets the message at once.

    It must not wait for its next poll.
    """
    queue, late, look = await kit.queue(), list[float](), "Subscription.close: pass the wake-up on"
    for turn in range(_TURNS):
        going, (stays, task) = await _waiting(kit, queue, turn)
        stored = await kit.backend.publish(
            [Outgoing(queue, kit.message(f"{turn}"))], timeout=kit.harness.patience
        )
        for _ in range(turn):
            await asyncio.sleep(0)
        for goes, _ in going:
            await goes.close()  # without a wait, so that the woken consumer does not run before
        began = kit.now
        kit.same(list(stored), [STORED], "stored", "Backend.publish")
        got = await kit.within(task)
        late.append(kit.now - began)
        kit.same(
            kit.ids(got), [f"{turn}"], f"turn {turn}: the message, for the remaining consumer", look
        )
        await kit.ack(stays, got)
        await kit.within(stays.close())

    _all_prompt(kit, late, _PROMPT, "the message, for the remaining consumer,", look)


@case(
    "G7",
    "G2",
    ids="C23 C07 D03",
    needs=(Capability.DELAY,),
    each={"closed": True, "cancelled": False},
    prompt=True,
)
async def who_goes_before_a_delay_ends_leaves_that_to_the_next(kit: Kit, closed: bool) -> None:  # noqa: FBT001 - a variant
    """When consumers go before a delay ends, the remaining one still gets the message in time."""
    queue, late, delay = await kit.queue(), list[float](), 0.4
    # Without leases the broker sends what falls due to open consumers, which keep it.
    stay_open = not closed and kit.capabilities.has(Capability.LEASE)
    look = (
        "Subscription.close: which consumer waits for the next delay"
        if closed
        else f"{_CANCELLED}: which consumer waits for the next delay"
    )

    for turn in range(_TURNS):
        going, (stays, task) = await _waiting(kit, queue, turn)
        began = kit.now
        await kit.put(queue, f"{turn}", delay=delay)
        stored = kit.now
        await kit.advance(0.05)
        for goes, waiting in going:
            if not closed:
                waiting.cancel()
                await asyncio.wait([waiting])
            # So late, its last claim may have received the message.
            if not stay_open or kit.now - stored > delay / 2:
                await kit.within(goes.close())
        got = await kit.within(task)
        kit.true(
            kit.now - began >= delay - _EARLY,
            "no message before it is due",
            f"after {kit.now - began:.3f} s",
            "publish: delay",
        )
        late.append(max(kit.now - stored - delay, 0.0))
        kit.same(
            kit.ids(got), [f"{turn}"], f"turn {turn}: the message, for the remaining consumer", look
        )
        await kit.ack(stays, got)
        for consumer, _ in [*going, (stays, task)]:
            await kit.within(consumer.close())

    limit = float(kit.limit(Capability.DELAY, "granularity") or 0.0) + _PROMPT
    _all_prompt(kit, late, limit, "the message, for the remaining consumer, after its delay", look)


@case(
    "G7",
    "G11",
    ids="D03 X03",
    needs=(Capability.DELAY, Capability.BROWSE),
    protocols=(SupportsBrowse, SupportsTake),
    prompt=True,
)
async def what_was_taken_before_its_time_and_released_is_due_as_before(kit: Kit) -> None:
    """A delayed message that was taken and released still arrives when it is due."""
    if not shows_delayed(kit):
        raise NotShown("BROWSE is declared approximate, and does not show what is delayed")
    queue, late, delay, look = (
        await kit.queue(),
        list[float](),
        0.5,
        "Subscription.settle: Release of a delayed message",
    )
    shelf, taker = cast("SupportsBrowse", kit.backend), cast("SupportsTake", kit.backend)
    idle, settles = await kit.subscribe(queue, backend=await kit.open()), await kit.subscribe(queue)

    for turn in range(_TURNS):
        began = kit.now
        await kit.put(queue, f"{turn}", delay=delay)
        stored = kit.now
        (entry,) = await kit.within(shelf.browse(queue, 10))
        (taken,) = await kit.within(taker.take(queue, [entry.key], 60.0))
        waiting = await kit.start(_received(idle))
        kit.same(
            await kit.settle(settles, Release(taken.receipt)),
            [DONE],
            "released",
            "Subscription.settle: Release",
        )
        got = await kit.within(waiting)
        kit.true(
            kit.now - began >= delay - _EARLY,
            "no message before it is due",
            f"after {kit.now - began:.3f} s",
            look,
        )
        late.append(max(kit.now - stored - delay, 0.0))
        marks = [
            (delivery.message.id, delivery.redelivered, delivery.takeovers) for delivery in got
        ]
        kit.same(marks, [(f"{turn}", True, 0)], f"turn {turn}: id, redelivered, takeovers", look)
        await kit.ack(idle, got)

    limit = float(kit.limit(Capability.DELAY, "granularity") or 0.0) + _PROMPT
    _all_prompt(kit, late, limit, "the message after the rest of its delay,", look)


# Browsing


@case("G11", ids="X08", needs=(Capability.BROWSE,), protocols=(SupportsBrowse,))
async def many_that_are_looked_at_go_back_in_their_order(kit: Kit) -> None:
    """Browsing the first or all of 150 messages, repeatedly, keeps their order."""
    queue, names = await kit.queue(), [f"{number:03}" for number in range(150)]
    await kit.put(queue, *names)
    backend, look = cast("SupportsBrowse", kit.backend), "SupportsBrowse.browse"

    for limit in (50, 200, 50, 200):
        entries = await kit.within(backend.browse(queue, limit, None))
        kit.same(
            [delivery.message.id for delivery in entries],
            names[:limit],
            "in order, each time",
            look,
        )

    consumer = await kit.subscribe(queue, prefetch=200)
    got = [one for _ in names for one in await kit.take(consumer, 1)]
    kit.same(kit.ids(got), names, "delivered in order", look)
