"""Lists and changes the schedules of a store, while schedulers run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mqcore.clock import Clock
from mqcore.log import log
from mqcore.tasks.calls import shown
from mqcore.tasks.model.changes import Fire
from mqcore.tasks.model.outcomes import Fired
from mqcore.tasks.schedules.calls import plan_of
from mqcore.tasks.schedules.definition import (
    Definition,
    Last,
    Missed,
    Overlap,
    Status,
    decode,
    encode,
    run_id,
)
from mqcore.tasks.schedules.errors import InvalidSchedule, UnknownSchedule
from mqcore.tasks.schedules.triggers import Trigger, instant_of
from mqcore.tasks.store.seam import Schedule, TaskStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.schedules.scheduler import MakeRows, Publish

__all__ = ["ScheduleEntry", "ScheduleSpec", "Schedules"]

_LONGEST_NAME = 200
_MOST_INSTANTS = 1_000


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """What a schedule is to be: when, what, and its policies."""

    trigger: Trigger
    call: str
    missed: Missed = Missed.ONCE
    limit: int = 100
    overlap: Overlap = Overlap.ALLOW

    def of(self, definition: Definition) -> Definition:
        """Return a stored definition with this in it."""
        return replace(
            definition,
            trigger=self.trigger,
            call=self.call,
            missed=Missed(self.missed),
            limit=self.limit,
            overlap=Overlap(self.overlap),
        )


@dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """A schedule as it is stored now."""

    name: str
    trigger: Trigger
    call: str
    missed: Missed
    limit: int
    overlap: Overlap
    is_paused: bool
    owner: str
    """Whose code defines it; empty for one that was made at run time."""
    next_at: datetime | None
    """The next instant, None while it is paused. One in the past waits for a scheduler."""
    last_at: datetime | None
    """The instant of the last run."""
    last_task: str
    """The id of that run's task; empty when there was none."""
    skipped_at: datetime | None
    """The last instant that was left out."""

    @property
    def task(self) -> str:
        """What it sends, without the arguments, which may be secrets."""
        return shown(plan_of(self.call))

    def instants(self, count: int = 10, *, after: datetime | None = None) -> list[datetime]:
        """Return the next instants, also of a paused schedule; with `after`, those later than it.

        Raises `InvalidSchedule` for an `after` without a time zone.
        """
        if not 1 <= count <= _MOST_INSTANTS:
            raise InvalidSchedule(f"instants({count}): a number from 1 to {_MOST_INSTANTS:,}")
        planned = None if self.next_at is None else self.next_at.timestamp()

        if after is not None:
            moment = instant_of(after, "instants(after=)")
        elif planned is not None:
            found = [planned]
            while len(found) < count:
                found.append(self.trigger.following(found[-1], planned))
            return [_time(each) for each in found]
        else:
            moment = datetime.now(UTC).timestamp()

        found = []
        while len(found) < count:
            moment = self.trigger.following(moment, planned)
            planned = moment if planned is None else planned
            found.append(moment)
        return [_time(each) for each in found]


class Schedules:
    """The schedules of a store. Every method may be called beside schedulers and other programs.

    `rows` makes the rows of a call, and `publish` publishes what was written. `changed` is called
    after each change: the scheduler of this process need not wait for its next look.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        rows: MakeRows,
        publish: Publish,
        clock: Clock | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._rows = rows
        self._publish = publish
        self._clock = clock or store.clock
        self._changed = changed

    async def list(self) -> list[ScheduleEntry]:
        """Return all schedules, by name, without those that another version has written."""
        found = []
        for schedule in await self._store.schedules():
            try:
                entry = _entry(schedule, decode(schedule))
            except InvalidSchedule as error:
                log().warning("%s", error)
                continue
            if entry is not None:
                found.append(entry)
        return found

    async def get(self, name: str) -> ScheduleEntry:
        """Return a schedule. Raises `UnknownSchedule`."""
        schedule, definition = await self._find(name)
        entry = _entry(schedule, definition)
        if entry is None:
            raise UnknownSchedule(_unknown(name))
        return entry

    async def put(self, name: str, spec: ScheduleSpec, *, owner: str = "") -> ScheduleEntry:
        """Create a schedule, or replace what it is.

        A paused one stays paused. Its next instant changes only when its trigger does. Raises
        `InvalidSchedule` for a name that cannot be used.
        """
        _check_name(name)
        while True:
            known = await self._stored(name)
            if known is None:
                definition = spec.of(Definition(spec.trigger, spec.call, owner=owner))
                changed = Schedule(name, 0, spec.trigger.following(self._clock.now()))
            else:
                definition, changed = self._replaced(known, spec, owner)
            if changed.next_at == (known and known.next_at) and definition == (
                known and decode(known)
            ):
                return await self.get(name)
            if await self._change(changed, definition):
                return await self.get(name)

    def _replaced(
        self, known: Schedule, spec: ScheduleSpec, owner: str
    ) -> tuple[Definition, Schedule]:
        before = decode(known)
        definition = replace(spec.of(before), owner=owner)
        if before.status is Status.REMOVED:
            definition = replace(definition, status=Status.ACTIVE, last=Last())

        is_planned = before.status is not Status.ACTIVE or definition.trigger != before.trigger
        next_at = known.next_at
        if is_planned and definition.status is Status.ACTIVE:
            next_at = definition.trigger.following(self._clock.now())
        return definition, replace(known, next_at=next_at)

    async def declare(self, owner: str, specs: Mapping[str, ScheduleSpec]) -> None:
        """Store the schedules that the code of `owner` defines, and remove those it had before.

        One that another version has written stays as it is, with an error in the log.
        """
        for name, spec in specs.items():
            try:
                await self.put(name, spec, owner=owner)
            except InvalidSchedule as error:
                log().error("%s", error)
        for entry in await self.list():
            if entry.owner == owner and entry.name not in specs:
                await self.remove(entry.name)

    async def pause(self, name: str) -> ScheduleEntry:
        """Stop firing a schedule until it is resumed. Raises `UnknownSchedule`."""
        await self._set(name, Status.PAUSED)
        return await self.get(name)

    async def resume(self, name: str) -> ScheduleEntry:
        """Fire a schedule again. Its next instant follows from now, also if it was not paused.

        What fell due while it was paused is not made up for. Raises `UnknownSchedule`.
        """
        await self._set(name, Status.ACTIVE)
        return await self.get(name)

    async def remove(self, name: str) -> None:
        """Remove a schedule. Tasks that it has sent are not cancelled. Raises `UnknownSchedule`."""
        await self._set(name, Status.REMOVED)

    async def run(self, name: str) -> str:
        """Send the task of a schedule now, also of a paused one, and return the id of the task.

        The next instant stays as it is. Raises `UnknownSchedule`.
        """
        while True:
            schedule, definition = await self._find(name)
            root = run_id(name, schedule.version)
            rows = self._rows(definition.call, root)
            last = replace(definition.last, planned=self._clock.now(), root=root)
            if await self._change(schedule, replace(definition, last=last), rows):
                return root

    async def _set(self, name: str, status: Status) -> None:
        while True:
            schedule, definition = await self._find(name)
            if status is definition.status is Status.PAUSED:
                return
            next_at = None
            if status is Status.ACTIVE:
                next_at = definition.trigger.following(self._clock.now())
            changed = replace(definition, status=status)
            if await self._change(replace(schedule, next_at=next_at), changed):
                return

    async def _change(
        self, schedule: Schedule, definition: Definition, rows: Sequence[Node] = ()
    ) -> bool:
        """Make a change, unless a scheduler or another program was first."""
        fire = Fire(schedule.name, schedule.version, schedule.next_at, rows, encode(definition))
        applied = await self._store.apply([fire])
        if applied.keys:
            await self._publish(applied.keys)
        is_made = applied.outcomes[0] == Fired()
        if is_made:
            self._changed()
        return is_made

    async def _find(self, name: str) -> tuple[Schedule, Definition]:
        known = await self._stored(name)
        if known is None or (definition := decode(known)).status is Status.REMOVED:
            raise UnknownSchedule(_unknown(name, await self._names()))
        return known, definition

    async def _stored(self, name: str) -> Schedule | None:
        found: Iterable[Schedule] = await self._store.schedules()
        return next((each for each in found if each.name == name), None)

    async def _names(self) -> Sequence[str]:
        return [entry.name for entry in await self.list()]


def _entry(schedule: Schedule, definition: Definition) -> ScheduleEntry | None:
    if definition.status is Status.REMOVED:
        return None
    last = definition.last
    return ScheduleEntry(
        name=schedule.name,
        trigger=definition.trigger,
        call=definition.call,
        missed=definition.missed,
        limit=definition.limit,
        overlap=definition.overlap,
        is_paused=definition.status is Status.PAUSED,
        owner=definition.owner,
        next_at=None if schedule.next_at is None else _time(schedule.next_at),
        last_at=None if last.planned is None else _time(last.planned),
        last_task=last.root,
        skipped_at=None if last.skipped is None else _time(last.skipped),
    )


def _time(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise InvalidSchedule(
            f"a schedule cannot be named {name!r:.60}: a name has 1 to {_LONGEST_NAME} printable "
            "characters"
        )


def _unknown(name: str, names: Sequence[str] = ()) -> str:
    known = f"there are: {', '.join(names)}" if names else "there are none yet"
    return f"there is no schedule {name!r:.100} in this store; {known}"
