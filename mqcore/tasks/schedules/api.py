"""`Tasks.schedules`: the schedules of an application, in its code and at run time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from mqcore.errors import ConfigurationError, MqcoreError
from mqcore.log import log
from mqcore.rules.checks import check_options, closest, described
from mqcore.tasks.calls import Call
from mqcore.tasks.job import Job
from mqcore.tasks.schedules.calls import plan_of, rows_of_call, text_of
from mqcore.tasks.schedules.definition import Missed, Overlap
from mqcore.tasks.schedules.errors import InvalidSchedule
from mqcore.tasks.schedules.manage import ScheduleEntry, Schedules, ScheduleSpec
from mqcore.tasks.schedules.scheduler import Scheduler
from mqcore.tasks.schedules.triggers import Cron, Every, Solar, Trigger
from mqcore.tasks.task import BaseTask

if TYPE_CHECKING:
    from mqcore.tasks.api import Tasks
    from mqcore.tasks.connected import Connected

__all__ = ["ScheduleOptions", "Scheduled", "TaskSchedules"]

T = TypeVar("T", bound=BaseTask[Any, Any])
_AGAIN = 5.0
"""Seconds until schedules that could not be stored at the start are stored again."""


class ScheduleOptions(TypedDict, total=False):
    """The policies of a schedule. All may be left out.

    `missed`: what happens with runs that came due while no scheduler ran. `"once"`, the default:
    one run for all of them. `"skip"`: none, unless it is at most a minute late. `"all"`: each of
    them, at most `limit` (100). `overlap`: what happens when the run before has not ended.
    `"allow"`, the default; `"skip"`: the run is left out; `"queue"`: it waits for that end.
    """

    missed: Missed | str
    limit: int
    overlap: Overlap | str


@dataclass(frozen=True)
class Scheduled:
    """A schedule for `Tasks(..., schedules={name: Scheduled(...)})`.

    `task` is the registered name of a task, whose arguments are `args` and `kwargs`, or a `Call`.
    The policies are those of `ScheduleOptions`.
    """

    task: str | Call[Any]
    trigger: Trigger
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    missed: Missed | str = Missed.ONCE
    limit: int = 100
    overlap: Overlap | str = Overlap.ALLOW


class TaskSchedules:
    """The schedules of `Tasks`.

    Those in the code are stored when a scheduler starts. All methods that await something need the
    app to be connected, and `Tasks` to have a store.
    """

    in_worker = False
    """Whether each worker of this process runs a scheduler: `mqcore worker --scheduler`."""

    def __init__(self, tasks: Tasks, defined: Mapping[str, Scheduled]) -> None:
        """Made by `Tasks`. Raises `ConfigurationError`."""
        self._tasks = tasks
        self._defined: dict[str, Scheduled] = {}
        self._schedulers: list[Scheduler] = []
        for name, scheduled in defined.items():
            self.define(name, scheduled)

    # In code

    def define(self, name: str, scheduled: Scheduled) -> None:
        """Define a schedule in code. Raises `ConfigurationError` for a name that is defined."""
        if not isinstance(scheduled, Scheduled):
            raise InvalidSchedule(
                f"schedule {name!r} is {described(scheduled)}. Write Scheduled(task, trigger), for "
                'instance Scheduled("shop.clean_up", every(30))'
            )
        if name in self._defined:
            raise InvalidSchedule(
                f"two schedules have the name {name!r}. Give one of them another: "
                "@tasks.schedule(..., name=)"
            )
        _check_trigger(name, scheduled.trigger)
        self._defined[name] = scheduled

    def decorator(
        self,
        trigger: Trigger,
        name: str | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: ScheduleOptions,
    ) -> Callable[[T], T]:
        """Return the decorator `@tasks.schedule(...)`."""
        check_options(options, ScheduleOptions, f"tasks {self._tasks.name!r}: schedule")

        def schedule(task: T) -> T:
            if not isinstance(task, BaseTask):
                raise InvalidSchedule(
                    f"@tasks.schedule(...) takes a task, not {described(task)}. Write it above "
                    "@tasks.task()"
                )
            call: Call[Any] = Call(self._tasks, task.plan(tuple(args), dict(kwargs)))
            self.define(name or task.name, Scheduled(call, trigger, **options))
            return task

        return schedule

    def specs(self) -> dict[str, ScheduleSpec]:
        """Return what the code defines. Raises `ConfigurationError` for an unknown task."""
        self._tasks.load()
        return {name: self.spec(name) for name in self._defined}

    @property
    def names(self) -> Sequence[str]:
        """The names of the schedules that the code defines."""
        return [*self._defined]

    def spec(self, name: str) -> ScheduleSpec:
        """Return one that the code defines. Raises `ConfigurationError` for an unknown task."""
        scheduled = self._defined[name]
        call = scheduled.task
        if isinstance(call, str):
            task = self._tasks.find(call)
            if task is None:
                known = ", ".join(sorted(self._tasks.registered)) or "none"
                close = closest(call, self._tasks.registered)
                hint = f"; did you mean {close!r}?" if close else "."
                raise InvalidSchedule(
                    f"schedule {name!r}: there is no task {call!r}{hint} The registered ones are: "
                    f"{known}. Name its module in Tasks(include=[...]), or correct the name"
                )
            call = Call(self._tasks, task.plan(tuple(scheduled.args), dict(scheduled.kwargs)))
        options: ScheduleOptions = {
            "missed": scheduled.missed,
            "limit": scheduled.limit,
            "overlap": scheduled.overlap,
        }
        return _spec(name, scheduled.trigger, call, options)

    # At run time

    async def list(self) -> list[ScheduleEntry]:
        """Return all schedules of the store, by name."""
        return await self._manager().list()

    async def get(self, name: str) -> ScheduleEntry:
        """Return a schedule. Raises `UnknownSchedule`."""
        return await self._manager().get(name)

    async def put(
        self, name: str, trigger: Trigger, call: Call[Any], **options: Unpack[ScheduleOptions]
    ) -> ScheduleEntry:
        """Create a schedule, or replace what it is, for instance one for each user.

        A paused one stays paused, and its next instant changes only when its trigger does. One that
        the code defines is what the code says again when a scheduler starts. Raises
        `InvalidSchedule`.
        """
        check_options(options, ScheduleOptions, f"schedule {name!r}")
        return await self._manager().put(name, _spec(name, trigger, call, options))

    async def pause(self, name: str) -> ScheduleEntry:
        """Stop firing a schedule until it is resumed. Raises `UnknownSchedule`."""
        return await self._manager().pause(name)

    async def resume(self, name: str) -> ScheduleEntry:
        """Fire a schedule again; its next instant follows from now. Raises `UnknownSchedule`.

        What fell due while it was paused is not made up for.
        """
        return await self._manager().resume(name)

    async def remove(self, name: str) -> None:
        """Remove a schedule. Tasks that it has sent go on. Raises `UnknownSchedule`."""
        await self._manager().remove(name)

    async def run(self, name: str) -> Job[Any]:
        """Send the task of a schedule now, also of a paused one. Raises `UnknownSchedule`.

        The next instant stays as it is.
        """
        manager = self._manager()
        root = await manager.run(name)
        return Job(self._tasks, root, plan_of((await manager.get(name)).call))

    def _manager(self) -> Schedules:
        connected = self._tasks.connected()
        return Schedules(
            connected.store,
            rows=rows_of_call,
            publish=connected.writer.publish,
            clock=connected.clock,
            changed=self._wake,
        )

    def _wake(self) -> None:
        for scheduler in self._schedulers:
            scheduler.wake()

    # The scheduler

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Run a scheduler while the block is open, beside any number of others.

        Raises `ConfigurationError` when the code defines a schedule that cannot work.
        """
        connected, specs = self._tasks.connected(), self.specs()
        scheduler = Scheduler(
            connected.store,
            rows=rows_of_call,
            publish=connected.writer.publish,
            clock=connected.clock,
        )
        self._schedulers.append(scheduler)
        running = asyncio.create_task(self._run(connected, scheduler, specs))
        try:
            yield
        finally:
            self._schedulers.remove(scheduler)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(
        self, connected: Connected, scheduler: Scheduler, specs: Mapping[str, ScheduleSpec]
    ) -> None:
        while True:
            try:
                await self._manager().declare(self._tasks.name, specs)
                break
            except MqcoreError as error:
                log().warning(
                    "scheduler: the schedules of tasks %r cannot be stored: %s. It is tried again "
                    "in %g s",
                    self._tasks.name,
                    error,
                    _AGAIN,
                )
            await connected.clock.sleep(_AGAIN)
        await scheduler.run()


def _check_trigger(name: str, trigger: object) -> None:
    if not isinstance(trigger, Every | Cron | Solar):
        raise InvalidSchedule(
            f"schedule {name!r}: {described(trigger)} does not say when. Write every(30), "
            'cron("30 7 * * 1", tz="Europe/Oslo") or solar("sunset", lat, lon)'
        )


def _spec(name: str, trigger: Trigger, call: object, options: ScheduleOptions) -> ScheduleSpec:
    _check_trigger(name, trigger)
    if not isinstance(call, Call):
        raise InvalidSchedule(
            f"schedule {name!r} sends {described(call)}. Give it a call with all its arguments, "
            "for instance clean_up.s(7)"
        )
    try:
        missed = Missed(options.get("missed", Missed.ONCE))
        overlap = Overlap(options.get("overlap", Overlap.ALLOW))
    except ValueError as error:
        raise InvalidSchedule(
            f'schedule {name!r}: {error}. missed= is "once", "skip" or "all", and overlap= is '
            '"allow", "skip" or "queue"'
        ) from error

    limit = options.get("limit", 100)
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise ConfigurationError(
            f"schedule {name!r}: limit= takes a number, not {described(limit)}"
        )
    return ScheduleSpec(trigger, text_of(call.plan, name), missed, limit, overlap)
