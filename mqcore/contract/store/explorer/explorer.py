"""Runs schedules: chooses at each moment which machine goes on, which dies, and what is sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, ClassVar

from mqcore.contract.kit import ContractError
from mqcore.contract.store.explorer.actors import Actor, Actors
from mqcore.contract.store.explorer.checks import check_all_ended, check_end
from mqcore.contract.store.explorer.plans import random_workflow
from mqcore.contract.store.explorer.world import Chances, World
from mqcore.contract.store.harness import MakeStore, StepClock
from mqcore.contract.store.workflows import drawn, rows_of
from mqcore.tasks.model.changes import More
from mqcore.tasks.model.nodes import Kind, Node, child_id
from mqcore.tasks.transitions.walk import SLICE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Explored", "Schedule", "explore", "replay"]

_GOES_ON, _WORKER_STARTS, _RELAY_STARTS = 0.7, 0.92, 0.95
"""Shares of the moments; in the rest something disturbs."""
_MOST_TICKS = 150
"""Moments of a schedule in which faults may happen."""
_MOST_STEPS = 5_000
"""Steps after which a schedule that does not come to rest has failed."""
_HEARTBEATS_END = 20.0
_MESSAGES_ARE_LATE = 1_000.0


@dataclass(frozen=True)
class Explored:
    """How much was explored."""

    schedules: int
    workflows: int
    rows: int


class Schedule:
    """One schedule, which follows from its seed."""

    make_actors: ClassVar[type[Actors]] = Actors

    def __init__(self, seed: int, *, is_logged: bool = False) -> None:
        """Draw how hard the schedule is."""
        self.seed = seed
        self.choose = choose = Random(seed)
        self.clock = StepClock()
        self.slice_size = choose.choice((2, 3, SLICE, SLICE))
        self.chances = Chances(
            crash=choose.choice((0.0, 0.03, 0.06, 0.15)),
            duplicate=choose.choice((0.0, 0.1, 0.4)),
            loss=choose.choice((0.0, 0.0, 0.0, 0.05)),
            cancel=choose.choice((0.0, 0.02, 0.04)),
            redrive=choose.choice((0.0, 0.1)),
        )
        self.has_schedule = drawn(choose, 0.25)
        self.is_logged = is_logged
        self.running: list[Actor] = []
        self.roots: list[str] = []

    async def run(self, make_store: MakeStore) -> World:
        """Run it. Raises `ContractError` when a promise is broken; the log is a note of it."""
        store = await make_store(self.clock, self.slice_size)
        self.world = world = World(store, self.clock, self.choose, self.chances, self.is_logged)
        self.actors = self.make_actors(world)

        try:
            self._send_workflows()
            await self._with_faults()
            await self._to_rest()
            await check_end(world)
        except Exception as error:
            error.add_note("\n".join([f"schedule of seed {self.seed}", *world.log]))
            raise
        finally:
            await store.close()
        return world

    def _send_workflows(self) -> None:
        for number in range(self.choose.choice((1, 1, 2))):
            root = f"w{number}"
            rows = rows_of(random_workflow(self.choose), root)
            batches: Sequence[More] = ()
            if drawn(self.choose, 0.15):
                rows, batches = _in_batches(rows)
            self.roots.append(root)
            self.running.append(self.actors.sender(rows, batches))

    async def _with_faults(self) -> None:
        choose, world = self.choose, self.world
        for _ in range(_MOST_TICKS):
            chance = choose.random()
            if chance < _GOES_ON and self.running:
                await self._step(choose.choice(self.running))
            elif chance < _WORKER_STARTS and world.ready:
                self._start_worker()
            elif chance < _RELAY_STARTS:
                self.running.append(self.actors.relay())
            else:
                await self._disturb()
            if not self.running and not world.ready and drawn(choose, 0.1):
                return

    async def _disturb(self) -> None:
        """Start schedulers, cancel, redrive, reconcile, or let time pass."""
        choose, world = self.choose, self.world
        chances = self.chances

        if self.has_schedule and drawn(choose, 0.3):
            self.running += [self.actors.scheduler() for _ in range(choose.randint(1, 3))]
        elif drawn(choose, chances.cancel * 10) and world.nodes:
            node = choose.choice([*world.nodes, *self.roots])
            self.running.append(self.actors.canceller(node))
        elif drawn(choose, chances.redrive * 6) and world.dead_letters:
            self.running.append(self.actors.redriver(choose.choice(world.dead_letters)))
        elif drawn(choose, 0.8):
            await self._pass_time(choose.choice((5.0, _HEARTBEATS_END, 100.0)))
        else:
            self.running.append(self.actors.reconciler())

    async def _pass_time(self, seconds: float) -> None:
        """Let time pass. Most living workers send a heartbeat; one that does not looks dead.

        The broker may hand out the message of such a worker to another one, and it goes on.
        """
        self.clock.time += seconds
        for actor in self.running:
            if actor.held is None:
                continue
            if drawn(self.choose, 0.8):
                await self.world.beat(actor.name)
            elif drawn(self.choose, 0.3):
                self.world.note(f"{actor.name} has lost its message")
                self.world.redeliver(replace(actor.held))
                actor.held = None

    def _start_worker(self) -> None:
        """Give one of the ready messages, in any order, to a new worker."""
        ready = self.world.ready
        place = self.choose.randrange(len(ready))
        ready[place], ready[-1] = ready[-1], ready[place]
        self.running.append(self.actors.worker(ready.pop()))

    async def _step(self, actor: Actor) -> None:
        """Let a machine make its next step, or die in place of it."""
        if self.world.happens(self.chances.crash):
            self._crash(actor)
            return

        try:
            request = actor.steps.send(actor.answer)
        except StopIteration:
            self.running.remove(actor)
            return
        actor.answer = None if request is None else await request

    def _crash(self, actor: Actor) -> None:
        self.world.note(f"{actor.name} dies")
        self.running.remove(actor)
        actor.steps.close()
        if actor.held is not None:
            self.world.redeliver(actor.held)
        self.world.has_abandoned |= actor.is_batch_sender

    # The end

    async def _to_rest(self) -> None:
        """Let everything end without further faults."""
        world = self.world
        world.is_faulty = False

        await self._until_quiet(is_reconciling=False)
        if not world.lost and not world.has_abandoned:
            await check_all_ended(world)  # nothing was lost, so nothing needs to be reconciled
        await self._until_quiet(is_reconciling=True)

    async def _until_quiet(self, *, is_reconciling: bool) -> None:
        world, store = self.world, self.world.store

        for _ in range(_MOST_STEPS):
            if not self.running and world.ready:
                self._start_worker()
                self.clock.time += 1.0  # a message that was postponed may need the time
            if self.running:
                await self._step(self.choose.choice(self.running))
                continue

            self.clock.time += _MESSAGES_ARE_LATE if is_reconciling else _HEARTBEATS_END
            if await store.outbox(limit=1):
                self.running.append(self.actors.relay())
            elif is_reconciling and await store.suspects(self.clock.time - 60, limit=1):
                self.running.append(self.actors.reconciler())
            else:
                return
        world.fail("the schedule comes to rest", f"not after {_MOST_STEPS} steps")


def _in_batches(rows: list[Node]) -> tuple[list[Node], list[More]]:
    """Take the members of the first group out of a workflow, to be sent one by one later."""
    group = next((row for row in rows[:2] if row.kind is Kind.GROUP), None)
    if group is None:
        return rows, []

    batches = [list(_below(rows, child_id(group.id, index))) for index in range(group.size)]
    later = {row.id for batch in batches for row in batch}
    group.is_sealed, group.size = False, 0
    first = [row for row in rows if row.id not in later]
    return first, [*(More(group.id, batch) for batch in batches), More(group.id, [], seal=True)]


def _below(rows: Sequence[Node], node: str) -> Iterator[Node]:
    for row in rows:
        if row.id == node or (row.id.startswith(node) and row.id[len(node)] in ".~"):
            yield row


def explore(
    make_store: MakeStore, schedules: int, seed: int = 0, kind: type[Schedule] = Schedule
) -> Explored:
    """Run schedules with the seeds `seed`, `seed + 1` and so on, until one fails.

    Raises the `ContractError` of that schedule, with its seed and its log.
    """
    return asyncio.run(_explore(make_store, schedules, seed, kind))


async def _explore(
    make_store: MakeStore, schedules: int, seed: int, kind: type[Schedule]
) -> Explored:
    workflows = rows = 0

    for number in range(seed, seed + schedules):
        schedule = kind(number)
        try:
            world = await schedule.run(make_store)
        except Exception:  # noqa: BLE001 - whatever it was: the repetition raises it with its log
            await kind(number, is_logged=True).run(make_store)
            raise ContractError(
                f"the schedule of seed {number} fails again when it is repeated", "it passed"
            ) from None
        workflows += len(schedule.roots)
        rows += len(world.nodes)
    return Explored(schedules, workflows, rows)


def replay(make_store: MakeStore, seed: int) -> list[str]:
    """Run the schedule of a seed again, and return its log."""
    return asyncio.run(Schedule(seed, is_logged=True).run(make_store)).log
