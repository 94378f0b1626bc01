"""The cases of rates and slots: what may start, what waits, and who is next (T10)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from mqcore.contract.store.kit import TOKEN, WORKER
from mqcore.contract.store.workflows import GroupPlan, TaskPlan, rows_of
from mqcore.tasks.model.changes import Add, Back, Begin, Cancel, End, Gone, Replace
from mqcore.tasks.model.limits import RateLimit, SlotLimit
from mqcore.tasks.model.nodes import Node, replacement_id
from mqcore.tasks.model.outcomes import Added, Conflict, Later, Outcome, Started
from mqcore.tasks.model.states import State
from mqcore.tasks.store.seam import Heartbeat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.contract.store.kit import StoreKit

__all__ = ["LIMIT_CASES"]

LIMIT_CASES: list[Callable[[StoreKit], Awaitable[None]]] = []

_RATE = RateLimit("rate:mail", 6.0)
_ONE, _TWO = SlotLimit("slots:disk", 1), SlotLimit("slots:disk", 2)
_KEPT = SlotLimit("slots:disk", 1, keeps=True)
_LATER = Later(None)
_ALIVE = 10_000.0
_CLIENTS, _TASKS = 4, 6


def case(function: Callable[[StoreKit], Awaitable[None]]) -> Callable[[StoreKit], Awaitable[None]]:
    """Register a case."""
    LIMIT_CASES.append(function)
    return function


async def _add(kit: StoreKit, *roots: str) -> None:
    await kit.store.heartbeat(Heartbeat(WORKER, _ALIVE))
    for root in roots:
        await kit.add(TaskPlan(), root)


async def _turn(kit: StoreKit, task: str, rate: RateLimit = _RATE) -> float | None:
    """Begin a task; return when it may start, or None where it has started."""
    outcome = await kit.do(Begin(task, 0, 1, f"{task} {TOKEN}", WORKER, rate=rate))
    if isinstance(outcome, Later):
        return round(kit.clock.time + (outcome.delay or 0.0), 3)
    kit.same(type(outcome), Started, f"{task} starts")
    return None


def _begin(task: str, slot: SlotLimit, worker: str = WORKER, attempt: int = 1) -> Begin:
    return Begin(task, 0, attempt, f"{task} {TOKEN}", worker, slot=slot)


def _end(task: str, state: State = State.SUCCEEDED) -> End:
    return End(task, 0, f"{task} {TOKEN}", state)


async def _enter(kit: StoreKit, *tasks: str, slot: SlotLimit = _ONE) -> list[bool]:
    """Begin tasks; return which of them have started."""
    outcomes = [await kit.do(_begin(task, slot)) for task in tasks]
    return [isinstance(outcome, Started) for outcome in outcomes]


# Rates


@case
async def a_rate_hands_out_turns(kit: StoreKit) -> None:
    """Each task gets a time, starts when it comes back then, and waits only once."""
    tasks = [f"t{number}" for number in range(4)]
    await _add(kit, *tasks)
    began = kit.clock.time
    turns = [await _turn(kit, task) for task in tasks]
    kit.same(turns, [None, began + 6, began + 12, began + 18], "the turns")
    row = await kit.node("t1")
    kit.same((row.state, row.due, row.turn), (State.QUEUED, began + 6, began + 6), "a row")

    kit.clock.time += 3
    kit.same(await _turn(kit, "t1"), began + 6, "the turn of one that comes too early")
    for number in (1, 2, 3):
        kit.clock.time = began + 6 * number + 0.3
        kit.same(await _turn(kit, tasks[number]), None, "that of one that comes in time")
    kit.same((await kit.node("t3")).turn, 0.0, "the turn of one that has started")


@case
async def a_burst_starts_at_once(kit: StoreKit) -> None:
    """As many as the rate allows, then one after the other."""
    rate = RateLimit("rate:burst", 10.0, 3)
    tasks = [f"t{number}" for number in range(5)]
    await _add(kit, *tasks)
    began = kit.clock.time
    turns = [await _turn(kit, task, rate) for task in tasks]
    kit.same(turns, [None, None, None, began + 10, began + 20], "the turns")
    for number in (3, 4):
        kit.clock.time = began + 10 * (number - 2)
        kit.same(await _turn(kit, tasks[number], rate), None, "the turn of a later one")


@case
async def turns_that_are_over_are_not_used_at_once(kit: StoreKit) -> None:
    """While no worker was there, turns passed; afterwards the rate holds, and each starts."""
    tasks = [f"t{number}" for number in range(6)]
    await _add(kit, *tasks)
    for task in tasks:
        await _turn(kit, task)
    kit.clock.time += 1_000
    began, left, starts = kit.clock.time, list(tasks[1:]), []
    while left:
        for task in list(left):
            if await _turn(kit, task) is None:
                left.remove(task)
                starts.append(kit.clock.time - began)
        kit.clock.time += 1
    kit.same(starts, [0, 6, 12, 18, 24], "the starts after that")


@case
async def turns_that_are_not_used_hold_up_no_other(kit: StoreKit) -> None:
    """Those of tasks that were cancelled: the rate is free when it was not used for a while."""
    await kit.add(GroupPlan([TaskPlan()] * 3), "g")
    await _add(kit, "late")
    for number in range(3):
        await _turn(kit, f"g.{number}")
    await kit.do(Cancel("g", "not needed"))
    kit.clock.time += 8.5
    kit.same(await _turn(kit, "late"), None, "the turn of another task")


@case
async def each_key_has_a_rate_of_its_own(kit: StoreKit) -> None:
    """And a repeated beginning of one attempt takes no second turn."""
    await _add(kit, "a", "b", "c")
    kit.same(await _turn(kit, "a"), None, "the first of a key")
    kit.same(await _turn(kit, "a"), None, "its repetition")
    kit.same(await _turn(kit, "b", RateLimit("rate:other", 6.0)), None, "the first of another")
    kit.same(await _turn(kit, "c"), kit.clock.time + 6, "the second")


# Slots


@case
async def slots_have_as_many_holders_as_there_are(kit: StoreKit) -> None:
    """The others wait in a line, in their order, without a message."""
    tasks = ["a", "b", "c", "d"]
    await _add(kit, *tasks)
    kit.same(await _enter(kit, *tasks, slot=_TWO), [True, True, False, False], "which start")
    kit.same(kit.keys, [], "the keys of one that waits")
    kit.same(await kit.states(*tasks), ["running", "running", "queued", "queued"], "the states")

    kit.clock.time += 1
    for ended, woken in (("b", ["c"]), ("a", ["d"]), ("c", []), ("d", [])):
        await kit.do(_end(ended))
        kit.same([key.partition(":")[0] for key in kit.keys], woken, f"woken by {ended}")
        if woken:
            found = await kit.store.entries(kit.keys)
            kit.same([it.entry.node for it in found], woken, "the entry", "entries")
            kit.same(await _enter(kit, *woken, slot=_TWO), [True], "that one starts")


@case
async def no_task_overtakes_the_line(kit: StoreKit) -> None:
    """A slot that is handed over is taken, also for those that come before its new holder."""
    await _add(kit, "a", "b", "c")
    await _enter(kit, "a", "b")
    await kit.do(_end("a"))
    kit.same(await _enter(kit, "c", "c", "b"), [False, False, True], "which start")
    await kit.do(_end("b"))
    kit.same(kit.keys[0].partition(":")[0], "c", "the next one")


@case
async def a_place_in_the_line_ends_with_its_task(kit: StoreKit) -> None:
    """A cancelled task leaves the line, and gives back the slot that was handed to it."""
    await _add(kit, "a", "b", "c", "d")
    await _enter(kit, "a", "b", "c", "d")
    await kit.do(Cancel("b", ""))
    await kit.do(_end("a"))
    kit.same(kit.keys[0].partition(":")[0], "c", "woken in place of the cancelled one")
    await kit.do(Cancel("c", ""))
    kit.same(kit.keys[0].partition(":")[0], "d", "woken by a cancellation")
    await kit.do(Gone("d", 0, State.EXPIRED))
    await _add(kit, "e")
    kit.same(await _enter(kit, "e"), [True], "the slot is free")


@case
async def a_slot_is_free_between_two_attempts(kit: StoreKit) -> None:
    """Unless the task keeps it. Its number of attempts is as before when it is woken."""
    await _add(kit, "a", "b")
    await _enter(kit, "a", "b")
    await kit.do(Back("a", 0, f"a {TOKEN}", State.RETRYING, 5.0))
    kit.same(kit.keys[0].partition(":")[0], "b", "woken by a retry")
    await _enter(kit, "b")
    kit.same(await kit.do(_begin("a", _ONE, attempt=2)), _LATER, "the next attempt")
    row = await kit.node("a")
    kit.same((row.state, row.attempt), (State.RETRYING, 2), "its row")
    await kit.do(_begin("a", _ONE))
    kit.same((await kit.node("a")).attempt, 2, "its attempt after a further copy")


@case
async def a_task_may_keep_its_slot(kit: StoreKit) -> None:
    """Over retries, postponements, its replacement, and the death of its worker, to its end."""
    await _add(kit, "a", "b")
    await _enter(kit, "a", "b", slot=_KEPT)
    await kit.do(Back("a", 0, f"a {TOKEN}", State.QUEUED, 5.0))
    kit.same(kit.keys, [], "woken by a postponement")
    kit.clock.time += 1_000
    kit.same(await _enter(kit, "b", "a", slot=_KEPT), [False, True], "which start")

    below = Node(id=replacement_id("a"), parent="a", name="ok", queue="work")
    await kit.do(Replace("a", 0, f"a {TOKEN}", [below]))
    kit.same(kit.keys, ["a~:0"], "the keys of a replacement")
    await kit.run("a~")
    kit.same(kit.keys[0].partition(":")[0], "b", "woken by the end")


@case
async def the_slot_of_a_dead_worker_is_free(kit: StoreKit) -> None:
    """After its lease. The task that it ran goes to the end of the line."""
    await kit.store.heartbeat(Heartbeat("other"))
    await _add(kit, "a", "b", "c")
    await kit.do(_begin("a", _ONE, "other"))
    kit.same(await _enter(kit, "b"), [False], "while it lives")
    kit.clock.time += 20
    unsure = replace(_ONE, takes_over=False)
    kit.same(await _enter(kit, "b", slot=unsure), [False], "for one that is not sure")
    kit.same(await _enter(kit, "c"), [False], "one that comes first after its death")
    kit.same([key.partition(":")[0] for key in kit.keys], ["b"], "the first of the line")
    kit.clock.time += 1
    again = Begin("a", 0, 1, TOKEN, WORKER, slot=_ONE)
    kit.same(await kit.do(again), _LATER, "its task, when its message comes again")
    kit.same(await _enter(kit, "b"), [True], "the new holder")
    for ended, woken in (("b", "c"), ("c", "a")):
        await kit.do(_end(ended))
        kit.same([key.partition(":")[0] for key in kit.keys], [woken], f"woken by {ended}")
        await _enter(kit, woken)


@case
async def a_slot_comes_before_a_turn(kit: StoreKit) -> None:
    """A task that waits for its turn has its slot, whether or not its worker lives."""
    await _add(kit, "a", "b", "c")
    both = [
        Begin(task, 0, 1, f"{task} {TOKEN}", worker, rate=_RATE, slot=_TWO)
        for task, worker in (("a", WORKER), ("b", "dead"), ("c", WORKER))
    ]
    outcomes: list[Outcome] = [await kit.do(change) for change in both]
    kit.same(outcomes[1:], [Later(6.0), _LATER], "the outcomes")
    kit.clock.time += 6
    kit.same(type(await kit.do(both[1])), Started, "at its turn")


@case
async def another_number_of_slots_holds_from_the_next_start(kit: StoreKit) -> None:
    """More slots wake the line first; another key leaves the old one."""
    await _add(kit, "a", "b", "c", "d")
    await _enter(kit, "a", "b", "c")
    kit.same(await _enter(kit, "d", slot=replace(_ONE, count=3)), [False], "the newest")
    kit.same([key.partition(":")[0] for key in kit.keys], ["b", "c"], "who is woken")
    kit.same(await _enter(kit, "d", slot=SlotLimit("slots:tape", 1)), [True], "elsewhere")


# Unique keys (T9)


@case
async def a_task_may_wait_for_its_unique_key(kit: StoreKit) -> None:
    """It is stored without a message; the end of the task before publishes it."""
    unique = TaskPlan(unique="key")
    tasks = ("a", "b", "c", "d")
    for task in tasks:
        kit.same(await kit.do(Add(rows_of(unique, task), waits=True)), Added(), "the outcome")
        kit.same(kit.keys, ["a:0"] if task == "a" else [], f"the keys of {task}")
        kit.clock.time += 1
    kit.same(await kit.states(*tasks), ["queued"] * 4, "the states")
    kit.same(await kit.begin("b"), _LATER, "the outcome of a copy of one that waits")
    kit.same(await kit.add(unique, "e"), Conflict("a"), "that of one that does not wait")

    await kit.do(Cancel("b", ""))
    for ended, woken in (("a", ["c"]), ("c", ["d"]), ("d", [])):
        await kit.run(ended, state=State.FAILED)
        kit.same([key.partition(":")[0] for key in kit.keys], woken, f"woken by {ended}")
    kit.same(type(await kit.begin("a", run=1)), Started, "a redrive when the key is free")


@case
async def one_that_waits_and_one_that_ends_do_not_miss_each_other(kit: StoreKit) -> None:
    """Several processes send, run and end tasks of one key: each has its turn."""
    clients = [kit.store, *[await kit.another() for _ in range(_CLIENTS - 1)]]
    tasks = [f"t{number}" for number in range(_CLIENTS * _TASKS)]
    unique, ready = TaskPlan(unique="key"), list[str]()
    for start in range(0, len(tasks), _CLIENTS):
        applied = await asyncio.gather(
            *[
                client.apply([Add(rows_of(unique, task), waits=True)])
                for client, task in zip(clients, tasks[start : start + _CLIENTS], strict=True)
            ],
            *[kit.store.apply([_begin_plain(task), _end(task)]) for task in ready],
        )
        ready = [key.partition(":")[0] for each in applied for key in each.keys]
    while ready:
        applied = [await kit.store.apply([_begin_plain(task), _end(task)]) for task in ready]
        ready = [key.partition(":")[0] for each in applied for key in each.keys]
    states = {(await kit.node(task)).state for task in tasks}
    kit.same(states, {State.SUCCEEDED}, "the states at the end")


def _begin_plain(task: str) -> Begin:
    return Begin(task, 0, 1, f"{task} {TOKEN}", WORKER)


@case
async def several_processes_share_the_slots(kit: StoreKit) -> None:
    """However they come and go at the same time, no more run than there are slots, and all end."""
    clients = [kit.store, *[await kit.another() for _ in range(_CLIENTS - 1)]]
    tasks = [f"t{number}" for number in range(_CLIENTS * _TASKS)]
    await _add(kit, *tasks)
    beginning, running, most = tasks, set[str](), 0
    for _ in range(len(tasks)):
        applied = await asyncio.gather(
            *[
                clients[number % _CLIENTS].apply([_begin(task, _TWO)])
                for number, task in enumerate(beginning)
            ],
            *[
                clients[number % _CLIENTS].apply([_end(task)])
                for number, task in enumerate(sorted(running))
            ],
        )
        started = {
            task
            for task, each in zip(beginning, applied, strict=False)
            if isinstance(each.outcomes[0], Started)
        }
        running = started
        most = max(most, len(running))
        woken = [key.partition(":")[0] for each in applied for key in each.keys]
        beginning = woken
        if not (running or beginning):
            break
    kit.same(most, 2, "how many run at once")
    states = {(await kit.node(task)).state for task in tasks}
    kit.same(states, {State.SUCCEEDED}, "the states at the end")
