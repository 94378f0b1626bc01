"""Profile *takeover*: what a consumer held that has died, how often that is counted, and what it means for the message."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.faults import Fleet, taken_over
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import DONE, Move, Outgoing, Reason, Release, SupportsStart

if TYPE_CHECKING:
    from mqcore.consuming.context import Context
    from mqcore.contract.kit import Kit

LEASE = 1.0
TWICE = RetryPolicy(2, fixed(0.0))
_COUNT = "Delivery.takeovers"


# At the seam


@case("G4", ids="X07 R01")
async def every_takeover_is_counted(kit: Kit) -> None:
    """Three consumers die with a message: it says 1, 2, 3; where the broker has only a flag it says 1, and is not `counted`."""
    queue, seen, counted = await kit.queue(), list[int](), True
    await kit.put(queue, "a")
    for number in range(4):
        victim = await kit.open()
        (delivery,) = await kit.take(await kit.subscribe(queue, lease=LEASE, backend=victim), 1)
        seen.append(delivery.takeovers)
        counted = counted and delivery.counted
        if number < 3:  # noqa: PLR2004 - the deaths
            await kit.kill(victim)
    kit.same(
        seen, [0, 1, 2, 3] if counted else [0, 1, 1, 1], "takeovers", f"{_COUNT}, counted={counted}"
    )


@case("G4", "G13", ids="X07 R01 C45")
async def a_takeover_after_a_release_is_one_more(kit: Kit) -> None:
    """A release keeps what was counted, on every broker: the next death adds one to it."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    await taken_over(kit, queue, times=2)  # with a release between
    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    marks = (delivery.redelivered, delivery.takeovers)
    kit.same(marks, (True, 2), "redelivered, takeovers", "Subscription.settle: Release")


@case("G4", "G3", ids="X07 R01")
async def a_move_begins_a_copy_that_nobody_has_taken_over(kit: Kit) -> None:
    """The successor says 0, and carries what core counted before it as `Message.takeovers`."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    await taken_over(kit, queue, times=1)
    consumer = await kit.subscribe(queue)
    (source,) = await kit.take(consumer, 1)
    successor = source.message.moved(queue, takeovers=source.takeovers)
    settled = await kit.settle(consumer, Move(source.receipt, Outgoing(queue, successor)))
    kit.same(settled, [DONE], "moved", "Subscription.settle: Move")
    (delivery,) = await kit.take(consumer, 1)
    marks = (delivery.takeovers, delivery.message.takeovers, delivery.attempt)
    kit.same(marks, (0, 1, 1), "takeovers of the copy, of those before it, attempt", "pack, unpack")


@case("G4", ids="X07 R01", protocols=(SupportsStart,))
async def only_a_claim_that_noted_its_start_is_said_to_have_started(kit: Kit) -> None:
    """Who dies without a note has not started; a release drops the note, and a note of a lost claim is refused."""
    queue, marks, look = await kit.queue(), list[tuple[int, bool]](), "SupportsStart.note_start"
    await kit.put(queue, "a")
    for end in ("unnoted", "released", "unnoted", "noted", "unnoted", "last"):
        victim = await kit.open()
        consumer = await kit.subscribe(queue, lease=LEASE, backend=victim)
        (delivery,) = await kit.take(consumer, 1)
        marks.append((delivery.takeovers, delivery.started))
        if end in {"noted", "released"}:
            noted = await kit.within(
                cast("SupportsStart", victim).note_start(queue, [delivery.receipt])
            )
            kit.same(list(noted), [True], "noted", look)
        if end == "released":
            await kit.settle(consumer, Release(delivery.receipt))
        elif end != "last":
            await kit.kill(victim)
    wanted = [(0, False), (1, False), (1, False), (2, False), (3, True), (4, True)]
    kit.same(marks, wanted, "takeovers, started", look)
    await kit.ack(consumer, [delivery])
    late = await kit.within(
        cast("SupportsStart", kit.backend).note_start(queue, [delivery.receipt])
    )
    kit.same(list(late), [False], "a note of what is settled", look)


# Through Broker and Worker


@case("G4", "G11", ids="X07 R01", protocols=(SupportsStart,))
async def who_dies_before_a_suspect_starts_is_not_counted(kit: Kit) -> None:
    """Four processes die between the claim from the quarantine and the handler's start: it runs as a first attempt."""
    jobs, broker, attempts, ended = (
        Queue(kit.name(), str),
        await kit.broker(),
        list[int](),
        asyncio.Event(),
    )

    async def handler(_: str, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        ended.set()

    await kit.within(broker.declare(jobs))
    await kit.publish(Outgoing(f"{jobs.name}.again", kit.message("a", body=b'"x"')))
    for _ in range(4):
        victim = await kit.open()
        await kit.take(await kit.subscribe(f"{jobs.name}.again", lease=LEASE, backend=victim), 1)
        await kit.kill(victim)
    worker = await kit.worker(broker, jobs, handler, retry=TWICE)
    await kit.within(ended.wait(), what="the suspect handled")
    await kit.within(worker.drain(0))
    kit.same(attempts, [1], "the attempts", _COUNT)
    kit.same(await kit.contents(f"{jobs.name}.dlq"), Counter(), "no dead letter", _COUNT)


@case("G4", "G5", ids="X07 C73")
async def a_first_takeover_runs_at_once_among_others(kit: Kit) -> None:
    """What a dead consumer held does not wait for the running handlers to end, and nothing waits for it."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    running, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(job: str) -> None:
        if job == "long":
            running.set()
            await go.wait()
        else:
            ended.set()

    await kit.within(broker.publish(jobs, "held"))
    victim = await kit.open()
    await kit.take(await kit.subscribe(jobs.name, prefetch=1, lease=LEASE, backend=victim), 1)
    worker = await kit.worker(broker, jobs, handler, concurrency=2)
    await kit.within(broker.publish(jobs, "long"))
    await kit.within(running.wait(), what="the long handler begun")
    await kit.kill(victim)
    await kit.within(ended.wait(), what="what a dead consumer held, handled beside the long one")
    kit.same(
        worker.broker.events.counts["message.quarantined"], 0, "messages in quarantine", _COUNT
    )
    go.set()


@case("G4", "G11", ids="X07 R01")
async def with_after_crash_count_each_takeover_is_an_attempt(kit: Kit) -> None:
    """A killer is started `max_attempts` times, never isolated, and ends as `crashed`."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await kit.within(broker.publish(jobs, "killer"))
    fleet = Fleet(kit, jobs, retry=TWICE, after_crash="count", lease=LEASE)
    for _ in range(TWICE.max_attempts):
        await fleet.lose_a_worker()
    worker = await fleet.worker()
    (letter,) = await kit.take(await kit.subscribe(f"{jobs.name}.dlq"), 1)
    death = letter.message.death
    came = death and (death.reason, death.attempts)
    kit.same(came, (Reason.CRASHED, TWICE.max_attempts), "reason, attempts", _COUNT)
    kit.same(fleet.starts["killer"], TWICE.max_attempts, "starts of the killer", _COUNT)
    kit.same(
        worker.broker.events.counts["message.quarantined"], 0, "messages in quarantine", _COUNT
    )
    kit.same(
        await kit.contents(jobs.name), Counter(), "an empty queue", "Subscription.settle: Move"
    )
