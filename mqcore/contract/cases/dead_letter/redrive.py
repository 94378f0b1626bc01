"""Sending dead letters back to their queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from mqcore.contract.case import case
from mqcore.contract.cases.dead_letter.common import (
    CHOSEN,
    HEADERS,
    MOVE,
    ONCE,
    reject_all,
)
from mqcore.queue import Queue
from mqcore.spi import (
    Capability,
    Death,
    Outgoing,
    Reason,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


_MANY = 450


@case("G11", ids="X03 C92", protocols=CHOSEN)
async def redriven_messages_begin_anew(kit: Kit) -> None:
    """A redriven message starts at attempt 1 without expiry or record; `redriven` is one higher.

    Id, headers, priority and body are unchanged.
    """
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    can = kit.capabilities.has
    options: dict[str, Any] = {"ttl": 2.0} if can(Capability.EXPIRY) else {}
    options |= {"priority": 8} if can(Capability.PRIORITY) else {}
    await kit.within(broker.publish(jobs, "x", id="me", headers=HEADERS, **options))
    async with broker.consume(jobs, retry=ONCE) as consumer:
        await kit.within((await kit.within(anext(consumer))).reject())
    await kit.advance(2.5)
    done = await kit.within(broker.dead_letters(jobs).redrive())
    kit.same(
        (done.moved, dict(done.left)),
        (("me",), {}),
        "ids moved, and ids left",
        f"SupportsTake.take, {MOVE}",
    )

    (again,) = await kit.take(await kit.subscribe(jobs.name), 1)
    message = again.message
    actual = (message.id, message.body, message.priority, dict(message.headers))
    kit.same(
        actual, ("me", b"x", options.get("priority", 5), HEADERS), "the original message", MOVE
    )

    reset_fields = (message.attempt, message.redriven, message.death, again.expires_in)
    kit.same(reset_fields, (1, 1, None, None), "attempt, redriven, record, expiry", MOVE)


@case("G11", ids="X03 X06 C91 C92", protocols=CHOSEN)
async def dead_letters_are_chosen_by_filter_and_sent_elsewhere(kit: Kit) -> None:
    """Dead letters can be listed and redriven by id, error and limit, also to another queue.

    One whose target is missing stays where it is.
    """
    jobs, other, broker = Queue(kit.name(), str), Queue(kit.name(), str), await kit.broker()
    await reject_all(kit, broker, jobs, "a", "b", "c", reason="first")
    await reject_all(kit, broker, jobs, "d", reason="second")
    await kit.within(broker.declare(other))
    letters, look = broker.dead_letters(jobs), f"SupportsTake.take, {MOVE}"
    ids = {letter.body: letter.id for letter in await kit.within(letters.list())}
    kit.same(
        sorted(ids), [b"a", b"b", b"c", b"d"], "bodies of all dead letters", "SupportsBrowse.browse"
    )
    kit.same(
        [letter.body for letter in await kit.within(letters.list(error="second"))],
        [b"d"],
        "bodies of the dead letters chosen by error",
        "browse",
    )

    lost = await kit.within(letters.redrive(to=kit.name(), ids=[ids[b"a"]]))
    kit.same(
        (lost.moved, set(lost.left)),
        ((), {ids[b"a"]}),
        "ids moved to a missing queue, and ids left",
        look,
    )
    kit.same(
        (await kit.within(letters.redrive(ids=[ids[b"b"]]))).moved,
        (ids[b"b"],),
        "ids redriven",
        look,
    )

    moved = await kit.within(letters.redrive(to=other.name, error="first", limit=1))
    kit.same(len(moved.moved), 1, "number redriven by error and limit", look)
    kit.same(
        await kit.contents(jobs.name), Counter([ids[b"b"]]), "messages in the original queue", look
    )
    kit.same(
        await kit.contents(other.name), Counter(moved.moved), "messages in the other queue", look
    )
    kit.same(len(await kit.within(letters.list())), 2, "number of dead letters left", look)


@case("G11", ids="X03", protocols=CHOSEN)
async def two_redrives_at_once_move_each_once(kit: Kit) -> None:
    """Two redrives at the same time move each dead letter exactly once."""
    jobs, one, two = Queue(kit.name(), str), await kit.broker(), await kit.broker()
    await kit.within(one.declare(jobs))
    names = [f"{n:03}" for n in range(_MANY)]
    death = Death(reason=Reason.REJECTED, queue=jobs.name, attempts=1, first_at=1.0, last_at=1.0)
    await kit.publish(
        *[Outgoing(f"{jobs.name}.dlq", kit.message(name, death=death)) for name in names]
    )
    both = asyncio.gather(one.dead_letters(jobs).redrive(), two.dead_letters(jobs.name).redrive())
    first, second = await kit.within(both)
    kit.same(
        sorted(first.moved + second.moved),
        names,
        "ids moved by one of both redrives",
        "SupportsTake.take",
    )
    kit.same(
        await kit.contents(jobs.name),
        Counter(names),
        "messages back in the queue",
        f"SupportsTake.take, {MOVE}",
    )


@case("G11", ids="X04", protocols=CHOSEN)
async def a_redrive_loop_is_stopped(kit: Kit) -> None:
    """A dead letter that was redriven five times is left where it is, unless `force=True`."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await reject_all(kit, broker, jobs, "x")
    letters = broker.dead_letters(jobs)

    async with broker.consume(jobs, retry=ONCE) as consumer:
        for _ in range(5):
            kit.same(
                len((await kit.within(letters.redrive())).moved),
                1,
                "number moved by a redrive",
                "Message.redriven kept",
            )
            await kit.within((await kit.within(anext(consumer))).reject())
        stopped = await kit.within(letters.redrive())
        kit.same(
            (stopped.moved, len(stopped.left)),
            ((), 1),
            "ids moved, and number left, by the sixth redrive",
            "Message.redriven kept",
        )

    kit.same(
        len((await kit.within(letters.redrive(force=True))).moved),
        1,
        "number moved with force=True",
        MOVE,
    )
