"""The retry policy of a worker."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.cases.retry.common import MOVE
from mqcore.errors import Reject, Retry
from mqcore.queue import Queue
from mqcore.rules.retry import Backoff, RetryPolicy, exponential, fixed, linear
from mqcore.spi import (
    Capability,
    Message,
    Reason,
    SupportsCount,
    SupportsDelete,
)

if TYPE_CHECKING:
    from mqcore.consuming.context import Context
    from mqcore.contract.kit import Kit


SLACK = 0.5
"""Seconds between a due time and the handler's start that are not the backend's."""


EARLY = 0.005


_DELAYS = (Capability.DELAY,)


AT_ONCE = fixed(0.0)


HEADERS = {"tenant": "t-1", "note": "Grüße 世界 🐇"}


_HEADERS = "Subscription.receive: hand out headers that cannot be changed, as `unpack` makes them"


class Failing:
    """A handler that records its runs and raises the given errors in turn."""

    def __init__(
        self, kit: Kit, *errors: Exception | None, always: Exception | None = None, enough: int = 0
    ) -> None:
        """`errors` are raised in turn, None for success, then `always`.

        `reached` is set after `enough` runs.
        """
        self.kit, self.errors, self.always = kit, list(errors), always
        self.enough, self.reached = enough or len(errors), asyncio.Event()
        self.times: list[float] = []
        self.seen: list[Context] = []

    async def __call__(self, _: str, ctx: Context) -> None:
        """Run once."""
        self.times.append(self.kit.now)
        self.seen.append(ctx)
        with suppress(TypeError, AttributeError):
            cast("dict[str, str]", ctx.delivery.message.headers)["edited"] = "yes"
        if len(self.times) >= self.enough:
            self.reached.set()
        if (error := self.errors.pop(0) if self.errors else self.always) is not None:
            raise error

    @property
    def attempts(self) -> list[int]:
        """The attempt number of each run."""
        return [ctx.attempt for ctx in self.seen]

    def waited(self, *waits: float) -> None:
        """Fail unless the waits between runs were these.

        A wait is never early, and late by at most the granularity.
        """
        actual = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        late = float(self.kit.limit(Capability.DELAY, "granularity") or 1.0) + SLACK
        fits = len(actual) == len(waits) and all(
            -EARLY <= item - due <= late for item, due in zip(actual, waits, strict=True)
        )
        self.kit.true(
            fits,
            f"waits of {waits} s, at most {late:g} s late",
            [round(item, 3) for item in actual],
            "a Move's delay",
        )


async def _failing(kit: Kit, handler: Failing, policy: RetryPolicy, **options: Any) -> Queue[str]:
    """Publish one message and run a worker until the handler has run often enough."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await kit.within(broker.publish(jobs, "x", **options))
    await kit.worker(broker, jobs, handler, retry=policy, concurrency=1)
    await kit.within(handler.reached.wait(), what="as many attempts as the case waits for")
    return jobs


async def _dead(kit: Kit, jobs: Queue[str]) -> Message:
    (letter,) = await kit.take(await kit.subscribe(f"{jobs.name}.dlq"), 1)
    return letter.message


_BACKOFFS = {
    "fixed": (fixed(0.4), (0.4, 0.4)),
    "linear": (linear(0.3, cap=0.5, jitter=False), (0.3, 0.5)),
    "exponential": (exponential(0.3, factor=3.0, cap=0.7, jitter=False), (0.3, 0.7)),
}


@case("G10", "G7", ids="R02", needs=_DELAYS, each=_BACKOFFS)
async def the_waits_follow_the_backoff(
    kit: Kit, expected: tuple[Backoff, tuple[float, ...]]
) -> None:
    """Retries wait as long as the policy's backoff says, counted from the failure."""
    handler = Failing(kit, always=ValueError("no"), enough=3)
    jobs = await _failing(kit, handler, RetryPolicy(3, expected[0]))
    handler.waited(*expected[1])
    death = (await _dead(kit, jobs)).death
    kit.same(
        death and (death.reason, death.attempts),
        (Reason.RETRIES_EXHAUSTED, 3),
        "reason and attempts of the dead letter",
        MOVE,
    )


@case("G10", ids="R02", needs=_DELAYS)
async def jitter_spreads_what_failed_together(kit: Kit) -> None:
    """With full jitter waits lie between 0 and the policy's value, and differ."""
    jobs, broker, began, waits, over = (
        Queue(kit.name(), str),
        await kit.broker(),
        {},
        list[float](),
        asyncio.Event(),
    )
    count, granularity = 20, float(kit.limit(Capability.DELAY, "granularity") or 1.0)
    figure = max(1.0, 4 * granularity)  # wider than a backend's rounding

    async def handler(_: str, ctx: Context) -> None:
        if ctx.attempt == 1:
            began[ctx.id] = kit.now
            raise ValueError
        waits.append(kit.now - began[ctx.id])
        if len(waits) == count:
            over.set()

    await kit.within(broker.publish_many(jobs, ["x"] * count))
    await kit.worker(broker, jobs, handler, retry=RetryPolicy(2, fixed(figure, jitter=True)))
    await kit.within(over.wait(), what="every message handled again")
    late = granularity + SLACK
    kit.true(
        max(waits) <= figure + late,
        f"no wait above {figure:g} s and {late:g} s",
        max(waits),
        "a Move's delay",
    )
    kit.true(
        max(waits) - min(waits) > late / 10,
        "waits that differ",
        (min(waits), max(waits)),
        "a Move's delay",
    )


@case("G10", ids="R03", needs=_DELAYS)
async def what_is_too_old_is_not_tried_again(kit: Kit) -> None:
    """`max_age` counts from the first publish and ends the attempts."""
    handler = Failing(kit, always=ValueError("no"), enough=2)
    oldest = 4.0  # on a busy machine the first attempt may begin seconds after the publish
    policy = RetryPolicy(50, fixed(0.8), max_age=oldest)
    death = (await _dead(kit, await _failing(kit, handler, policy))).death
    kit.same(
        death and death.reason,
        Reason.RETRIES_EXHAUSTED,
        "the reason of the dead letter",
        "Message.published_at",
    )

    lasted = handler.times[-1] - handler.times[0]
    # The age is judged when the retry is decided on; its wait may end late by as much as the
    # backend declares (G7).
    limit = oldest + float(kit.limit(Capability.DELAY, "granularity") or 0.0)
    last_attempt = f"one after {lasted:.2f} s"
    kit.true(
        lasted <= limit,
        f"no attempt after {limit:g} s",
        last_attempt,
        "Message.published_at kept by a Move",
    )


_CLASSES: dict[str, tuple[RetryPolicy, tuple[Exception, ...]]] = {
    "retry_on": (
        RetryPolicy(5, AT_ONCE, retry_on=(OSError,)),
        (ConnectionResetError(), KeyError("k")),
    ),
    "give_up_on": (
        RetryPolicy(5, AT_ONCE, give_up_on=(OSError,)),
        (KeyError("k"), FileNotFoundError()),
    ),
    "reject": (RetryPolicy(5, AT_ONCE), (ValueError(), Reject("never again"))),
}


@case("G10", ids="R04 C43 C90", each=_CLASSES)
async def only_what_the_policy_names_is_tried_again(
    kit: Kit, expected: tuple[RetryPolicy, tuple[Exception, ...]]
) -> None:
    """An exception outside of the policy, or a Reject, is dead-lettered at once as `rejected`."""
    handler = Failing(kit, *expected[1])
    death = (await _dead(kit, await _failing(kit, handler, expected[0]))).death
    kit.same(handler.attempts, [1, 2], "attempts", MOVE)
    kit.same(death and (death.reason, death.attempts), (Reason.REJECTED, 2), "the record", MOVE)


@case("G10", ids="R05", needs=_DELAYS)
async def a_retry_may_ask_for_its_own_wait_but_not_for_more_attempts(kit: Kit) -> None:
    """`Retry(delay=…)` replaces the policy's wait; `max_attempts` still applies."""
    handler = Failing(kit, always=Retry(delay=0.3), enough=3)
    jobs = await _failing(kit, handler, RetryPolicy(3, fixed(3600.0)))
    handler.waited(0.3, 0.3)
    death = (await _dead(kit, jobs)).death
    kit.same(
        death and (death.reason, death.attempts),
        (Reason.RETRIES_EXHAUSTED, 3),
        "reason and attempts of the dead letter",
        MOVE,
    )


@case("G10", "G4", "G8", ids="R06 R07 C44 C51 P05")
async def a_retry_keeps_what_the_message_was(kit: Kit) -> None:
    """A retry keeps id, headers, priority, times and content type.

    Changes by a failed handler are dropped; attempt and `redelivered` go up.
    """
    handler = Failing(kit, ValueError(), Retry(delay=0), None)
    priority = {"priority": 9} if kit.capabilities.has(Capability.PRIORITY) else {}
    await _failing(kit, handler, RetryPolicy(3, AT_ONCE), id="me", headers=HEADERS, **priority)
    kit.same(handler.attempts, [1, 2, 3], "attempts counted", MOVE)
    kit.same(
        [ctx.redelivered for ctx in handler.seen],
        [False, True, True],
        "`redelivered` of each attempt",
        MOVE,
    )
    kit.same(
        [dict(ctx.headers) for ctx in handler.seen], [HEADERS] * 3, "headers as published", _HEADERS
    )

    for name in ("id", "priority", "published_at", "content_type", "correlation_id"):
        kit.same(
            len({getattr(ctx, name) for ctx in handler.seen}),
            1,
            f"number of different values of {name} in all attempts",
            MOVE,
        )


@case("G10", "G4", ids="R01", needs=_DELAYS)
async def attempts_are_counted_across_workers(kit: Kit) -> None:
    """Attempts are counted across workers and connections."""
    jobs, attempts, last = Queue(kit.name(), str), list[int](), await kit.broker()
    await kit.within(last.publish(jobs, "x"))
    for _ in range(3):
        broker, handler = await kit.broker(), Failing(kit, always=ValueError("no"), enough=1)
        worker = await kit.worker(broker, jobs, handler, retry=RetryPolicy(3, fixed(0.5)))
        await kit.within(handler.reached.wait(), what="as many attempts as the case waits for")
        await kit.within(worker.drain(0))
        await kit.within(broker.close())
        attempts += handler.attempts

    kit.same(attempts, [1, 2, 3], "attempts", "Message.attempt kept by a Move")
    death = (await _dead(kit, jobs)).death
    kit.same(
        death and death.attempts, 3, "attempts in the record", "Message.attempt kept by a Move"
    )


@case("G10", "G7", ids="R07 D03", needs=_DELAYS, protocols=(SupportsCount,))
async def nobody_waits_in_a_worker(kit: Kit) -> None:
    """A message that waits for its retry is delayed in the broker and holds no lease."""
    jobs, broker, handler = (
        Queue(kit.name(), str),
        await kit.broker(),
        Failing(kit, ValueError(), None, enough=2),
    )
    await kit.within(broker.publish(jobs, "x"))
    policy = RetryPolicy(3, fixed(1.5))
    worker = await kit.worker(broker, jobs, handler, retry=policy, concurrency=1, prefetch=1)
    await kit.advance(0.3)
    (counts,) = await kit.within(broker.counts(jobs))
    kit.counted(counts, ready=0, leased=0, delayed=1)

    await kit.within(broker.publish(jobs, "y"))
    await kit.within(handler.reached.wait(), what="as many attempts as the case waits for")
    kit.same(handler.attempts, [1, 1], "attempts of both messages", "a Move's delay")

    await kit.within(worker.drain(0))
    (later,) = await kit.take(await kit.subscribe(jobs.name), 1)
    kit.same(
        (later.message.body, later.attempt),
        (b"x", 2),
        "body and attempt of the delayed message",
        "a Move's delay",
    )


@case("G10", "G11", ids="R10", needs=_DELAYS)
async def an_outage_within_the_policys_patience_kills_nothing(kit: Kit) -> None:
    """During an outage shorter than the policy allows no message is dead-lettered."""
    jobs, broker, done, over = (
        Queue(kit.name(), str),
        await kit.broker(),
        Counter[str](),
        asyncio.Event(),
    )
    names, starts, back = [f"job {n}" for n in range(10)], list[str](), kit.now + 1.2

    async def handler(job: str) -> None:
        starts.append(job)
        if kit.now < back:
            raise ConnectionError("the shop's database is down")
        done[job] += 1
        if len(done) == len(names):
            over.set()

    await kit.within(broker.publish_many(jobs, names))
    await kit.worker(broker, jobs, handler, retry=RetryPolicy(20, fixed(0.5)))
    await kit.within(over.wait(), what="every message handled again")
    kit.same(done, Counter(names), "messages done", MOVE)
    kit.true(
        len(starts) <= 5 * len(names),
        "no more than a start every 0.5 s each",
        len(starts),
        "a Move's delay",
    )
    kit.same(await kit.contents(f"{jobs.name}.dlq"), Counter(), "dead letters", MOVE)


@case("G3", "G11", ids="X06", protocols=(SupportsDelete,))
async def a_dead_letter_queue_that_is_gone_costs_no_message(kit: Kit) -> None:
    """If the dead-letter queue was deleted, it is declared again and the message is kept."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await kit.within(broker.publish(jobs, "x"))
    consumer = broker.consume(jobs, retry=RetryPolicy(1))
    held = await kit.within(anext(consumer))
    await kit.within(cast("SupportsDelete", kit.backend).delete(f"{jobs.name}.dlq"))
    await kit.within(held.reject("no"))
    kit.same((await _dead(kit, jobs)).body, b"x", "the dead letter", f"{MOVE}, NOT_FOUND")
    await kit.within(consumer.close())
