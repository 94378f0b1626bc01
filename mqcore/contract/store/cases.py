"""The cases: what each method of `TaskStore` promises, beyond the transitions.

The transitions themselves are compared with the store in memory (`equality`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from mqcore.contract.kit import ContractError
from mqcore.contract.store.follow_cases import FOLLOW_CASES
from mqcore.contract.store.kit import TOKEN, WORKER, StoreKit
from mqcore.contract.store.limit_cases import LIMIT_CASES
from mqcore.contract.store.listing_cases import LISTING_CASES
from mqcore.contract.store.schedule_cases import SCHEDULE_CASES
from mqcore.contract.store.workflows import ChainPlan, GroupPlan, TaskPlan, rows_of
from mqcore.tasks.model.changes import (
    Add,
    Back,
    Begin,
    Cancel,
    Change,
    End,
    Fire,
    Recover,
    Sent,
    Spread,
)
from mqcore.tasks.model.nodes import Node
from mqcore.tasks.model.outcomes import (
    Added,
    Busy,
    Conflict,
    Done,
    Ended,
    Exists,
    Fired,
    Lost,
    Ok,
    Outcome,
    Refused,
    Started,
    Terminal,
)
from mqcore.tasks.model.states import IllegalTransition, State
from mqcore.tasks.store.seam import Announcement, Heartbeat, SupportsAnnouncements, TaskStore
from mqcore.tasks.store.values import Failure, value_of

__all__ = ["StoreCase", "store_cases"]

StoreCase = Callable[[StoreKit], Awaitable[None]]

_found: list[StoreCase] = []
_TASK = TaskPlan()
_CHORD = ChainPlan([GroupPlan([_TASK, _TASK]), _TASK])


def case(function: StoreCase) -> StoreCase:
    """Register a case."""
    _found.append(function)
    return function


def store_cases() -> list[StoreCase]:
    """Return all cases."""
    return [*_found, *SCHEDULE_CASES, *LIMIT_CASES, *FOLLOW_CASES, *LISTING_CASES]


# T1, T2: one truth, sent atomically


@case
async def a_task_that_was_added_can_be_read(kit: StoreKit) -> None:
    """Every field of a row comes back as it was added."""
    row = Node(
        id="r",
        name="send",
        queue="mail",
        priority=7,
        payload=b"\x00\xff",
        delay=2.5,
        ttl=60.0,
        unique="key/é",
    )
    kit.same(await kit.do(Add([row])), Added(), "the outcome")
    row.state, row.due = State.SCHEDULED, kit.clock.time + 2.5
    kit.same(await kit.node("r"), row, "the row", "nodes")
    kit.same(await kit.store.nodes(["x", "r"]), [None, row], "two rows", "nodes")


@case
async def what_is_returned_is_a_copy(kit: StoreKit) -> None:
    """A change to a row that was read, or given, changes nothing in the store."""
    given = rows_of(_TASK, "r")
    await kit.do(Add(given))
    given[0].queue = "changed"
    (await kit.node("r")).queue = "changed"
    started = await kit.begin("r")
    if isinstance(started, Started):
        started.node.queue = "changed"
    kit.same((await kit.node("r")).queue, "work", "the stored queue", "nodes")


@case
async def a_row_and_its_outbox_entry_are_written_together(kit: StoreKit) -> None:
    """After `apply`, the entry of each queued task is in the outbox, with its row."""
    await kit.add(_CHORD)
    kit.same(kit.keys, ["r.0.0:0", "r.0.1:0"], "the keys that were made")
    found = await kit.store.outbox()
    kit.same(sorted(item.entry.key for item in found), kit.keys, "the outbox", "outbox")
    for item in found:
        kit.same(item.node, await kit.node(item.entry.node), "the row of the entry", "outbox")


@case
async def a_transaction_that_fails_changes_nothing(kit: StoreKit) -> None:
    """When one change cannot be made, those before it are not made either."""
    await kit.add(_TASK, "before")
    changes: list[Change] = [
        Add(rows_of(_TASK, "r")),
        Sent(["before:0"]),
        Begin("before", 0, 1, TOKEN, WORKER),
        Back("before", 0, TOKEN, State.SKIPPED),
    ]
    try:
        await kit.store.apply(changes)
    except IllegalTransition:
        pass
    else:
        raise ContractError("IllegalTransition", "no exception", "TaskStore.apply")

    kit.same(await kit.store.nodes(["r"]), [None], "the row of the first change")
    kit.same(await kit.states("before"), ["queued"], "the state")
    kit.same([it.entry.key for it in await kit.store.outbox()], ["before:0"], "the outbox")


@case
async def changes_of_one_transaction_see_each_other(kit: StoreKit) -> None:
    """Later changes find what earlier ones have written, and one outcome stands for each."""
    applied = await kit.store.apply(
        [
            Add(rows_of(_CHORD, "r")),
            Begin("r.0.0", 0, 1, TOKEN, WORKER),
            End("r.0.0", 0, TOKEN, State.SUCCEEDED, b"0"),
            Begin("r.0.1", 0, 1, TOKEN, WORKER),
            End("r.0.1", 0, TOKEN, State.SUCCEEDED, b"1"),
            Sent(["r.0.0:0", "r.0.1:0"]),
            Add(rows_of(_TASK, "r")),
        ]
    )
    expected = [Added, Started, Ended, Started, Ended, Ok, Exists]
    kit.same([type(outcome) for outcome in applied.outcomes], expected, "the outcomes")
    kit.same(list(applied.keys), ["r.1:0"], "the keys that are left")
    kit.same(await value_of(kit.store, "r.0"), [b"0", b"1"], "the results of the group")


@case
async def nothing_is_a_transaction_too(kit: StoreKit) -> None:
    """`apply` of no change returns no outcome."""
    applied = await kit.store.apply([])
    kit.same((list(applied.outcomes), list(applied.keys)), ([], []), "outcomes and keys")


# The outbox


@case
async def the_outbox_returns_the_oldest_first_and_keeps_them(kit: StoreKit) -> None:
    """Reading removes nothing; `limit` and `written_before` bound what is returned."""
    for number in range(4):
        await kit.add(_TASK, f"r{number}")
        kit.clock.time += 1
    for _ in range(2):
        found = await kit.store.outbox(limit=2)
        kit.same([it.entry.key for it in found], ["r0:0", "r1:0"], "the oldest", "outbox")
    old = await kit.store.outbox(written_before=kit.clock.time - 3)
    kit.same([it.entry.key for it in old], ["r0:0"], "those written before a time", "outbox")


@case
async def entries_are_read_by_key_until_they_are_sent(kit: StoreKit) -> None:
    """`entries` leaves out what is not there; `Sent` may be repeated."""
    await kit.add(_TASK)
    found = await kit.store.entries(["x:0", "r:0"])
    kit.same([it.entry.key for it in found], ["r:0"], "the entries", "entries")
    kit.same([it.entry.start for it in found], [None], "their start", "entries")
    for _ in range(2):
        kit.same(await kit.do(Sent(["r:0", "x:0"])), Ok(), "the outcome")
    kit.same(list(await kit.store.entries(["r:0"])), [], "the entries after that", "entries")


@case
async def a_large_group_is_an_entry_that_moves(kit: StoreKit) -> None:
    """The entry of a large group has the start of the next slice."""
    await kit.add(GroupPlan([_TASK] * 7))
    for start, stop in ((0, 3), (3, 6), (6, 7)):
        found = await kit.store.entries(["r:members"])
        kit.same([it.entry.start for it in found], [start], "the next slice", "entries")
        kit.same(await kit.do(Spread("r", start)), Ok(), "the outcome")
        kit.same(await kit.do(Spread("r", start)), Done(), "the outcome of a repetition")
        states = [row.state for row in await kit.store.children("r", start, stop)]
        kit.same(states, [State.QUEUED] * (stop - start), "the members of the slice")
    kit.same(list(await kit.store.entries(["r:members"])), [], "the entry at the end", "entries")


# Reading


@case
async def children_come_by_index(kit: StoreKit) -> None:
    """By number, not by the text of their ids, and without their own children."""
    await kit.add(GroupPlan([ChainPlan([_TASK])] * 12))
    found = await kit.store.children("r", 1, 11)
    expected = [f"r.{index}" for index in range(1, 11)]
    kit.same([row.id for row in found], expected, "the members", "children")
    kit.same(list(await kit.store.children("r", 12, 20)), [], "members beyond the end", "children")
    kit.same(list(await kit.store.children("x", 0, 9)), [], "members of nothing", "children")


@case
async def results_are_read_down_the_tree(kit: StoreKit) -> None:
    """In the order of the members, whatever the order in which they ended."""
    await kit.add(GroupPlan([ChainPlan([_TASK, _TASK]), GroupPlan([_TASK])]))
    await kit.run("r.1.0", "r.0.0", "r.0.1")
    kit.same(await value_of(kit.store, "r"), [b"r.0.1", [b"r.1.0"]], "the results")
    kit.same(await value_of(kit.store, "x"), None, "the result of nothing")


@case
async def a_failure_has_the_reason(kit: StoreKit) -> None:
    """A node that did not succeed has a failure in place of a result."""
    await kit.add(_TASK)
    await kit.begin("r")
    await kit.do(End("r", 0, TOKEN, State.FAILED, None, "no such room"))
    expected = Failure("r", State.FAILED, "no such room")
    kit.same(await value_of(kit.store, "r"), expected, "the value")


# T7, heartbeats and what is lost


@case
async def a_heartbeat_returns_what_is_to_be_cancelled(kit: StoreKit) -> None:
    """Only the running tasks of that worker whose cancellation was asked for."""
    for root in ("a", "b"):
        await kit.add(_TASK, root)
        await kit.begin(root)
    beat = Heartbeat(WORKER, info=b"queues")
    kit.same(list(await kit.store.heartbeat(beat)), [], "nothing to cancel", "heartbeat")
    await kit.do(Cancel("b", "not needed"))
    kit.same(list(await kit.store.heartbeat(beat)), ["b"], "the task to cancel", "heartbeat")
    other = await kit.store.heartbeat(Heartbeat("another"))
    kit.same(list(other), [], "the tasks of another worker", "heartbeat")


@case
async def workers_are_those_that_sent_a_heartbeat(kit: StoreKit) -> None:
    """With the store's time of the last one, by name."""
    await kit.store.heartbeat(Heartbeat("b", 15.0, b"1"))
    await kit.store.heartbeat(Heartbeat("a", 15.0, b"2"))
    kit.clock.time += 5
    await kit.store.heartbeat(Heartbeat("b", 30.0, b"3"))
    now = kit.clock.time
    expected = [Heartbeat("a", 15.0, b"2", now - 5), Heartbeat("b", 30.0, b"3", now)]
    kit.same(list(await kit.store.workers()), expected, "the workers", "workers")


@case
async def suspects_are_late_and_without_a_living_worker(kit: StoreKit) -> None:
    """Queued tasks that are late, and running ones whose worker is dead."""
    for root in ("queued", "alive", "dead", "ended"):
        await kit.add(_TASK, root)
    await kit.begin("alive")
    await kit.do(Begin("dead", 0, 1, TOKEN, "dead"))
    await kit.run("ended")
    await kit.do(Sent(["queued:0"]))
    kit.clock.time += 100
    await kit.store.heartbeat(Heartbeat(WORKER))

    before = kit.clock.time - 60
    suspects = sorted(await kit.store.suspects(before))
    kit.same(suspects, ["dead", "queued"], "the suspects", "suspects")
    kit.same(len(await kit.store.suspects(before, limit=1)), 1, "at most one", "suspects")
    for task in suspects:
        kit.same(await kit.do(Recover(task, before)), Ok(), "the outcome")
        kit.same(kit.keys, [f"{task}:0:1"], "the key of the further message")
    kit.same(list(await kit.store.suspects(before)), [], "the suspects after that", "suspects")


@case
async def what_waits_in_the_outbox_is_not_lost(kit: StoreKit) -> None:
    """`Recover` makes no further copy of it, and copies of what is lost get rarer."""
    await kit.add(_TASK)
    late = [100.0, 150.0, 1.0, 100.0]
    expected: list[Outcome] = [Refused(), Ok(), Refused(), Ok()]
    for seconds, outcome in zip(late, expected, strict=True):
        kit.clock.time += seconds
        kit.same(await kit.do(Recover("r", kit.clock.time - 60)), outcome, "the outcome")
        await kit.do(Sent([f"r:0:{(await kit.node('r')).copies}", "r:0"]))
    kit.same((await kit.node("r")).due, kit.clock.time + 60, "when it should be ready")


@case
async def a_lost_task_that_is_too_late_expires(kit: StoreKit) -> None:
    """`Recover` publishes it before its expiry, which counts from its release, and not after it."""
    ttls = {"early": (0.0, 99.0), "late": (30.0, 101.0), "delayed": (30.0, 99.0)}
    for root, (delay, ttl) in ttls.items():
        await kit.do(Add([Node(id=root, name="ok", queue="work", delay=delay, ttl=ttl)]))
        await kit.do(Sent([f"{root}:0"]))
    kit.clock.time += 100
    for root in ttls:
        kit.same(await kit.do(Recover(root, kit.clock.time - 60)), Ok(), "the outcome")
    kit.same(await kit.states(*ttls), ["expired", "scheduled", "expired"], "the states")


@case
async def a_further_copy_of_a_running_task_is_busy(kit: StoreKit) -> None:
    """As long as its worker is alive, unless it is the same message that comes again."""
    await kit.add(_TASK)
    await kit.store.heartbeat(Heartbeat(WORKER, 15.0))
    first, other = (
        Begin("r", 0, 1, token, WORKER, is_redelivered=False) for token in (TOKEN, "other")
    )
    expected = [Started, Started, Busy]
    types = [type(await kit.do(change)) for change in (first, first, other)]
    kit.same(types, expected, "the outcomes of a start, of its repetition, and of a copy")

    kit.same(
        type(await kit.do(replace(other, is_redelivered=True))), Started, "when it is the same"
    )
    kit.clock.time += 20
    kit.same(type(await kit.do(first)), Started, "when the worker is dead")


@case
async def an_abandoned_group_is_a_suspect(kit: StoreKit) -> None:
    """When its time to be sealed is over, whatever time is asked for."""
    await kit.add(GroupPlan([_TASK], is_sealed=False))
    await kit.run("r.0")
    kit.same(list(await kit.store.suspects(0.0)), [], "the suspects", "suspects")
    kit.clock.time += 61
    kit.same(list(await kit.store.suspects(0.0)), ["r"], "the suspects", "suspects")
    await kit.do(Recover("r", 0.0))
    kit.same(await kit.states("r"), ["cancelled"], "the state of the group")
    kit.same(list(await kit.store.suspects(0.0)), [], "the suspects after that", "suspects")


# T9, T11


@case
async def a_unique_key_has_one_holder(kit: StoreKit) -> None:
    """Until its task has ended, also inside one transaction and after a redrive."""
    unique = TaskPlan(unique="key")
    changes = [Add(rows_of(unique, root)) for root in ("a", "b")]
    applied = await kit.store.apply(changes)
    kit.same(list(applied.outcomes), [Added(), Conflict("a")], "the outcomes")
    kit.same(await kit.store.nodes(["b"]), [None], "the row that was refused", "nodes")

    await kit.run("a", state=State.FAILED)
    kit.same(await kit.add(unique, "b"), Added(), "the outcome when the key is free")
    kit.same(await kit.begin("a", run=1), Conflict("b"), "the outcome of a redrive")
    kit.same(await kit.states("a", "b"), ["failed", "queued"], "the states")
    await kit.run("b")
    await kit.begin("a", run=1)
    kit.same(await kit.add(unique, "c"), Conflict("a"), "the outcome during the redriven run")


@case
async def a_schedule_fires_once_for_each_version(kit: StoreKit) -> None:
    """The second of two schedulers is answered `Lost`, and adds nothing."""
    planned = Fire("nightly", 0, 60.0, definition=b"30 7 * * 1")
    kit.same(await kit.do(planned), Fired(), "the outcome")
    fire = Fire("nightly", 1, 120.0, rows_of(_TASK, "r60"))
    outcomes: list[Outcome] = [await kit.do(fire), await kit.do(fire)]
    kit.same(outcomes, [Fired(), Lost()], "the outcomes of two schedulers")
    kit.same(await kit.states("r60"), ["queued"], "the state of the task")
    await kit.do(Fire("another", 0, None))

    shown = [(it.name, it.version, it.next_at) for it in await kit.store.schedules()]
    expected = [("another", 1, None), ("nightly", 2, 120.0)]
    kit.same(shown, expected, "the schedules by name", "schedules")
    stored = (await kit.store.schedules())[1].definition
    kit.same(stored, b"30 7 * * 1", "its definition", "schedules")


# Several processes

_CLIENTS, _MEMBERS = 4, 40


@case
async def members_that_end_at_the_same_time_are_counted_once_each(kit: StoreKit) -> None:
    """The body of a chord is released by exactly one of the last endings."""
    await kit.add(ChainPlan([GroupPlan([_CHORD] * _MEMBERS), _TASK]))
    members = [f"r.0.{index}" for index in range(_MEMBERS)]
    await kit.treat_slices()

    clients = [kit.store, *[await kit.another() for _ in range(_CLIENTS - 1)]]
    made = await asyncio.gather(
        *[_run_chord(clients[place % _CLIENTS], member) for place, member in enumerate(members)]
    )
    kit.same([keys.count("r.1:0") for keys in made].count(1), 1, "endings that release the body")
    group = await kit.node("r.0")
    kit.same((group.state, group.done, group.bad), (State.SUCCEEDED, _MEMBERS, 0), "the group")


async def _run_chord(store: TaskStore, chord: str) -> list[str]:
    """Run two members at the same time, then their body; return the outbox keys that were made."""

    async def run(task: str) -> list[str]:
        await store.apply([Begin(task, 0, 1, TOKEN, WORKER)])
        applied = await store.apply([End(task, 0, TOKEN, State.SUCCEEDED, b"")])
        return list(applied.keys)

    await asyncio.gather(run(f"{chord}.0.0"), run(f"{chord}.0.1"))
    return await run(f"{chord}.1")


@case
async def a_cancellation_beside_endings_ends_everything(kit: StoreKit) -> None:
    """An ending locks upward, a cancellation downward: neither waits for the other without end."""
    roots = [f"r{number}" for number in range(10)]
    clients = [kit.store, *[await kit.another() for _ in range(_CLIENTS - 1)]]
    for root in roots:
        await kit.add(GroupPlan([_CHORD, _CHORD]), root)
    await kit.treat_slices()

    async def cancel_beside_endings(place: int) -> Outcome:
        one, two, three = (clients[(place + shift) % _CLIENTS] for shift in range(3))
        _, cancelled, _ = await asyncio.gather(
            _run_chord(one, f"{roots[place]}.0"),
            two.apply([Cancel(roots[place])]),
            _run_chord(three, f"{roots[place]}.1"),
        )
        return cancelled.outcomes[0]

    outcomes = await asyncio.gather(*map(cancel_beside_endings, range(len(roots))))
    await kit.treat_slices()
    for root, outcome in zip(roots, outcomes, strict=True):
        is_late = outcome == Terminal(State.SUCCEEDED)
        expected = [State.SUCCEEDED if is_late else State.CANCELLED]
        kit.same(await kit.states(root), expected, f"the state of {root}")
        for chord in (f"{root}.0", f"{root}.1"):
            nodes = await kit.store.nodes([chord, f"{chord}.0", f"{chord}.0.0", f"{chord}.0.1"])
            ended = [node is not None and node.has_ended for node in nodes]
            kit.same(ended, [True] * len(nodes), f"whether each node of {chord} has ended")


# Waiting for results (T5)


@case
async def what_changes_is_announced_to_other_clients(kit: StoreKit) -> None:
    """A store that announces changes names each row that has begun or ended, or None.

    A store that announces nothing is polled.
    """
    other = await kit.another()
    if not isinstance(other, SupportsAnnouncements):
        return
    heard: asyncio.Queue[Announcement | None] = asyncio.Queue()
    listening = asyncio.create_task(other.listen(heard.put_nowait))
    try:
        kit.same(await _next(heard, listening), None, "what is heard at first", "listen")
        await kit.add(_CHORD)
        await kit.run("r.0.0", "r.0.1", "r.1")
        await kit.add(_TASK, "last")
        await kit.run("last")
        ended, moved = set[str](), set[str]()
        while "last" not in ended:
            announcement = await _next(heard, listening)
            if announcement is None:
                return  # everything that is waited for is read again
            ended.update(announcement.ended)
            moved.update(announcement.moved)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    missed = {"r.0.0", "r.0.1", "r.0", "r.1", "r"} - ended
    kit.same(missed, set(), "ends that were not announced", "listen")
    missed = {"r.0.0", "r.0.1", "r.1"} - moved
    kit.same(missed, set(), "beginnings that were not announced", "listen")


_ANNOUNCED = 30.0
"""Seconds after which a change must have been announced. It is much faster."""


async def _next(
    heard: asyncio.Queue[Announcement | None], listening: asyncio.Task[None]
) -> Announcement | None:
    """Return the next announcement. Raises what `listen` raises."""
    getting = asyncio.create_task(heard.get())
    await asyncio.wait(
        [getting, listening], timeout=_ANNOUNCED, return_when=asyncio.FIRST_COMPLETED
    )
    if getting.done():
        return getting.result()
    getting.cancel()
    if listening.done():
        listening.result()
    raise ContractError("an announcement", f"none in {_ANNOUNCED:g} s", "TaskStore.listen")


# Retention


@case
async def old_trees_are_removed_as_a_whole(kit: StoreKit) -> None:
    """Only those whose root ended before the time, and in which nothing is live."""
    await kit.add(GroupPlan([_TASK, _TASK]), "old")
    await kit.run("old.0", "old.1", state=State.FAILED)
    await kit.add(_TASK, "open")
    kit.clock.time += 100
    await kit.add(_TASK, "new")
    await kit.run("new")
    before = kit.clock.time - 50

    await kit.begin("old.1", run=1)
    kit.same(await kit.store.purge(before), 0, "trees removed while one is redriven", "purge")
    await kit.do(End("old.1", 1, TOKEN, State.SUCCEEDED))
    kit.same(await kit.store.purge(before), 1, "trees removed", "purge")
    left = await kit.store.nodes(["old", "old.0", "old.1", "open", "new"])
    kit.same([row and row.id for row in left], [None, None, None, "open", "new"], "rows", "purge")


@case
async def a_late_redrive_inserts_its_row_again(kit: StoreKit) -> None:
    """The row comes from the message, and runs without its workflow."""
    missing = rows_of(_TASK, "r.3", "r", 3)[0]
    started = await kit.do(Begin("r.3", 2, 1, TOKEN, WORKER, missing))
    kit.same(type(started), Started, "the outcome")
    await kit.do(End("r.3", 2, TOKEN, State.SUCCEEDED, b"late"))
    kit.same(await value_of(kit.store, "r.3"), b"late", "the result")
    kit.same(await kit.begin("r.3", 2), Terminal(State.SUCCEEDED), "the outcome of a repetition")
