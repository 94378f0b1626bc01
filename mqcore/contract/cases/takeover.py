"""Profile *takeover*: messages of a consumer that died, and how takeovers are counted."""

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


# At the backend interface


@case("G4", ids="X07 R01")
async def every_takeover_is_counted(kit: Kit) -> None:
    """Each takeover is counted.

    Where the broker has only a flag, `takeovers` is 1 and `counted` is False.
    """
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
    """A release keeps the takeovers counted before it, and the next takeover adds one."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    await taken_over(kit, queue, times=2)  # with a release after each
    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    marks = (delivery.redelivered, delivery.takeovers)
    kit.same(marks, (True, 2), "redelivered, takeovers", "Subscription.settle: Release")


@case("G4", "G3", ids="X07 R01")
async def a_move_begins_a_copy_that_nobody_has_taken_over(kit: Kit) -> None:
    """A successor starts with 0 takeovers and carries the earlier ones in `Message.takeovers`."""
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
    kit.same(
        marks, (0, 1, 1), "takeovers of the copy, takeovers before it, attempt", "pack, unpack"
    )


@case("G4", ids="X07 R01", protocols=(SupportsStart,))
async def only_a_claim_that_noted_its_start_is_said_to_have_started(kit: Kit) -> None:
    """`started` is True only when the lost claim had noted its start.

    A release drops the note, and noting the start of a lost claim answers False.
    """
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
            kit.same(list(noted), [True], "the answer of note_start", look)
        if end == "released":
            await kit.settle(consumer, Release(delivery.receipt))
        elif end != "last":
            await kit.kill(victim)

    expected = [(0, False), (1, False), (1, False), (2, False), (3, True), (4, True)]
    kit.same(marks, expected, "takeovers, started", look)

    await kit.ack(consumer, [delivery])
    late = await kit.within(
        cast("SupportsStart", kit.backend).note_start(queue, [delivery.receipt])
    )
    kit.same(list(late), [False], "the answer of note_start for a settled message", look)


# Through Broker and Worker


@case("G4", "G11", ids="X07 R01", protocols=(SupportsStart,))
async def who_dies_before_a_suspect_starts_is_not_counted(kit: Kit) -> None:
    """A process that dies before it starts a suspect is not counted as an attempt."""
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
    await kit.publish(Outgoing(f"{jobs.name}.quarantine", kit.message("a", body=b'"x"')))
    for _ in range(4):
        victim = await kit.open()
        await kit.take(
            await kit.subscribe(f"{jobs.name}.quarantine", lease=LEASE, backend=victim), 1
        )
        await kit.kill(victim)

    worker = await kit.worker(broker, jobs, handler, retry=TWICE)
    await kit.within(ended.wait(), what="the suspect handled")
    await kit.within(worker.drain(0))
    kit.same(attempts, [1], "attempts", _COUNT)
    kit.same(await kit.contents(f"{jobs.name}.dlq"), Counter(), "dead letters", _COUNT)


@case("G4", "G11", ids="X07 R01", protocols=(SupportsStart,))
async def with_after_crash_count_only_a_start_is_an_attempt(kit: Kit) -> None:
    """With `after_crash="count"` a death before the handler's start is not an attempt.

    It is not while the deaths are few: after ten the message counts as started.
    """
    jobs, broker, attempts = Queue(kit.name(), str), await kit.broker(), list[int]()
    ended = asyncio.Event()

    async def handler(_: str, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        ended.set()

    await kit.within(broker.publish(jobs, "held"))
    for _ in range(3):
        victim = await kit.open()
        await kit.take(await kit.subscribe(jobs.name, lease=LEASE, backend=victim), 1)
        await kit.kill(victim)

    worker = await kit.worker(broker, jobs, handler, retry=TWICE, after_crash="count")
    await kit.within(ended.wait(), what="what dead consumers held, handled")
    await kit.within(worker.drain(0))
    kit.same(attempts, [1], "attempts", _COUNT)
    kit.same(await kit.contents(f"{jobs.name}.dlq"), Counter(), "dead letters", _COUNT)


@case("G4", "G5", ids="X07 C73")
async def a_first_takeover_runs_at_once_among_others(kit: Kit) -> None:
    """A message taken over for the first time runs beside other handlers, without isolation."""
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
    await kit.within(running.wait(), what="the long handler started")
    await kit.kill(victim)
    await kit.within(ended.wait(), what="what a dead consumer held, handled beside the long one")
    kit.same(
        worker.broker.events.counts["message.quarantined"], 0, "messages in quarantine", _COUNT
    )

    go.set()


@case("G4", "G11", ids="X07 R01")
async def with_after_crash_count_each_takeover_is_an_attempt(kit: Kit) -> None:
    """With `after_crash="count"` each takeover is an attempt, and nothing is isolated."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await kit.within(broker.publish(jobs, "killer"))
    fleet = Fleet(kit, jobs, retry=TWICE, after_crash="count", lease=LEASE)
    for _ in range(TWICE.max_attempts):
        await fleet.lose_a_worker()
    worker = await fleet.worker()
    (letter,) = await kit.take(await kit.subscribe(f"{jobs.name}.dlq"), 1)
    death = letter.message.death
    actual = death and (death.reason, death.attempts)
    kit.same(actual, (Reason.CRASHED, TWICE.max_attempts), "reason, attempts", _COUNT)
    kit.same(
        fleet.starts["killer"],
        TWICE.max_attempts,
        "starts of the message that kills its worker",
        _COUNT,
    )
    kit.same(
        worker.broker.events.counts["message.quarantined"], 0, "messages in quarantine", _COUNT
    )
    kit.same(
        await kit.contents(jobs.name),
        Counter(),
        "messages left in the queue",
        "Subscription.settle: Move",
    )
