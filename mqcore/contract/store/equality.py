"""The same random changes in a store and in memory: outcomes, outbox and rows must be equal.

The changes are chosen from what memory holds, so that most of them have an effect. A run follows
from its seed alone.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from mqcore.contract.kit import ContractError
from mqcore.contract.store.explorer.plans import random_plan, random_workflow
from mqcore.contract.store.harness import MakeStore, StepClock
from mqcore.contract.store.workflows import drawn, rows_of
from mqcore.tasks.model.changes import (
    Add,
    Back,
    Begin,
    Cancel,
    Change,
    End,
    Fire,
    Gone,
    More,
    Progress,
    Recover,
    Replace,
    Sent,
    Spread,
)
from mqcore.tasks.model.limits import RateLimit, SlotLimit
from mqcore.tasks.model.nodes import FOLLOWING, Kind, Node, child_id, replacement_id
from mqcore.tasks.model.states import LIVE, State
from mqcore.tasks.store.memory import MemoryTaskStore, Tables
from mqcore.tasks.store.seam import Heartbeat, TaskStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Comparison", "compare_with_memory"]

_WORKERS = ("worker1", "worker2", "worker3")
_TOKENS = ("token1", "token2", "token3")
_ENDINGS = (State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.EXPIRED)
_SLICES = (2, 3, 1_000)
_MOST_MEMBERS = 8
_RATES = (None, RateLimit("often", 0.25, 3), None, RateLimit("seldom", 40.0))
_SLOTS = (
    *(SlotLimit("one", 1), SlotLimit("kept", 2, keeps=True)),
    *(SlotLimit("two", 2, takes_over=False), SlotLimit("one", 1), None),
)


class Comparison:
    """One run of random changes."""

    def __init__(self, seed: int) -> None:
        """Draw the first choices."""
        self.seed = seed
        self.choose = Random(seed)
        self.clock = StepClock()
        self.slice_size = self.choose.choice(_SLICES)
        self.memory = MemoryTaskStore(clock=self.clock, slice_size=self.slice_size, tables=Tables())
        self.log: list[str] = []
        self._roots = 0

    async def run(self, make_store: MakeStore, steps: int) -> None:
        """Make this many transactions in both. Raises `ContractError` when they differ."""
        store = await make_store(self.clock, self.slice_size)
        try:
            for _ in range(steps):
                await self._transaction(store)
                await self._outside(store)
            await self._same_rows(store)
        except Exception as error:
            error.add_note("\n".join([f"equality of seed {self.seed}", *self.log]))
            raise
        finally:
            await store.close()

    async def _transaction(self, store: TaskStore) -> None:
        changes = [self.change() for _ in range(self.choose.choice((1, 1, 1, 2, 4)))]
        self.log += map(repr, changes)
        expected = await self.memory.apply(changes)
        actual = await store.apply(changes)
        self._same("outcomes", list(actual.outcomes), list(expected.outcomes))
        self._same("outbox keys", sorted(actual.keys), sorted(expected.keys))

    async def _outside(self, store: TaskStore) -> None:
        """Let time pass, send a heartbeat, or compare what can be read."""
        if drawn(self.choose, 0.1):
            self.clock.time += self.choose.choice((1.0, 20.0, 70.0))
        elif drawn(self.choose, 0.2):
            beat = Heartbeat(self.choose.choice(_WORKERS))
            asked = [sorted(await each.heartbeat(beat)) for each in (store, self.memory)]
            self._same("tasks to cancel", *asked)
        elif drawn(self.choose, 0.07):
            await self._same_rows(store)

    async def _same_rows(self, store: TaskStore) -> None:
        ids = list(self.memory.tables.nodes)
        self._same("rows", *[list(await each.nodes(ids)) for each in (store, self.memory)])
        before = self.clock.time - 30

        both = (store, self.memory)
        self._same("outbox", *[sorted(map(repr, await each.outbox(10_000))) for each in both])
        self._same("suspects", *[sorted(await each.suspects(before, 10_000)) for each in both])
        self._same("live tasks", *[sorted(await each.live(10_000)) for each in both])
        self._same("schedules", *[list(await each.schedules()) for each in both])
        self._same("workers", *[list(await each.workers()) for each in both])

    def _same(self, what: str, actual: object, expected: object) -> None:
        if actual != expected:
            raise ContractError(f"{what} as in memory: {expected}", actual, "TaskStore.apply")

    # Changes

    def change(self) -> Change:
        """Return a change, mostly one that has an effect."""
        makers: tuple[Callable[[], Change], ...] = (
            self._add,
            self._begin,
            self._begin,
            self._begin,
            self._end,
            self._end,
            self._end,
            self._back,
            self._gone,
            self._replace,
            self._cancel,
            self._progress,
            self._spread,
            self._spread,
            self._more,
            self._recover,
            self._fire,
            self._sent,
        )
        return self.choose.choice(makers)()

    def _node(self, *states: State) -> Node:
        """Return one of the newest nodes in one of these states, or any, or an unknown one."""
        newest = list(self.memory.tables.nodes.values())[-40:]
        fitting = [node for node in newest if node.state in states]
        if fitting and drawn(self.choose, 0.9):
            return self.choose.choice(fitting)
        return self.choose.choice([*newest, Node(id="unknown")])

    def _token(self, node: Node) -> str:
        is_right = node.token and drawn(self.choose, 0.9)
        return node.token if is_right else self.choose.choice(_TOKENS)

    def _run(self, node: Node) -> int:
        return node.run + self.choose.choice((0, 0, 0, 0, 0, 1, -1))

    def _add(self) -> Change:
        if self._roots and drawn(self.choose, 0.1):
            return Add(rows_of(random_workflow(self.choose), f"r{self._roots}"), waits=True)
        self._roots += 1
        rows = rows_of(random_workflow(self.choose), f"r{self._roots}")
        if rows[0].kind is Kind.GROUP and drawn(self.choose, 0.5):
            rows[0].is_sealed = False
        return Add([*rows, *self._following(rows)], waits=self._roots % 2 == 1)

    def _following(self, rows: Sequence[Node]) -> Iterator[Node]:
        """Yield calls that follow the ends of some of these rows: in every third run."""
        for number, row in enumerate(rows):
            if self.seed % 3 == 1 and number % 4:
                row.follows = number % 4
                for kind, place in FOLLOWING.items():
                    id_ = child_id(row.id, place)
                    if row.follows & kind:
                        yield Node(id=id_, parent=row.id, index=place, name="ok", queue="work")

    def _more(self) -> Change:
        open_groups = [node for node in self.memory.tables.nodes.values() if not node.is_sealed]
        group = self.choose.choice(open_groups) if open_groups else self._node(State.RUNNING)
        seal = drawn(self.choose, 0.3) or group.size > _MOST_MEMBERS
        plan = random_plan(self.choose, 1)
        rows = rows_of(plan, child_id(group.id, group.size), group.id, group.size)
        return More(group.id, rows, seal)

    def _begin(self) -> Change:
        redrivable = (State.FAILED, State.EXPIRED)
        node = self._node(*LIVE, *redrivable)
        is_redriven = node.state in redrivable and drawn(self.choose, 0.8)
        run = node.run + 1 if is_redriven else self._run(node)
        token, worker = self.choose.choice(_TOKENS), self.choose.choice(_WORKERS)
        missing = Node(id=node.id) if node.id == "unknown" and self._roots % 2 else None
        attempt, is_redelivered = self.choose.randint(1, 3), drawn(self.choose, 0.6)
        rate, slot = self._limits(node)
        return Begin(
            node.id, run, attempt, token, worker, missing, is_redelivered, rate=rate, slot=slot
        )

    def _limits(self, node: Node) -> tuple[RateLimit | None, SlotLimit | None]:
        """Return what a beginning has to wait for: in every third run, the same for a while."""
        if self.seed % 3:
            return None, None
        number = len(self.log) // 8 + len(node.id)
        return _RATES[number % len(_RATES)], _SLOTS[number % len(_SLOTS)]

    def _end(self) -> Change:
        node, state = self._node(State.RUNNING), self.choose.choice(_ENDINGS)
        result = self.choose.choice((None, b"result"))
        reason = "" if state is State.SUCCEEDED else "why"
        return End(node.id, self._run(node), self._token(node), state, result, reason)

    def _gone(self) -> Change:
        node = self._node(*LIVE)
        return Gone(node.id, self._run(node), self.choose.choice(_ENDINGS[2:]), "gone")

    def _back(self) -> Change:
        node = self._node(State.RUNNING)
        state = self.choose.choice((State.RETRYING, State.QUEUED))
        return Back(node.id, self._run(node), self._token(node), state, self.choose.choice((0, 5)))

    def _replace(self) -> Change:
        node = self._node(State.RUNNING)
        rows = rows_of(random_plan(self.choose, 1), replacement_id(node.id), node.id)
        return Replace(node.id, node.run, self._token(node), rows)

    def _cancel(self) -> Change:
        if drawn(self.choose, 0.6):
            return self._progress()
        return Cancel(self._node(*LIVE, State.WAITING, State.DELEGATED).id, "cancelled")

    def _progress(self) -> Change:
        node, number = self._node(State.RUNNING), self.choose.randint(1, 5)
        return Progress(node.id, self._run(node), self._token(node), number, b"%d" % number)

    def _spread(self) -> Change:
        slices = [entry for entry in self.memory.tables.entries.values() if entry.start is not None]
        if not slices:
            return Spread(self._node(State.RUNNING).id, 0)
        entry = self.choose.choice(slices)
        start = entry.start if drawn(self.choose, 0.8) else self.slice_size
        return Spread(entry.node, start or 0)

    def _recover(self) -> Change:
        before = self.clock.time - self.choose.choice((-10, 15, 60))
        return Recover(self._node(*LIVE).id, before)

    def _fire(self) -> Change:
        known = self.memory.tables.schedules.get("schedule")
        version = (known.version if known else 0) - self.choose.choice((0, 0, 1))
        rows = rows_of(random_plan(self.choose, 1), f"s{version}")
        definition = self.choose.choice((None, b"every day"))
        return Fire("schedule", version, self.choose.choice((None, 60.0)), rows, definition)

    def _sent(self) -> Change:
        messages = [key for key, it in self.memory.tables.entries.items() if it.start is None]
        return Sent(self.choose.sample(messages, min(2, len(messages))))


def compare_with_memory(make_store: MakeStore, runs: int, steps: int = 60, seed: int = 0) -> int:
    """Compare in runs with the seeds `seed`, `seed + 1` and so on; return how many changes."""
    changes = 0
    for number in range(seed, seed + runs):
        comparison = Comparison(number)
        asyncio.run(comparison.run(make_store, steps))
        changes += len(comparison.log)
    return changes
