"""A consumer that is resized while it holds messages: one subscription takes over from another."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.queue import Queue

if TYPE_CHECKING:
    from mqcore.consuming.context import Context
    from mqcore.contract.kit import Kit

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
