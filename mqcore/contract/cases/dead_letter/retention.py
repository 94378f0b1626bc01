"""Reading, purging and expiring dead letters."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.cases.browse import leaves_marks
from mqcore.contract.cases.dead_letter.common import (
    CHOSEN,
    MOVE,
    reject_all,
    take_dead_letters,
)
from mqcore.contract.kit import ContractError
from mqcore.errors import ConfigurationError, Reject
from mqcore.queue import Queue
from mqcore.spi import (
    Capability,
    QueueSpec,
    SupportsBrowse,
    SupportsCount,
    SupportsPurge,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G11", ids="X05")
async def retention_lets_dead_letters_go(kit: Kit) -> None:
    """Dead letters older than `retention` are removed, and younger ones are kept."""
    name = kit.name()
    specs = [
        QueueSpec(name=name, dead_letter=f"{name}.dlq"),
        QueueSpec(name=f"{name}.quarantine", role="quarantine"),
    ]
    specs.append(QueueSpec(name=f"{name}.dlq", role="dead_letter", retention=2.0))
    await kit.within(kit.backend.declare(specs))
    await kit.put(f"{name}.dlq", "old")
    await kit.advance(1.5)
    await kit.put(f"{name}.dlq", "young")
    await kit.advance(1.0)
    kit.same(
        await kit.contents(f"{name}.dlq"),
        Counter(["young"]),
        "dead letters left",
        "QueueSpec.retention",
    )


@case("G11", ids="X05 C92", protocols=(*CHOSEN, SupportsPurge))
async def dead_letters_are_purged_all_or_by_filter(kit: Kit) -> None:
    """A purge removes the chosen dead letters only, and returns their number."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await reject_all(kit, broker, jobs, "a", "b", reason="first")
    await reject_all(kit, broker, jobs, "c", reason="second")
    letters = broker.dead_letters(jobs)
    kit.same(
        await kit.within(letters.purge(error="first")),
        2,
        "number purged by error",
        "SupportsTake.take",
    )
    kit.same(
        [letter.body for letter in await kit.within(letters.list())],
        [b"c"],
        "bodies of the dead letters left",
        "SupportsTake.take",
    )
    kit.same(await kit.within(letters.purge()), 1, "number purged", "SupportsPurge.purge")
    kit.same(
        await kit.contents(f"{jobs.name}.dlq"),
        Counter(),
        "dead letters left",
        "SupportsPurge.purge",
    )


@case("G11", ids="X08", protocols=(SupportsBrowse, SupportsCount))
async def looking_at_dead_letters_changes_nothing(kit: Kit) -> None:
    """Browsing dead letters changes no order, count or delivery mark."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await reject_all(kit, broker, jobs, "a", "b", "c")
    dead, counter = f"{jobs.name}.dlq", cast("SupportsCount", kit.backend)
    before = await kit.within(counter.count([dead]))
    page = await kit.within(broker.peek(dead, 2))
    rest = await kit.within(broker.peek(dead, 2, after=page[-1].key))
    listed = [letter.body for letter in await kit.within(broker.dead_letters(jobs).list())]
    paged = [entry.message.body for entry in [*page, *rest]]
    kit.same(
        await kit.within(counter.count([dead])), before, "the same counts", "SupportsBrowse.browse"
    )

    got = await kit.take(await kit.subscribe(dead), 3)
    kit.same(
        (paged, listed),
        ([delivery.message.body for delivery in got],) * 2,
        "pages and list in delivery order",
        "SupportsBrowse.browse",
    )
    kit.true(
        leaves_marks(kit) or not any(delivery.redelivered for delivery in got),
        "messages that are not redelivered",
        look="SupportsBrowse.browse",
    )


@case("G11", ids="X09", needs=(Capability.DELAY,))
async def a_dead_letter_queue_has_no_dead_letter_queue(kit: Kit) -> None:
    """A dead letter that its consumer rejects stays in its queue with its first record.

    Declaring a queue whose name ends in `.dlq` is refused.
    """
    jobs, broker, seen, over = (
        Queue(kit.name(), str),
        await kit.broker(),
        list[str](),
        asyncio.Event(),
    )

    try:
        Queue(f"{jobs.name}.dlq", str)
    except ConfigurationError:
        await reject_all(kit, broker, jobs, "a", "b", reason="the first death")
    else:
        raise ContractError("ConfigurationError for a queue that is called .dlq", "it was made")

    async def handler(word: str) -> None:
        seen.append(word)
        if len(set(seen)) > 1:
            over.set()
        raise Reject("the second death")

    dead = Queue(f"{jobs.name}.dlq", str, declare=False)
    worker = await kit.worker(broker, dead, handler, concurrency=1, prefetch=1)
    await kit.within(over.wait(), what="the dead letter handed out again")
    await kit.within(worker.drain(0))
    letters = await take_dead_letters(kit, jobs.name, 2)
    kit.same(
        sorted(letter.body for letter in letters), [b"a", b"b"], "bodies of the dead letters", MOVE
    )

    errors = {letter.death.error for letter in letters if letter.death is not None}
    kit.same(errors, {"the first death"}, "the record of the first death", MOVE)
