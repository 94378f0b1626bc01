"""The cases of schedules: each planned instant is sent once, whatever the number of schedulers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqcore.contract.store.workflows import ChainPlan, GroupPlan, TaskPlan, rows_of
from mqcore.tasks.model.changes import Fire
from mqcore.tasks.model.outcomes import Fired, Lost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.contract.store.kit import StoreKit
    from mqcore.tasks.store.seam import Applied, TaskStore

__all__ = ["SCHEDULE_CASES"]

SCHEDULE_CASES: list[Callable[[StoreKit], Awaitable[None]]] = []

_TASK = TaskPlan()
_CHORD = ChainPlan([GroupPlan([_TASK, _TASK]), _TASK])
_CLIENTS, _ROUNDS = 4, 20
_NEXT = 1_793_000_000.123457


def case(function: Callable[[StoreKit], Awaitable[None]]) -> Callable[[StoreKit], Awaitable[None]]:
    """Register a case."""
    SCHEDULE_CASES.append(function)
    return function


async def _stored(kit: StoreKit) -> list[tuple[str, int, float | None, bytes]]:
    found = await kit.store.schedules()
    return [(it.name, it.version, it.next_at, it.definition) for it in found]


@case
async def a_schedule_is_stored_as_it_is(kit: StoreKit) -> None:
    """The next instant to the microsecond, any bytes as its definition, and no instant at all."""
    definition = bytes(range(256)) * 40
    await kit.do(Fire("nightly", 0, _NEXT, definition=definition))
    kit.same(await _stored(kit), [("nightly", 1, _NEXT, definition)], "it", "schedules")

    await kit.do(Fire("nightly", 1, None))
    kit.same(await _stored(kit), [("nightly", 2, None, definition)], "a paused one", "schedules")
    await kit.do(Fire("nightly", 2, _NEXT, definition=b""))
    kit.same(await _stored(kit), [("nightly", 3, _NEXT, b"")], "an empty definition", "schedules")


@case
async def a_schedule_moves_on_by_each_run_of_a_transaction(kit: StoreKit) -> None:
    """A scheduler sends several missed runs in one transaction; each has the next version."""
    await kit.do(Fire("hourly", 0, 1.0, definition=b"x"))
    applied = await kit.store.apply(
        [
            Fire("hourly", 1, 2.0, rows_of(_TASK, "r1"), b"y"),
            Fire("hourly", 2, 3.0, rows_of(_CHORD, "r2")),
            Fire("hourly", 2, 9.0, rows_of(_TASK, "r3")),
            Fire("hourly", 3, 4.0, rows_of(_TASK, "r4")),
        ]
    )
    kit.same(list(applied.outcomes), [Fired(), Fired(), Lost(), Fired()], "the outcomes")
    kit.same(sorted(applied.keys), ["r1:0", "r2.0.0:0", "r2.0.1:0", "r4:0"], "the keys")
    kit.same(await _stored(kit), [("hourly", 4, 4.0, b"y")], "the schedule", "schedules")
    kit.same(await kit.store.nodes(["r3"]), [None], "the row of the lost one", "nodes")


@case
async def a_lost_fire_leaves_the_others_of_its_transaction(kit: StoreKit) -> None:
    """A scheduler moves many schedules on at once, of which another one has moved some."""
    names = [f"s{number:03}" for number in range(120)]
    created = await kit.store.apply([Fire(name, 0, 1.0) for name in names])
    kit.same(list(created.outcomes), [Fired()] * len(names), "the outcomes of all new ones")

    fires = [
        Fire(name, number % 3, 2.0, rows_of(_TASK, f"r{number}"))
        for number, name in enumerate(names)
    ]
    applied = await kit.store.apply(fires)
    expected = [Fired() if number % 3 == 1 else Lost() for number in range(len(names))]
    kit.same(list(applied.outcomes), expected, "the outcomes")
    stored = [(name, version) for name, version, _, _ in await _stored(kit)]
    moved = [(name, 2 if number % 3 == 1 else 1) for number, name in enumerate(names)]
    kit.same(stored, moved, "the versions", "schedules")
    rows = await kit.store.nodes([f"r{number}" for number in range(len(names))])
    added = [number for number, row in enumerate(rows) if row is not None]
    kit.same(added, list(range(1, len(names), 3)), "the rows that were added", "nodes")


@case
async def a_run_that_exists_is_not_sent_again(kit: StoreKit) -> None:
    """The id of a run follows from its instant: the schedule moves on, and nothing is sent."""
    await kit.add(_TASK, "r60")
    await kit.begin("r60")
    await kit.do(Fire("nightly", 0, 60.0))
    kit.same(await kit.do(Fire("nightly", 1, 120.0, rows_of(_TASK, "r60"))), Fired(), "the outcome")
    kit.same(kit.keys, [], "the keys that were made")
    kit.same(await kit.states("r60"), ["running"], "the state of the run")


@case
async def a_run_whose_key_is_taken_is_left_out(kit: StoreKit) -> None:
    """The schedule moves on also when the unique key belongs to another open task."""
    unique = TaskPlan(unique="key")
    await kit.add(unique, "a")
    await kit.do(Fire("nightly", 0, 60.0))
    kit.same(await kit.do(Fire("nightly", 1, 120.0, rows_of(unique, "b"))), Fired(), "the outcome")
    kit.same(await kit.store.nodes(["b"]), [None], "the row that was left out", "nodes")
    await kit.run("a")
    await kit.do(Fire("nightly", 2, 180.0, rows_of(unique, "c")))
    kit.same(await kit.states("c"), ["queued"], "the state of the next run")


@case
async def schedulers_at_the_same_time_send_one_run(kit: StoreKit) -> None:
    """Several processes fire one version: one of them has it, and only its rows are there."""
    clients = [kit.store, *[await kit.another() for _ in range(_CLIENTS - 1)]]
    for version in range(_ROUNDS):
        applied = await asyncio.gather(
            *[_fire(client, version, number) for number, client in enumerate(clients)]
        )
        outcomes = [each.outcomes[0] for each in applied]
        kit.same(outcomes.count(Fired()), 1, f"how many have version {version} of 4")
        kit.same(outcomes.count(Lost()), _CLIENTS - 1, "how many were late")
        winner = outcomes.index(Fired())
        keys = [key for each in applied for key in each.keys]
        kit.same(keys, [f"v{version}c{winner}:0"], "the keys of all of them")
    kit.same((await _stored(kit))[0][1], _ROUNDS, "the version at the end", "schedules")


async def _fire(store: TaskStore, version: int, client: int) -> Applied:
    rows = rows_of(_TASK, f"v{version}c{client}")
    return await store.apply([Fire("nightly", version, float(version), rows, b"x")])
