"""The scheduler: fires what is due, in any number of processes, each instant once (T11).

No process leads. A schedule moves on by a change that names its version, in one transaction with
the rows of its task, whose id follows from the planned instant. The second of two schedulers finds
another version and does nothing. A scheduler that dies between any two steps has either done all of
it or nothing; what it has not published is published by a relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from mqcore.errors import MqcoreError
from mqcore.log import log
from mqcore.tasks.model.outcomes import Fired
from mqcore.tasks.schedules.definition import Definition, Overlap, decode
from mqcore.tasks.schedules.due import Step, fires_of, step_of
from mqcore.tasks.store.seam import StoreError

if TYPE_CHECKING:
    from mqcore.clock import Clock
    from mqcore.tasks.model.changes import Fire
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.store.seam import Schedule, TaskStore

__all__ = ["LOOK_EVERY", "MakeRows", "Publish", "Scheduler"]

LOOK_EVERY = 5.0
"""Seconds after which a change that another process has made is noticed."""
_OPEN_RUN = 1.0
"""Seconds until the next look at a run that a queued one waits for."""
_AGAIN = 60.0
"""Seconds until a schedule that cannot be fired here is tried again."""
_LONGEST_WAIT = 30.0
"""Of the growing waits for a store that is away."""
_AT_ONCE = 100
"""Schedules that move on in one transaction."""
_SET_BACK = 3_600.0
"""Seconds by which clocks may differ before a next instant that is too late is reported."""

Publish = Callable[[Sequence[str]], Awaitable[None]]
"""Publishes outbox entries by their keys. What it does not publish, a relay does."""


class MakeRows(Protocol):
    """Makes the rows of a task from the text of a call. Raises `MqcoreError` when it cannot."""

    def __call__(self, call: str, root: str, /) -> Sequence[Node]:
        """Return the rows, the root first, under this id."""


class Scheduler:
    """Fires the schedules of a store.

    `rows` makes the rows of a call, and `publish` publishes what was written. `look_every` is how
    soon it notices what other processes have changed.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        rows: MakeRows,
        publish: Publish,
        clock: Clock | None = None,
        look_every: float = LOOK_EVERY,
    ) -> None:
        """Do nothing yet; `run` starts it."""
        self._store = store
        self._rows = rows
        self._publish = publish
        self._clock = clock or store.clock
        self._look_every = look_every

        self._known: dict[str, Schedule] = {}
        self._read_at: float | None = None
        """When all schedules were read; None: read them now."""
        self._later: dict[str, tuple[int, float]] = {}
        """Until when a schedule of this version is left alone."""
        self._made: list[str] = []
        """Outbox keys that are to be published."""
        self._changed = asyncio.Event()
        self._has_made = asyncio.Event()
        self._warned: set[tuple[str, int]] = set()
        self._looked_at = 0.0
        self._looked_at_versions: dict[str, int] = {}

    async def run(self) -> None:
        """Fire until it is cancelled. An error of the store ends nothing: it is tried again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish_all())
            tasks.create_task(self._fire_all())

    def wake(self) -> None:
        """Read the schedules now: this process has changed one."""
        self._read_at = None
        self._changed.set()

    async def _fire_all(self) -> None:
        failures = 0
        while True:
            self._changed.clear()
            try:
                wait = await self.turn()
                failures = 0
            except StoreError as error:
                self._read_at = None
                wait = min(2.0**failures, _LONGEST_WAIT)
                failures += 1
                log().warning(
                    "scheduler: the task store failed: %s. It is tried again in %g s", error, wait
                )
            except Exception:  # noqa: BLE001 - a defect in one turn must not end all schedules
                self._read_at, wait = None, self._look_every
                log().exception("scheduler: a turn failed; it is tried again in %g s", wait)

            if self._made:
                self._has_made.set()
            with suppress(TimeoutError):
                async with self._clock.timeout(max(wait, 0.0)):
                    await self._changed.wait()

    async def _publish_all(self) -> None:
        while True:
            await self._has_made.wait()
            self._has_made.clear()
            try:
                await self.publish_made()
            except Exception as error:  # noqa: BLE001 - whatever it was, the outbox has the rest
                log().warning(
                    "scheduler: publishing failed: %s. The relay of a worker publishes it", error
                )

    # One turn

    async def turn(self) -> float:
        """Fire what is due, and return the seconds until the next turn."""
        await self._read()
        now = self._clock.now()

        due = sorted(
            (each for each in self._known.values() if self._is_due(each, now)),
            key=lambda each: each.name,  # all schedulers lock the rows in this order
        )
        for start in range(0, len(due), _AT_ONCE):
            await self._move_on(due[start : start + _AT_ONCE], now)
        return self._wait()

    async def publish_made(self) -> None:
        """Publish what the last turns have written."""
        keys, self._made = self._made, []
        if keys:
            await self._publish(keys)

    async def _read(self) -> None:
        now = self._clock.monotonic()
        if self._read_at is not None and now - self._read_at < self._look_every:
            return

        self._read_at = now  # before the call: `wake` may ask for another one meanwhile
        found = await self._store.schedules()
        self._known = {each.name: each for each in found if each.next_at is not None}
        self._later = {
            name: (version, until)
            for name, (version, until) in self._later.items()
            if name in self._known and self._known[name].version == version
        }
        self._look_for_a_clock_set_back()

    def _is_due(self, schedule: Schedule, now: float) -> bool:
        version, until = self._later.get(schedule.name, (0, 0.0))
        is_left_alone = version == schedule.version and self._clock.monotonic() < until
        return schedule.next_at is not None and schedule.next_at <= now and not is_left_alone

    def _wait(self) -> float:
        if self._read_at is None:
            return 0.0
        now, monotonic = self._clock.now(), self._clock.monotonic()
        waits = [self._read_at + self._look_every - monotonic]
        for name, schedule in self._known.items():
            version, until = self._later.get(name, (0, 0.0))
            if version == schedule.version and monotonic < until:
                waits.append(until - monotonic)
            elif schedule.next_at is not None:
                waits.append(schedule.next_at - now)
        return max(min(waits), 0.0)

    async def _move_on(self, due: Sequence[Schedule], now: float) -> None:
        """Move schedules on in one transaction."""
        moved: list[tuple[Schedule, list[Fire], Schedule, Step]] = []
        for schedule in due:
            try:
                step = await self._step(schedule, now)
                if step is not None:
                    definition = decode(schedule)
                    fires, after = fires_of(schedule, definition, step, self._rows)
                    moved.append((schedule, fires, after, step))
            except StoreError:
                raise
            except MqcoreError as error:
                self._leave_alone(schedule, error)
        if not moved:
            return

        applied = await self._store.apply([fire for _, fires, _, _ in moved for fire in fires])
        self._made += applied.keys
        outcomes = iter(applied.outcomes)
        for schedule, fires, after, step in moved:
            answers = [next(outcomes) for _ in fires]
            if answers[0] == Fired():
                self._known[schedule.name] = after
                _report(schedule, step)
            else:  # another scheduler was first, or somebody has changed the schedule
                del self._known[schedule.name]
                self._read_at = None

    async def _step(self, schedule: Schedule, now: float) -> Step | None:
        definition = decode(schedule)
        is_open = await self._is_open(definition)
        if schedule.next_at is None:
            return None
        step = step_of(definition, schedule.next_at, now, is_open=is_open)
        if step is None:
            until = self._clock.monotonic() + _OPEN_RUN
            self._later[schedule.name] = (schedule.version, until)
        return step

    async def _is_open(self, definition: Definition) -> bool:
        if definition.overlap is Overlap.ALLOW or not definition.last.root:
            return False
        node = (await self._store.nodes([definition.last.root]))[0]
        return node is not None and not node.has_ended

    def _leave_alone(self, schedule: Schedule, error: MqcoreError) -> None:
        """Leave a schedule to other processes that may know its task or its library."""
        until = self._clock.monotonic() + _AGAIN
        self._later[schedule.name] = (schedule.version, until)
        if (schedule.name, schedule.version) not in self._warned:
            self._warned.add((schedule.name, schedule.version))
            log().error(
                "schedule %r cannot be fired by this process: %s. It stays due, and another "
                "scheduler may fire it",
                schedule.name,
                error,
            )

    def _look_for_a_clock_set_back(self) -> None:
        """Report schedules that were planned by a clock in the future, when they are first read."""
        now = self._clock.now()
        if now < self._looked_at:
            self._looked_at_versions.clear()
        self._looked_at = now

        for name, schedule in self._known.items():
            if self._looked_at_versions.get(name) == schedule.version:
                continue
            self._looked_at_versions[name] = schedule.version
            with suppress(MqcoreError):  # one that cannot be read is reported when it is due
                _warn_if_far(schedule, now)


def _warn_if_far(schedule: Schedule, now: float) -> None:
    if schedule.next_at is None or schedule.next_at <= now:
        return
    following = decode(schedule).trigger.following(now + _SET_BACK, schedule.next_at)
    if following < schedule.next_at:
        log().warning(
            "schedule %r: its next run is %.0f s from now, later than its next instants, because a "
            "clock was in the future when it was planned. It waits until then, so that no instant "
            "fires twice. `mqcore schedule resume %s` plans it again from now",
            schedule.name,
            schedule.next_at - now,
            schedule.name,
        )


def _report(schedule: Schedule, step: Step) -> None:
    if step.fired:
        log().info("schedule %r: %d sent", schedule.name, len(step.fired))
    else:
        log().info("schedule %r: a run is left out", schedule.name)
