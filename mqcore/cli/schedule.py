"""`mqcore schedule`: list, show, pause, resume and run schedules. `mqcore scheduler` fires them."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from mqcore.app import App
from mqcore.cli.common import LONELY, At, Json, load_app
from mqcore.cli.logs import json_stream, logging_set_up
from mqcore.cli.options import DefaultToList, command
from mqcore.cli.output import ago, iso, print_facts, print_json, print_table, span
from mqcore.cli.tasks_of import Target, connected_to, stored_tasks, with_store
from mqcore.config.settings import Settings
from mqcore.errors import ConfigurationError
from mqcore.running.signals import call_at_stop_signals
from mqcore.tasks.api import Tasks
from mqcore.tasks.job import Job
from mqcore.tasks.schedules.calls import rows_of_call
from mqcore.tasks.schedules.manage import ScheduleEntry, Schedules
from mqcore.tasks.schedules.triggers import Cron
from mqcore.tasks.store.seam import TaskStore

__all__ = ["app", "scheduler"]

_NEXT = 10
_COLUMNS = ("schedule", "when", "next", "in", "last run")

Name = Annotated[
    str, typer.Argument(metavar="SCHEDULE", help="The schedule's name.", show_default=False)
]

app = typer.Typer(
    name="schedule",
    cls=DefaultToList,
    help="Schedules of tasks: list, show, pause, resume, run and remove them. Only `run` needs the "
    "broker.",
)


def list_schedules(target: Target, *, json: Json = False) -> None:
    """List the schedules in the store of an app's tasks."""
    entries = with_store(target, lambda _, store: _schedules(store).list())
    if json:
        print_json([_data(entry) for entry in entries])
    else:
        rows = [_cells(entry) for entry in entries]
        empty = "no schedules are stored; those in the code are stored when a scheduler starts"
        print_table(_COLUMNS, rows, empty=empty)


def show(
    target: Target,
    schedule: Name,
    *,
    count: Annotated[
        int, typer.Option("--next", min=1, max=1_000, help="How many next instants are shown.")
    ] = _NEXT,
    json: Json = False,
) -> None:
    """Show a schedule with its next instants."""
    entry = with_store(target, lambda _, store: _schedules(store).get(schedule))
    instants = entry.instants(count)
    if json:
        print_json(_data(entry) | {"next_instants": [_iso(each) for each in instants]})
        return

    limit = f", at most {entry.limit}" if entry.missed == "all" else ""
    name, when, next_at, wait, _ = _cells(entry)
    facts = {
        "schedule": name,
        "when": when,
        "sends": entry.task,
        "next": next_at,
        "in": wait,
        "last run": _local(entry, entry.last_at),
        "last task": entry.last_task or None,
        "last skipped": _local(entry, entry.skipped_at),
        "missed runs": f"{entry.missed}{limit}",
        "overlap": entry.overlap,
        "defined by": f"the code of {entry.owner}" if entry.owner else "a call at run time",
    }
    print_facts(facts)
    print("next instants" if not entry.is_paused else "instants if it were resumed")
    for each in instants:
        print(f"  {_local(entry, each)}")


def pause(target: Target, name: Name, *, json: Json = False) -> None:
    """Stop firing a schedule until it is resumed, also over restarts and deployments."""
    _answer(with_store(target, lambda _, store: _schedules(store).pause(name)), "paused", json=json)


def resume(target: Target, name: Name, *, json: Json = False) -> None:
    """Fire a schedule again. What fell due while it was paused is not made up for."""
    entry = with_store(target, lambda _, store: _schedules(store).resume(name))
    _answer(entry, f"active; the next run is at {_local(entry, entry.next_at)}", json=json)


def remove(target: Target, name: Name, *, json: Json = False) -> None:
    """Remove a schedule. One that the code defines comes back when a scheduler starts."""
    with_store(target, lambda _, store: _schedules(store).remove(name))
    if json:
        print_json({"schedule": name, "removed": True})
    else:
        print(f"{name} is removed")


def run(target: Target, name: Name, at: At) -> None:
    """Send the task of a schedule now. The next instant stays as it is."""

    async def send(tasks: Tasks) -> Job[Any]:
        return await tasks.schedules.run(name)

    job = connected_to(target, at.settings(), send)
    if at.json:
        print_json({"schedule": name, "task": job.id})
    else:
        print(f"{name} is sent as task {job.id}")


command(app, "list", list_schedules)
command(app, "show", show)
command(app, "pause", pause)
command(app, "resume", resume)
command(app, "run", run)
command(app, "remove", remove)


def _schedules(store: TaskStore) -> Schedules:
    async def publish(keys: object) -> None:
        """Nothing is sent by what needs no broker."""

    return Schedules(store, rows=rows_of_call, publish=publish)


def _answer(entry: ScheduleEntry, text: str, *, json: bool) -> None:
    if json:
        print_json(_data(entry))
    else:
        print(f"{entry.name} is {text}")


def _cells(entry: ScheduleEntry) -> tuple[object, ...]:
    wait = None
    if entry.next_at is not None:
        seconds = entry.next_at.timestamp() - time.time()
        wait = span(seconds) if seconds > 0 else "due"
    next_at = "paused" if entry.is_paused else _local(entry, entry.next_at)
    last = None if entry.last_at is None else f"{ago(entry.last_at.timestamp())} ago"
    return entry.name, str(entry.trigger), next_at, wait, last


def _local(entry: ScheduleEntry, moment: datetime | None) -> str | None:
    """Return a time in the time zone of its schedule."""
    if moment is None:
        return None
    zone = ZoneInfo(entry.trigger.tz) if isinstance(entry.trigger, Cron) else UTC
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %Z")


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else iso(moment.timestamp())


def _data(entry: ScheduleEntry) -> dict[str, object]:
    return {
        "schedule": entry.name,
        "when": str(entry.trigger),
        "task": entry.task,
        "paused": entry.is_paused,
        "next": _iso(entry.next_at),
        "last": _iso(entry.last_at),
        "last_task": entry.last_task or None,
        "last_skipped": _iso(entry.skipped_at),
        "missed": entry.missed,
        "limit": entry.limit,
        "overlap": entry.overlap,
        "defined_by": entry.owner or None,
    }


# mqcore scheduler


def scheduler(target: Target, at: At) -> int:
    """Fire the schedules of an app's tasks until SIGTERM or Ctrl-C.

    Any number of schedulers may run: each planned instant is sent once. `mqcore worker --scheduler`
    does the same inside a worker.
    """
    settings = at.settings()
    with json_stream(enabled=at.json) as stream:
        loaded = load_app(target)
        stored = stored_tasks(loaded)
        with logging_set_up(stream if at.json else None):
            return asyncio.run(_schedule(loaded, stored, settings))


async def _schedule(loaded: App, stored: Any, settings: Settings) -> int:
    async with loaded.connect(settings=settings) as broker, AsyncExitStack() as stack:
        if broker.is_local:
            raise ConfigurationError(LONELY)
        for tasks in stored:
            await stack.enter_async_context(tasks.schedules.serve())
            names = ", ".join(tasks.schedules.specs()) or "none in the code"
            print(f"scheduler of tasks {tasks.name}: {names}", file=sys.stderr)

        stopped = asyncio.Event()
        with call_at_stop_signals(stopped.set, asyncio.get_running_loop()):
            await stopped.wait()
    return 0
