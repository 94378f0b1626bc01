"""Messages that kill their worker, and the messages that were near them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.dead_letter.common import (
    HEADERS,
    MOVE,
    ONCE,
    TWICE,
    take_dead_letters,
)
from mqcore.contract.faults import Fleet, taken_over
from mqcore.queue import Queue
from mqcore.spi import (
    Reason,
)

if TYPE_CHECKING:
    from mqcore.consuming.context import Context
    from mqcore.contract.kit import Kit


LEASE = 1.0


@case("G4", "G11", "G5", ids="X07 X01 C73", each={"first": 0, "in the middle": 25})
async def innocents_survive_a_poison_neighbour(kit: Kit, place: int) -> None:
    """A message that kills every worker is dead-lettered as `crashed`; all others are handled.

    Of 50 messages one kills its process each time it starts. From its third start on it runs alone.
    """
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    innocents = [f"job {n}" for n in range(49)]
    await kit.within(broker.publish_many(jobs, [*innocents[:place], "killer", *innocents[place:]]))
    fleet = Fleet(kit, jobs, retry=TWICE, concurrency=10, prefetch=50, lease=LEASE)
    for _ in range(TWICE.max_attempts + 2):
        await fleet.lose_a_worker()
    await fleet.worker()
    (letter,) = await take_dead_letters(kit, jobs.name, 1)
    actual = letter.body, letter.death and (letter.death.reason, letter.death.attempts)
    kit.same(actual, (b"killer", (Reason.CRASHED, 2)), "the dead letter", "Delivery.takeovers")
    kit.same(
        fleet.starts["killer"],
        TWICE.max_attempts + 2,
        "starts of the message that kills its worker",
        "Delivery.takeovers",
    )
    kit.true(
        not any(fleet.beside[2:]),
        "no other message beside the killer from its third start on",
        fleet.beside,
        "Delivery.takeovers",
    )

    await kit.advance(3.0)
    kit.same(
        sorted(fleet.done),
        sorted(innocents),
        "the other messages handled",
        "Backend.close, Delivery.takeovers",
    )
    kit.same(
        await kit.contents(f"{jobs.name}.dlq"),
        Counter(),
        "further dead letters",
        "Delivery.takeovers",
    )
    kit.same(await kit.contents(jobs.name), Counter(), "messages left in the queue", MOVE)


@case("G4", ids="X07 R01 R09")
async def a_takeover_is_no_attempt_and_changes_nothing(kit: Kit) -> None:
    """A consumer that dies before it starts a message leaves attempt and content unchanged."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await kit.within(broker.publish(jobs, "x", id="me", headers=HEADERS))
    await taken_over(kit, jobs.name, times=2)

    async with broker.consume(jobs, retry=ONCE) as consumer:
        held = await kit.within(anext(consumer))
        actual = (
            held.id,
            held.value,
            held.attempt,
            held.redelivered,
            held.queue,
            dict(held.headers),
        )
        kit.same(
            actual,
            ("me", "x", 1, True, jobs.name, HEADERS),
            "the message",
            "Delivery.takeovers, a Move",
        )
        await kit.within(held.ack())


@case("G4", "G13", ids="R09 X07 C50")
async def a_release_inside_the_quarantine_is_no_crash(kit: Kit) -> None:
    """Any number of deployments may release a suspect without an attempt or a takeover."""
    jobs, broker, attempts = Queue(kit.name(), str), await kit.broker(), list[int]()
    began = asyncio.Event()

    async def handler(_: str, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        began.set()
        await asyncio.Event().wait()

    await kit.within(broker.publish(jobs, "x"))
    await taken_over(kit, jobs.name, times=2)
    for _ in range(4):
        began.clear()
        worker = await kit.worker(broker, jobs, handler, retry=TWICE)
        await kit.within(began.wait(), what="the handler started")
        await kit.within(worker.drain(0))

    kit.same(attempts, [1] * 4, "attempts of four deployments", MOVE)
    (again,) = await kit.take(await kit.subscribe(f"{jobs.name}.quarantine"), 1)
    kit.same((again.attempt, again.takeovers), (1, 0), "attempt, takeovers", MOVE)
