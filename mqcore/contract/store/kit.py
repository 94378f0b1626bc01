"""What a case of the store contract works with: an open store, a clock, and short calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.contract.kit import ContractError
from mqcore.contract.store.workflows import Plan, rows_of
from mqcore.tasks.model.changes import Add, Begin, Change, End, Spread
from mqcore.tasks.model.outcomes import Ended, Outcome, Started
from mqcore.tasks.model.states import State

if TYPE_CHECKING:
    from mqcore.contract.store.harness import StepClock
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.store.seam import TaskStore

__all__ = ["StoreKit"]

WORKER, TOKEN = "worker", "token"


class StoreKit:
    """One case's access to one store with empty tables."""

    slice_size = 3

    def __init__(self, store: TaskStore, clock: StepClock) -> None:
        self.store = store
        self.clock = clock
        self.keys: list[str] = []
        """The outbox keys of the last change."""
        self._others: list[TaskStore] = []

    async def another(self) -> TaskStore:
        """Open another client of the same store, as another process does."""
        kind = type(self.store)
        other = kind(self.store.url, self.clock, slice_size=self.store.slice_size)
        await other.open()
        self._others.append(other)
        return other

    async def close(self) -> None:
        """Close what the case has opened."""
        for other in self._others:
            await other.close()

    def same(self, actual: object, expected: object, what: str, look: str = "apply") -> None:
        """Fail unless the two are equal."""
        if actual != expected:
            raise ContractError(f"{what}: {expected}", actual, f"TaskStore.{look}")

    async def do(self, *changes: Change) -> Outcome:
        """Make changes in one transaction, and return the last outcome."""
        applied = await self.store.apply(changes)
        self.keys = sorted(applied.keys)
        return applied.outcomes[-1]

    async def add(self, plan: Plan, root: str = "r") -> Outcome:
        """Add a workflow."""
        return await self.do(Add(rows_of(plan, root)))

    async def treat_slices(self) -> None:
        """Treat the members of large groups, slice by slice, until none is left."""
        while True:
            found = [item.entry for item in await self.store.outbox(1_000)]
            slices = [Spread(it.node, it.start) for it in found if it.start is not None]
            if not slices:
                return
            await self.do(*slices)

    async def begin(self, task: str, run: int = 0) -> Outcome:
        """Start an attempt."""
        return await self.do(Begin(task, run, 1, TOKEN, WORKER))

    async def run(self, *tasks: str, state: State = State.SUCCEEDED, run: int = 0) -> None:
        """Run tasks to an ending."""
        for task in tasks:
            started = await self.begin(task, run)
            self.same(type(started), Started, f"{task} starts")
            end = End(task, run, TOKEN, state, task.encode())
            self.same(await self.do(end), Ended(), f"{task} ends")

    async def node(self, node: str) -> Node:
        """Return a row, which must exist."""
        found = (await self.store.nodes([node]))[0]
        if found is None:
            raise ContractError(f"a row {node}", "none", "TaskStore.nodes")
        return found

    async def states(self, *nodes: str) -> list[str]:
        """Return the states of rows."""
        return [(await self.node(node)).state.value for node in nodes]
