"""Profile *dead-letter*: what ends there, with which record, how it comes back; and what never may: the innocent."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.faults import Fleet, taken_over
from mqcore.contract.kit import ContractError
from mqcore.contract.looks import leaves_marks
from mqcore.errors import ConfigurationError, QueueNotFound, Reject
from mqcore.queue import Queue
from mqcore.router import Router
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import (
    DONE,
    Capability,
    Death,
    Move,
    Outgoing,
    QueueSpec,
    Reason,
    SupportsBrowse,
    SupportsCount,
    SupportsPurge,
    SupportsTake,
)

if TYPE_CHECKING:
    from mqcore.broker import Broker
    from mqcore.consuming.context import Context
    from mqcore.contract.kit import Kit
    from mqcore.spi import Message

MOVE = "Subscription.settle: Move"
LEASE = 1.0
ONCE = RetryPolicy(1)
TWICE = RetryPolicy(2, fixed(0.0))
HEADERS = {"tenant": "t-1", "note": "Grüße 世界 🐇"}
_CHOSEN = (SupportsBrowse, SupportsTake)
_MANY = 450


async def _bury(
    kit: Kit, broker: Broker, jobs: Queue[str], *bodies: str, reason: str = "no"
) -> None:
    """Publish these and reject each."""
    await kit.within(broker.publish_many(jobs, bodies))
    async with broker.consume(jobs, retry=ONCE, prefetch=100) as consumer:
        for _ in bodies:
            await kit.within((await kit.within(anext(consumer))).reject(reason))


async def _letters(kit: Kit, queue: str, count: int) -> list[Message]:
    """Take dead letters as a consumer would, so that a backend without BROWSE is tried too."""
    return [
        delivery.message for delivery in await kit.take(await kit.subscribe(f"{queue}.dlq"), count)
    ]


# The record


@case("G11", "G3", ids="X02 C25 C26")
async def a_dead_letter_keeps_the_original_and_its_record(kit: Kit) -> None:
    """Body byte for byte, id, headers and priority, and beside them the record of the death, whatever text is in it."""
    queue, body = await kit.queue(), bytes(range(256)) * 3
    await kit.publish(Outgoing(queue, kit.message("a", body=body, headers=HEADERS, priority=9)))
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    death = Death(
        reason=Reason.REJECTED,
        queue=queue,
        attempts=3,
        first_at=1_700_000_000.25,
        last_at=1_700_000_001.5,
        error_type="shop.Error",
        error="line one\nline two: Grüße 世界\t\x00 end",
        traceback="Traceback …\n" * 300,
    )
    await kit.settle(consumer, kit.successor(delivery, f"{queue}.dlq", death=death, attempt=1))
    (letter,) = await _letters(kit, queue, 1)
    kit.same(letter.death, death, "the record", "pack and unpack of Message")
    kit.same((letter.body, dict(letter.headers)), (body, HEADERS), "the original", MOVE)
    kit.same((letter.id, letter.priority, letter.hop), ("a", 9, 1), "id, priority, hop", MOVE)


@case("G11", "G10", ids="X02 X01 R06")
async def the_record_tells_the_whole_story(kit: Kit) -> None:
    """After two failures: reason, queue, attempts, first and last time, error type, text and traceback."""
    jobs, broker, times = Queue(kit.name()), await kit.broker(), list[float]()

    async def refuse(_: bytes) -> None:
        times.append(kit.clock.now())
        raise ValueError("broken: ü")

    await kit.within(broker.publish(jobs, bytes(range(256)), id="me", headers=HEADERS))
    await kit.worker(broker, jobs, refuse, retry=TWICE)
    (letter,) = await _letters(kit, jobs.name, 1)
    death, look = letter.death, "pack and unpack of Message"
    kit.same(
        (letter.id, letter.body, dict(letter.headers)),
        ("me", bytes(range(256)), HEADERS),
        "the original",
        MOVE,
    )
    if death is None:
        raise ContractError("a record of the death", "none", look)
    came = (death.reason, death.queue, death.attempts, death.error_type, death.error)
    kit.same(
        came,
        (Reason.RETRIES_EXHAUSTED, jobs.name, 2, "ValueError", "broken: ü"),
        "the record",
        look,
    )
    kit.true("in refuse" in death.traceback, "a traceback", death.traceback, look)
    near = abs(death.first_at - times[0]) < 1 and abs(death.last_at - times[-1]) < 1
    kit.true(near, f"the times of both failures, {times}", (death.first_at, death.last_at), look)


_DEATHS: dict[str, tuple[bytes, int]] = {
    "rejected": (b"1", 1),
    "retries_exhausted": (b"2", 1),
    "timeout": (b"3", 1),
    "undecodable": (b"{", 0),
    "invalid": (b'"x"', 0),
}


@case(
    "G11", "G4", ids="X01 C34 C90", each={name: (name, *wanted) for name, wanted in _DEATHS.items()}
)
async def each_end_has_its_reason(kit: Kit, wanted: tuple[str, bytes, int]) -> None:
    """The body is kept byte for byte; attempts count the runs of a handler, none for what cannot be read."""
    reason, body, attempts = wanted
    jobs, broker = Queue(kit.name(), int), await kit.broker()
    await kit.within(broker.declare(jobs))
    await kit.publish(
        Outgoing(jobs.name, kit.message("me", body=body, content_type="application/json"))
    )

    async def handler(number: int) -> None:
        if number == 1:
            raise Reject("no")
        if number == int(b"3"):
            await asyncio.Event().wait()
        raise ValueError

    await kit.worker(broker, jobs, handler, retry=ONCE, timeout=0.3)
    (letter,) = await _letters(kit, jobs.name, 1)
    came = letter.death and (letter.death.reason.value, letter.death.attempts)
    kit.same(
        (came, letter.id, letter.body),
        ((reason, attempts), "me", body),
        "reason, attempts and original",
        MOVE,
    )


@case("G2", "G11", ids="X01")
async def without_a_dead_letter_queue_it_is_dropped_and_counted(kit: Kit) -> None:
    """It is gone, the event says so, and asking for its dead letters is `QueueNotFound`."""
    loose, broker = Queue(kit.name(), str, dead_letter=None), await kit.broker()
    await _bury(kit, broker, loose, "x")
    kit.same(broker.events.counts["message.dropped"], 1, "one event")
    kit.same(
        await kit.contents(loose.name), Counter(), "an empty queue", "Subscription.settle: Ack"
    )
    await kit.raises(QueueNotFound, broker.dead_letters(loose).list(), "QueueNotFound")


# And back


@case("G11", ids="X03 C92", protocols=_CHOSEN)
async def redriven_messages_begin_anew(kit: Kit) -> None:
    """To where they died: attempt 1, no expiry, no record, one redrive more; id, headers, priority and body as ever."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    can = kit.capabilities.has
    options: dict[str, Any] = {"ttl": 2.0} if can(Capability.EXPIRY) else {}
    options |= {"priority": 8} if can(Capability.PRIORITY) else {}
    await kit.within(broker.publish(jobs, "x", id="me", headers=HEADERS, **options))
    async with broker.consume(jobs, retry=ONCE) as consumer:
        await kit.within((await kit.within(anext(consumer))).reject())
    await kit.advance(2.5)
    done = await kit.within(broker.dead_letters(jobs).redrive())
    kit.same((done.moved, dict(done.left)), (("me",), {}), "redriven", f"SupportsTake.take, {MOVE}")
    (again,) = await kit.take(await kit.subscribe(jobs.name), 1)
    message = again.message
    came = (message.id, message.body, message.priority, dict(message.headers))
    kit.same(came, ("me", b"x", options.get("priority", 5), HEADERS), "the original", MOVE)
    came_anew = (message.attempt, message.redriven, message.death, again.expires_in)
    kit.same(came_anew, (1, 1, None, None), "attempt, redriven, record, expiry", MOVE)


@case("G11", ids="X03 X06 C91 C92", protocols=_CHOSEN)
async def dead_letters_are_chosen_by_filter_and_sent_elsewhere(kit: Kit) -> None:
    """Listed and redriven by id, error and limit; to another queue; one whose target is missing stays where it is."""
    jobs, other, broker = Queue(kit.name(), str), Queue(kit.name(), str), await kit.broker()
    await _bury(kit, broker, jobs, "a", "b", "c", reason="first")
    await _bury(kit, broker, jobs, "d", reason="second")
    await kit.within(broker.declare(other))
    letters, look = broker.dead_letters(jobs), f"SupportsTake.take, {MOVE}"
    ids = {letter.body: letter.id for letter in await kit.within(letters.list())}
    kit.same(sorted(ids), [b"a", b"b", b"c", b"d"], "all listed", "SupportsBrowse.browse")
    kit.same(
        [it.body for it in await kit.within(letters.list(error="second"))],
        [b"d"],
        "by error",
        "browse",
    )
    lost = await kit.within(letters.redrive(to=kit.name(), ids=[ids[b"a"]]))
    kit.same(
        (lost.moved, set(lost.left)), ((), {ids[b"a"]}), "nothing moved to a missing queue", look
    )
    kit.same(
        (await kit.within(letters.redrive(ids=[ids[b"b"]]))).moved, (ids[b"b"],), "one by id", look
    )
    moved = await kit.within(letters.redrive(to=other.name, error="first", limit=1))
    kit.same(len(moved.moved), 1, "one by error and limit", look)
    kit.same(await kit.contents(jobs.name), Counter([ids[b"b"]]), "back at the origin", look)
    kit.same(await kit.contents(other.name), Counter(moved.moved), "elsewhere", look)
    kit.same(len(await kit.within(letters.list())), 2, "the rest where it was", look)


@case("G11", ids="X03", protocols=_CHOSEN)
async def two_redrives_at_once_move_each_once(kit: Kit) -> None:
    """Two operators, two connections: every dead letter goes back exactly once."""
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
        sorted(first.moved + second.moved), names, "each moved by one of them", "SupportsTake.take"
    )
    kit.same(
        await kit.contents(jobs.name),
        Counter(names),
        "each back once",
        f"SupportsTake.take, {MOVE}",
    )


@case("G11", ids="X04", protocols=_CHOSEN)
async def a_redrive_loop_is_stopped(kit: Kit) -> None:
    """What came back five times already stays, and says why, unless it is forced."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await _bury(kit, broker, jobs, "x")
    letters = broker.dead_letters(jobs)
    async with broker.consume(jobs, retry=ONCE) as consumer:
        for _ in range(5):
            kit.same(
                len((await kit.within(letters.redrive())).moved),
                1,
                "a redrive",
                "Message.redriven kept",
            )
            await kit.within((await kit.within(anext(consumer))).reject())
        stopped = await kit.within(letters.redrive())
        kit.same(
            (stopped.moved, len(stopped.left)),
            ((), 1),
            "the sixth left where it is",
            "Message.redriven kept",
        )
    kit.same(len((await kit.within(letters.redrive(force=True))).moved), 1, "moved by force", MOVE)


@case("G1", "G3", "G11", "G15", ids="X03 X02 C22")
async def copies_of_one_routed_message_stay_two_wherever_they_meet(kit: Kit) -> None:
    """Same id, same hop, out of two queues: two dead letters in one queue, and two messages when both come back."""
    one, two, end = await kit.queue(), await kit.queue(), await kit.queue()
    shared, message = f"{one}.dlq", kit.message("a")
    await kit.publish(Outgoing(one, message), Outgoing(two, message))
    for source in (one, two):
        consumer = await kit.subscribe(source)
        (delivery,) = await kit.take(consumer, 1)
        letter = Outgoing(shared, delivery.message.moved(source))
        kit.same(
            await kit.settle(consumer, Move(delivery.receipt, letter)),
            [DONE],
            f"dead in {source}",
            MOVE,
        )
    consumer = await kit.subscribe(shared)
    letters = await kit.take(consumer, 2)
    await kit.settle(
        consumer, *[Move(it.receipt, Outgoing(end, it.message.moved(shared))) for it in letters]
    )
    kit.same(
        await kit.contents(end),
        Counter(["a", "a"]),
        "both came back",
        "dedup by Message.copy_name, lineage",
    )


@case("G11", "G15", ids="X03 C22", needs=(Capability.ROUTING,), protocols=_CHOSEN)
async def a_routed_message_dies_in_each_of_its_queues(kit: Kit) -> None:
    """Queues may share a dead-letter queue: neither death hides the other, each queue sees its own, both go home."""
    graves = kit.name()
    one, two = (Queue(kit.name(), str, dead_letter=graves) for _ in "12")
    broker, router = await kit.broker(), Router(kit.name(), str, kind="fanout").bind(one).bind(two)
    await kit.within(broker.publish(router, "x", id="me"))
    for jobs in (one, two):
        async with broker.consume(jobs, retry=ONCE) as consumer:
            await kit.within((await kit.within(anext(consumer))).reject())
    letters = await kit.within(broker.dead_letters(graves).list())
    kit.same(
        sorted(it.queue for it in letters),
        sorted([one.name, two.name]),
        "a death in each",
        "Message.copy_name",
    )
    kit.same(
        len(await kit.within(broker.dead_letters(one).list())),
        1,
        "its own alone",
        "SupportsBrowse.browse",
    )
    kit.same(
        (await kit.within(broker.dead_letters(graves).redrive())).moved,
        ("me", "me"),
        "both redriven",
        MOVE,
    )
    for jobs in (one, two):
        kit.same(await kit.contents(jobs.name), Counter(["me"]), "one copy in each again", MOVE)


# Keeping and looking


@case("G11", ids="X05")
async def retention_lets_dead_letters_go(kit: Kit) -> None:
    """A dead letter older than the retention is gone, a younger one is not, though nothing in the queue expires."""
    name = kit.name()
    specs = [
        QueueSpec(name=name, dead_letter=f"{name}.dlq"),
        QueueSpec(name=f"{name}.again", role="quarantine"),
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
        "only the young one",
        "QueueSpec.retention",
    )


@case("G11", ids="X05 C92", protocols=(*_CHOSEN, SupportsPurge))
async def dead_letters_are_purged_all_or_by_filter(kit: Kit) -> None:
    """A purge says how many went, and takes no others."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await _bury(kit, broker, jobs, "a", "b", reason="first")
    await _bury(kit, broker, jobs, "c", reason="second")
    letters = broker.dead_letters(jobs)
    kit.same(
        await kit.within(letters.purge(error="first")), 2, "purged by error", "SupportsTake.take"
    )
    kit.same(
        [it.body for it in await kit.within(letters.list())],
        [b"c"],
        "the other left",
        "SupportsTake.take",
    )
    kit.same(await kit.within(letters.purge()), 1, "purged all", "SupportsPurge.purge")
    kit.same(await kit.contents(f"{jobs.name}.dlq"), Counter(), "none left", "SupportsPurge.purge")


@case("G11", ids="X08", protocols=(SupportsBrowse, SupportsCount))
async def looking_at_dead_letters_changes_nothing(kit: Kit) -> None:
    """Neither order nor counts nor marks, by page or by list."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await _bury(kit, broker, jobs, "a", "b", "c")
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
        ([it.message.body for it in got],) * 2,
        "delivery order",
        "SupportsBrowse.browse",
    )
    kit.true(
        leaves_marks(kit) or not any(it.redelivered for it in got),
        "no marks",
        look="SupportsBrowse.browse",
    )


@case("G11", ids="X09", needs=(Capability.DELAY,))
async def a_dead_letter_queue_has_no_dead_letter_queue(kit: Kit) -> None:
    """One of one's own name is refused; what a consumer of dead letters fails goes to its end, with its first record."""
    jobs, broker, seen, over = (
        Queue(kit.name(), str),
        await kit.broker(),
        list[str](),
        asyncio.Event(),
    )
    try:
        Queue(f"{jobs.name}.dlq", str)
    except ConfigurationError:
        await _bury(kit, broker, jobs, "a", "b", reason="the first death")
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
    letters = await _letters(kit, jobs.name, 2)
    kit.same(sorted(letter.body for letter in letters), [b"a", b"b"], "both still there", MOVE)
    errors = {letter.death.error for letter in letters if letter.death is not None}
    kit.same(errors, {"the first death"}, "the record of the first death", MOVE)


# Never the innocent


@case("G4", "G11", "G5", ids="X07 X01 C73", each={"first": 0, "in the middle": 25})
async def innocents_survive_a_poison_neighbour(kit: Kit, place: int) -> None:
    """50 handed out, one kills its process each time: it ends as `crashed`, alone from the third time on, and nobody else."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    innocents = [f"job {n}" for n in range(49)]
    await kit.within(broker.publish_many(jobs, [*innocents[:place], "killer", *innocents[place:]]))
    fleet = Fleet(kit, jobs, retry=TWICE, concurrency=10, prefetch=50, lease=LEASE)
    for _ in range(TWICE.max_attempts + 2):
        await fleet.lose_a_worker()
    await fleet.worker()
    (letter,) = await _letters(kit, jobs.name, 1)
    came = letter.body, letter.death and (letter.death.reason, letter.death.attempts)
    kit.same(came, (b"killer", (Reason.CRASHED, 2)), "the dead letter", "Delivery.takeovers")
    kit.same(
        fleet.starts["killer"], TWICE.max_attempts + 2, "starts of the killer", "Delivery.takeovers"
    )
    kit.true(
        not any(fleet.beside[2:]),
        "the killer alone from the third time on",
        fleet.beside,
        "Delivery.takeovers",
    )
    await kit.advance(3.0)
    kit.same(
        sorted(fleet.done),
        sorted(innocents),
        "all innocents handled",
        "Backend.close, Delivery.takeovers",
    )
    kit.same(
        await kit.contents(f"{jobs.name}.dlq"),
        Counter(),
        "no other dead letter",
        "Delivery.takeovers",
    )
    kit.same(await kit.contents(jobs.name), Counter(), "an empty queue", MOVE)


@case("G4", ids="X07 R01 R09")
async def a_takeover_is_no_attempt_and_changes_nothing(kit: Kit) -> None:
    """Consumers that die before they start a message cost it nothing: attempt 1, and all that it was."""
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    await kit.within(broker.publish(jobs, "x", id="me", headers=HEADERS))
    await taken_over(kit, jobs.name, times=2)
    async with broker.consume(jobs, retry=ONCE) as consumer:
        held = await kit.within(anext(consumer))
        came = (held.id, held.value, held.attempt, held.redelivered, held.queue, dict(held.headers))
        kit.same(
            came,
            ("me", "x", 1, True, jobs.name, HEADERS),
            "the message",
            "Delivery.takeovers, a Move",
        )
        await kit.within(held.ack())


@case("G4", "G13", ids="R09 X07 C50")
async def a_release_inside_the_quarantine_is_no_crash(kit: Kit) -> None:
    """A suspect that runs alone may see any number of deployments: each releases it by a Move, and nothing is counted."""
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
        await kit.within(began.wait(), what="the handler begun")
        await kit.within(worker.drain(0))
    kit.same(attempts, [1] * 4, "attempts of four deployments", MOVE)
    (again,) = await kit.take(await kit.subscribe(f"{jobs.name}.again"), 1)
    kit.same((again.attempt, again.takeovers), (1, 0), "still there, nothing counted", MOVE)
