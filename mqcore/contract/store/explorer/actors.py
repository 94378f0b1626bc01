"""The step machines. Each `yield` is a step: a call of the store, or a moment for others.

A machine that dies is simply not continued. What it holds is in its `Actor`, so that the broker
gives that to another worker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mqcore.contract.store.explorer.checks import check_order
from mqcore.contract.store.explorer.plans import TICK, random_plan, tick_id
from mqcore.contract.store.explorer.world import Copy, World
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
    Recover,
    Replace,
    Sent,
    Spread,
)
from mqcore.tasks.model.nodes import Kind, Node, replacement_id
from mqcore.tasks.model.outcomes import (
    Added,
    Asked,
    Busy,
    Cancelled,
    Conflict,
    Ended,
    Fired,
    Ok,
    Outcome,
    Refused,
    Started,
    Terminal,
    Unknown,
)
from mqcore.tasks.model.states import State
from mqcore.tasks.store.seam import Applied, Pending, Schedule
from mqcore.tasks.store.values import value_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Actor", "Actors", "Steps"]

Steps = Generator[Awaitable[Any] | None, Any, Any]

_MOST_DEATHS = 2
"""A message that has killed this many workers is dead-lettered without a run."""
_LATE = 60.0
"""Seconds after which a task that should have been ready counts as lost."""


@dataclass(eq=False)
class Actor:
    """One running step machine, and what it holds."""

    name: str
    steps: Steps
    held: Copy | None = None
    answer: Any = None
    """What the last step returned."""
    is_batch_sender: bool = False


class Actors:
    """Makes the step machines of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = world.store
        self._number = 0

    def _new_name(self, what: str) -> str:
        self._number += 1
        return f"{what}{self._number}"

    # Calls of the store

    def apply(self, *changes: Change) -> Generator[Any, Any, Applied]:
        """Make changes: one step."""
        applied: Applied = yield self._apply(changes)
        return applied

    async def _apply(self, changes: Sequence[Change]) -> Applied:
        """Make changes, and note the answer even if the machine dies before it reads it."""
        applied = await self.store.apply(changes)
        for change, outcome in zip(changes, applied.outcomes, strict=True):
            self._observe(change, outcome)
        self.world.made.update(applied.keys)
        return applied

    def _observe(self, change: Change, outcome: Outcome) -> None:
        """Check each answer against those before it."""
        world = self.world
        if world.is_logged:
            world.note(f"{_shown(change)} -> {_shown(outcome)}")

        match change, outcome:
            case (Add(rows=rows), Added()) | ((More(rows=rows) | Replace(rows=rows)), Ok()):
                world.nodes.update((row.id, row) for row in rows)
            case Fire(rows=rows), Fired() if rows:
                world.ticks[rows[0].id] += 1
                world.nodes.update((row.id, row) for row in rows)
            case ((End() | Gone()), Ended()):
                self._observe_ending(change)
            case Back(), (Ok() | Cancelled()):
                self._check_token(change.task, change.token)
                world.running.pop(change.task, None)
            case Begin(), Terminal(state=state):
                self._observe_terminal(change, state)
            case Begin(), Started():
                self._observe_start(change)
                if world.is_below_cancelled(change.task):
                    world.fail(f"{change.task} does not start: it was cancelled", outcome)
            case Cancel(node=node), (Cancelled() | Asked()):
                world.cancelled.append(node)

    def _observe_start(self, change: Begin) -> None:
        world, task = self.world, change.task
        if not change.is_redelivered and world.is_running(task, change.run):
            world.fail(f"{task} is left to {world.running[task][1]}, which is alive", change)
        world.running[task] = (change.run, change.worker)

    def _check_token(self, task: str, token: str) -> None:
        """Check that the attempt is the newest one. Its token is the name of its worker."""
        known = self.world.running.get(task)
        if known is not None and known[1] != token:
            self.world.fail(f"{task} is left by {known[1]}, which holds it", token)

    def _observe_ending(self, change: End | Gone) -> None:
        world, ending = self.world, (change.task, change.run)
        if ending in world.endings:
            world.fail(f"{ending} ends once", f"{world.endings[ending]}, {change.state}")
        world.endings[ending] = change.state

        if isinstance(change, End):
            self._check_token(change.task, change.token)
        if isinstance(change, Gone) and world.is_running(change.task, change.run):
            worker = world.running[change.task][1]
            world.fail(f"{change.task} goes on: {worker} is alive and runs it", change)
        world.running.pop(change.task, None)

    def _observe_terminal(self, change: Begin, state: State) -> None:
        known = self.world.endings.get((change.task, change.run))
        if known is not None and known is not state and state is not State.DELEGATED:
            self.world.fail(f"{change.task} is {known} as before", state)
        if known is None and state in {State.FAILED, State.EXPIRED}:
            self.world.fail(f"{change.task} starts its run {change.run}", state)

    def publish(self, keys: Sequence[str]) -> Steps:
        """Publish what the outbox has under these keys, slice by slice, then remove it there."""
        waiting = list(keys)
        while waiting:
            entries: Sequence[Pending] = yield self.store.entries(waiting)
            waiting = []
            for entry in entries:
                waiting += yield from self._publish(entry)

    def _publish(self, pending: Pending) -> Generator[Any, Any, Sequence[str]]:
        entry, node = pending.entry, pending.node
        if entry.start is not None:
            applied = yield from self.apply(Spread(entry.node, entry.start))
            return applied.keys
        if node is not None:
            self.world.publish(Copy(entry.key, entry.node, entry.run, node.name))
            yield None
        yield from self.apply(Sent([entry.key]))
        return ()

    # Senders and others outside a worker

    def sender(self, rows: Sequence[Node], batches: Sequence[More] = ()) -> Actor:
        """Send a workflow; with batches its first group is sent piece by piece."""

        def steps() -> Steps:
            applied = yield from self.apply(Add(rows))
            if isinstance(applied.outcomes[0], Conflict):
                return
            yield from self._check_unique(rows[0])
            yield from self.publish(applied.keys)
            for batch in batches:
                applied = yield from self.apply(batch)
                yield from self.publish(applied.keys)

        return Actor(self._new_name("sender"), steps(), is_batch_sender=bool(batches))

    def _check_unique(self, root: Node) -> Steps:
        """Check that no other open task has the unique key of a task that was added."""
        if not root.unique:
            return
        others = [other for other in self.world.unique if other != root.id]
        self.world.unique.append(root.id)
        for other in (yield self.store.nodes(others)):
            if not other.has_ended:
                self.world.fail(f"one open task with the key of {root.id}", f"{other.id} is open")

    def relay(self) -> Actor:
        """Publish what others left in the outbox."""

        def steps() -> Steps:
            found: Sequence[Pending] = yield self.store.outbox()
            for entry in found:
                keys = yield from self._publish(entry)
                yield from self.publish(keys)

        return Actor(self._new_name("relay"), steps())

    def canceller(self, node: str) -> Actor:
        """Cancel a node."""

        def steps() -> Steps:
            applied = yield from self.apply(Cancel(node, "cancelled"))
            yield from self.publish(applied.keys)

        return Actor(self._new_name("canceller"), steps())

    def redriver(self, copy: Copy) -> Actor:
        """Send a dead letter back to its queue, for the next run: a Move."""

        def steps() -> Steps:
            fresh = replace(copy, run=copy.run + 1, attempt=1, deaths=0, is_redelivered=False)
            self.world.ready.append(fresh)
            yield None
            if copy in self.world.dead_letters:
                self.world.dead_letters.remove(copy)

        return Actor(self._new_name("redriver"), steps())

    def reconciler(self) -> Actor:
        """Publish again what seems to be lost, and give up groups whose sender died."""

        def steps() -> Steps:
            before = self.world.clock.time - _LATE
            suspects: Sequence[str] = yield self.store.suspects(before)
            for node in suspects:
                applied = yield from self.apply(Recover(node, before))
                yield from self.publish(applied.keys)

        return Actor(self._new_name("reconciler"), steps())

    def scheduler(self) -> Actor:
        """Fire the schedule once if it is due, or create it."""

        def steps() -> Steps:
            found: Sequence[Schedule] = yield self.store.schedules()
            now = self.world.clock.time
            if not found:
                yield from self.apply(Fire("ticks", 0, now + TICK, definition=b"%d" % now))
            elif found[0].next_at is not None and found[0].next_at <= now:
                yield from self._tick(found[0], found[0].next_at)

        return Actor(self._new_name("scheduler"), steps())

    def _tick(self, schedule: Schedule, planned: float) -> Steps:
        rows = rows_of(random_plan(self.world.choose, 1), tick_id(planned))
        fire = Fire(schedule.name, schedule.version, planned + TICK, rows)
        applied = yield from self.apply(fire)
        yield from self.publish(applied.keys)

    # Workers

    def worker(self, copy: Copy) -> Actor:
        """Handle one message."""
        name = self._new_name("worker")
        actor = Actor(name, iter(()), copy)  # type: ignore[arg-type]  # replaced in the next line
        actor.steps = self._handle(actor, copy)
        return actor

    def _handle(self, actor: Actor, copy: Copy) -> Steps:
        yield self.world.beat(actor.name)
        if copy.deaths >= _MOST_DEATHS:
            yield from self._gone(actor, copy, State.FAILED)
            return
        if copy.name == "expiring" and copy.run == 0 and drawn(self.world.choose, 0.5):
            yield from self._gone(actor, copy, State.EXPIRED)
            return

        begin = Begin(
            *(copy.task, copy.run, copy.attempt, actor.name, actor.name),
            is_redelivered=copy.is_redelivered,
        )
        applied = yield from self.apply(begin)
        match applied.outcomes[0]:
            case Started(node=node):
                yield from self._run(actor, copy, node)
            case Terminal(state=State.FAILED | State.EXPIRED) | Conflict():
                yield from self._dead_letter(actor, copy)
            case Busy():
                self._postpone(actor, copy)
            case Unknown():
                self.world.fail(f"a row for the message {copy.key}", "Unknown")
        actor.held = None  # acknowledged

    def _gone(self, actor: Actor, copy: Copy, state: State) -> Steps:
        """End a message without a run here, as core's hook does."""
        applied = yield from self.apply(Gone(copy.task, copy.run, state, "gone"))
        if isinstance(applied.outcomes[0], Busy):
            self._postpone(actor, copy)
            return
        yield from self.publish(applied.keys)
        yield from self._dead_letter(actor, copy)
        actor.held = None

    def _release(self, actor: Actor, copy: Copy) -> None:
        if actor.held is not None:
            self.world.redeliver(copy)
        actor.held = None

    def _postpone(self, actor: Actor, copy: Copy) -> None:
        """Store the message as a new one, for later."""
        if actor.held is not None:
            self.world.ready.append(replace(copy, is_redelivered=False))
        actor.held = None

    def _store_successor(self, actor: Actor, again: Copy) -> None:
        if actor.held is not None:
            self.world.store_copy(again)

    def _dead_letter(self, actor: Actor, copy: Copy) -> Steps:
        """Store the dead letter first, then remove the message (G3)."""
        if actor.held is not None:
            self.world.dead_letter(replace(copy))
        yield None
        actor.held = None

    def _run(self, actor: Actor, copy: Copy, node: Node) -> Steps:
        if node.input:
            yield from self._check_input(node)
        yield None

        match copy.name:
            case "poison" if copy.run == 0:
                copy.deaths += 1
                self._release(actor, copy)
                self.world.note(f"{actor.name} is killed by {copy.task}")
                yield self.world.beat(actor.name, ttl=0.0)
            case "broken":
                yield from self._fail(actor, copy)
            case "fail" if copy.run == 0:
                yield from self._fail(actor, copy)
            case "flaky" if copy.attempt == 1:
                again = replace(copy, attempt=2, is_redelivered=False)
                yield from self._later(actor, copy, again, State.RETRYING)
            case "postponed" if not copy.is_postponed:
                again = replace(copy, is_postponed=True, is_redelivered=False)
                yield from self._later(actor, copy, again, State.QUEUED)
            case "replaced" if copy.task.count("~") < _MOST_DEATHS:
                yield from self._replace(actor, copy)
            case _:
                result = copy.task.encode()
                end = End(copy.task, copy.run, actor.name, State.SUCCEEDED, result)
                yield from self._leave(actor, copy, end)

    def _leave(self, actor: Actor, copy: Copy, change: Change) -> Generator[Any, Any, Outcome]:
        """Leave an attempt; one that has lost its task comes again until that has ended."""
        applied = yield from self.apply(change)
        yield from self.publish(applied.keys)
        if isinstance(applied.outcomes[0], Refused):
            (node,) = yield self.store.nodes([copy.task])
            if node.kind is Kind.TASK and node.run == copy.run and not node.has_ended:
                self._postpone(actor, copy)
            elif node.state in {State.FAILED, State.EXPIRED}:
                yield from self._dead_letter(actor, copy)
        return applied.outcomes[0]

    def _check_input(self, node: Node) -> Steps:
        value = yield value_of(self.store, node.input)
        check_order(self.world, node.input, value)

    def _fail(self, actor: Actor, copy: Copy) -> Steps:
        end = End(copy.task, copy.run, actor.name, State.FAILED, None, "failed")
        outcome = yield from self._leave(actor, copy, end)
        if isinstance(outcome, Ended):
            yield from self._dead_letter(actor, copy)

    def _later(self, actor: Actor, copy: Copy, again: Copy, state: State) -> Steps:
        """Leave the attempt; the row is written first, or the successor of the message."""
        back = Back(copy.task, copy.run, actor.name, state)
        if drawn(self.world.choose, 0.5):
            self._store_successor(actor, again)
            yield None
            applied = yield from self.apply(back)
            yield from self.publish(applied.keys)
            return

        outcome = yield from self._leave(actor, copy, back)
        if isinstance(outcome, Ok):
            self._store_successor(actor, again)
            yield None

    def _replace(self, actor: Actor, copy: Copy) -> Steps:
        plan = random_plan(self.world.choose, 1)
        rows = rows_of(plan, replacement_id(copy.task), copy.task)
        yield from self._leave(actor, copy, Replace(copy.task, copy.run, actor.name, rows))


def _shown(what: Change | Outcome) -> str:
    """Return a line of the log without whole rows."""
    fields = [
        f"{name}={value}"
        for name in what.__slots__
        if not isinstance(value := getattr(what, name), list | Node) and value is not None
    ]
    return f"{type(what).__name__}({', '.join(fields)})"
