"""Messages that are postponed, by their handlers or by the hook that concludes them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.retry.common import MOVE
from mqcore.contract.cases.retry.policy import HEADERS, Failing
from mqcore.errors import Postpone, Reject
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy
from mqcore.spi import Capability, Reason, SupportsCount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.consuming.conclusions import Conclusion
    from mqcore.contract.kit import Kit

_DELAYS = (Capability.DELAY,)
_ONCE = RetryPolicy(1)


@case("G10", "G7", "G8", needs=_DELAYS)
async def a_postponed_message_comes_again_as_it_was(kit: Kit) -> None:
    """A postponed message is never early, and has the same attempt, priority and headers."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    handler = Failing(kit, Postpone(0.4), Postpone(0), None)
    priority = {"priority": 9} if kit.capabilities.has(Capability.PRIORITY) else {}
    await kit.within(broker.publish(jobs, "x", id="me", headers=HEADERS, **priority))  # type: ignore[arg-type]  # mypy sees one type for all options
    await kit.worker(broker, jobs, handler, retry=_ONCE, concurrency=1)
    await kit.within(handler.reached.wait(), what="three runs of one attempt")

    handler.waited(0.4, 0.0)
    kit.same(handler.attempts, [1, 1, 1], "attempts", "Message.attempt kept by a Move")
    kit.same([dict(ctx.headers) for ctx in handler.seen], [HEADERS] * 3, "headers", MOVE)
    for name in ("id", "priority", "published_at", "content_type"):
        kit.same(
            len({getattr(ctx, name) for ctx in handler.seen}),
            1,
            f"number of different values of {name} in all runs",
            MOVE,
        )


@case("G10", "G7", needs=_DELAYS, protocols=(SupportsCount,))
async def a_postponed_message_waits_in_the_broker(kit: Kit) -> None:
    """A postponed message holds no lease and no place of its consumer."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    handler = Failing(kit, Postpone(30), None)
    await kit.within(broker.publish_many(jobs, ["postponed", "next"]))
    worker = await kit.worker(broker, jobs, handler, retry=_ONCE, concurrency=1, prefetch=1)
    await kit.within(handler.reached.wait(), what="the run of the next message")
    await kit.within(worker.drain())

    (counts,) = await kit.within(broker.counts(jobs))
    kit.counted(counts, ready=0, leased=0, delayed=1)


@case("G10", "G6", needs=(Capability.DELAY, Capability.EXPIRY))
async def a_wait_beyond_the_expiry_ends_at_the_expiry(kit: Kit) -> None:
    """A message that is postponed beyond its expiry expires in its queue, and not before."""
    jobs, broker, ttl = Queue(kit.name(), str), await kit.broker(), 2.0
    handler, began = Failing(kit, Postpone(3600)), kit.now
    await kit.within(broker.publish(jobs, "x", ttl=ttl))
    await kit.worker(broker, jobs, handler, retry=_ONCE, concurrency=1)
    await kit.within(handler.reached.wait(), what="the first run")

    (letter,) = await kit.take(await kit.subscribe(f"{jobs.name}.dlq"), 1)
    death = letter.message.death
    kit.same(death and death.reason, Reason.EXPIRED, "the reason of the dead letter", MOVE)
    kit.true(
        kit.now - began >= ttl - 0.05,
        "a dead letter at the expiry",
        f"one after {kit.now - began:.2f} s",
        MOVE,
    )
    kit.same(len(handler.times), 1, "runs of the handler", MOVE)


_OUTCOMES: dict[str, tuple[Exception | None, str, int]] = {
    "dead": (Reject("no"), "rejected", 1),
    "done": (None, "", 2),
}


@case("G2", "G6", "G10", needs=(Capability.DELAY, Capability.EXPIRY), each=_OUTCOMES)
async def a_message_that_could_not_be_concluded_comes_back_to_be_concluded(
    kit: Kit, expected: tuple[Exception | None, str, int]
) -> None:
    """After its hook has failed a dead message has the same outcome, and does not run again."""
    error, reason, runs = expected
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    calls: list[Conclusion] = []
    handler, concluded = Failing(kit, always=error), asyncio.Event()

    async def hook(conclusions: Sequence[Conclusion]) -> None:
        calls.extend(conclusions)
        if len(calls) == 1:
            conclusions[0].postpone(0.8)
        else:
            concluded.set()

    await kit.within(broker.publish(jobs, "x", id="me"))
    worker = await kit.worker(broker, jobs, handler, retry=_ONCE, concurrency=1, conclusion=hook)
    await kit.within(concluded.wait(), what="the second call of the hook")
    await kit.within(worker.drain())

    kit.same([each.id for each in calls], ["me", "me"], "the messages of both calls", MOVE)
    kit.same([each.reason for each in calls], [reason] * 2, "the reasons", "Message.death")
    kit.same(len(handler.times), runs, "runs of the handler", "Outgoing.ttl of a Move")
    if reason:
        (letter,) = await kit.take(await kit.subscribe(f"{jobs.name}.dlq"), 1)
        death = letter.message.death
        actual = death and (death.reason, death.attempts, death.error)
        kit.same(actual, (Reason.REJECTED, 1, "no"), "the record", "Message.death")
