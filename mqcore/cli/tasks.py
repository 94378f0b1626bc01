"""`mqcore tasks`: list, show, watch, cancel, retry and send tasks, and inspect their workers.

All but `send` and `retry` read and write the store alone, so they answer while every worker is busy
and while the broker is away.
"""

from __future__ import annotations

import json as json_
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from mqcore.cli import control
from mqcore.cli.check import check
from mqcore.cli.common import At, Json
from mqcore.cli.options import DefaultToList, command
from mqcore.cli.output import ago, escaped, print_facts, print_json, print_table, span
from mqcore.cli.task_rows import (
    ended_tasks,
    info_of,
    is_alive,
    node_data,
    node_facts,
    node_of,
    open_tasks,
    worker_data,
)
from mqcore.cli.tasks_of import Target, connected_to, with_store
from mqcore.cli.watch import watch
from mqcore.errors import ConfigurationError, MqcoreError
from mqcore.rules.checks import check_duration, closest
from mqcore.tasks.api import Tasks
from mqcore.tasks.calls import Call
from mqcore.tasks.job import Job
from mqcore.tasks.model.changes import Cancel
from mqcore.tasks.model.nodes import Kind, Node
from mqcore.tasks.model.outcomes import Terminal, Unknown
from mqcore.tasks.model.states import ENDED, State
from mqcore.tasks.results import value_text
from mqcore.tasks.store.seam import Heartbeat, TaskStore
from mqcore.tasks.task import SendOptions
from mqcore.tasks.transitions.rows import message_key

__all__ = ["app"]

_MOST_MEMBERS = 1_000
_FORGOTTEN = 3_600.0
"""Seconds after which a worker that is gone is not shown any more."""

Id = Annotated[str, typer.Argument(metavar="ID", help="The task's id.", show_default=False)]

app = typer.Typer(
    name="tasks",
    cls=DefaultToList,
    help="Tasks: list, show, watch, cancel, retry and send them, and inspect their workers.",
)


@dataclass(frozen=True)
class Which:
    """Which tasks are listed."""

    state: Annotated[
        list[State] | None, typer.Option(help="Only tasks in this state; may be repeated.")
    ] = None
    name: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only tasks whose name matches.")
    ] = None
    ended: Annotated[
        bool, typer.Option("--ended", help="Those that have ended, in place of the open ones.")
    ] = False
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Ended since then: 2h, 30m, 1d ago, or an ISO time."),
    ] = None
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Ended before then.")] = None
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100

    @property
    def has_ended(self) -> bool:
        """Whether tasks that have ended are listed."""
        return self._only_ended or any(state in ENDED for state in self.state or ())

    @property
    def _only_ended(self) -> bool:
        return self.ended or self.since is not None or self.until is not None

    @property
    def is_open(self) -> bool:
        """Whether open tasks are listed."""
        if self.state:
            return any(state not in ENDED for state in self.state)
        return not self._only_ended

    @property
    def time(self) -> tuple[float, float]:
        """The time in which a task has ended. Raises `ConfigurationError`."""
        after = 0.0 if self.since is None else _moment("--since", self.since)
        return after, (math.inf if self.until is None else _moment("--until", self.until))

    def takes(self, node: Node) -> bool:
        """Whether a row is listed, as far as its name and state decide."""
        is_named = self.name is None or fnmatchcase(node.name or node.kind, self.name)
        return is_named and (not self.state or node.state in self.state)


def list_tasks(target: Target, which: Which, *, json: Json = False) -> None:
    """List tasks: the open ones, or with --ended, --since or an ending as --state those that ended.

    Of what has ended, tasks and workflows are listed, newest first, without their members.
    """
    time_ = which.time

    async def find(_: Tasks, store: TaskStore) -> list[Node]:
        found = await open_tasks(store) if which.is_open else []
        found = [node for node in found if which.takes(node)]
        if which.has_ended:
            found += await ended_tasks(store, time_, which.takes, which.limit + 1)
        return found

    found = with_store(target, find)
    shown = found[: which.limit]
    if json:
        print_json([node_data(node) for node in shown])
        return
    rows = [
        (
            *(it.id, it.name or it.kind, it.state, it.attempt or None),
            *(_wait(it), it.queue or None, it.worker or None),
        )
        for it in shown
    ]
    columns = ("id", "task", "state", "attempt", "since", "queue", "worker")
    print_table(columns, rows, empty="none has ended" if which.has_ended else "no open tasks")
    if len(found) > len(shown):
        print("there are more: --limit")


def _moment(option: str, text: str) -> float:
    """Read a time: so long ago, or an ISO 8601 time with its zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return time.time() - check_duration(option, text, "list")
    if moment.tzinfo is None:
        raise ConfigurationError(f"{option} {text}: the time has no zone; add Z for UTC")
    return moment.timestamp()


def show(target: Target, task: Id, *, json: Json = False) -> None:
    """Show a task or a workflow: state, progress, result or error, and its members."""

    async def read(_: Tasks, store: TaskStore) -> tuple[Node, str | None, Sequence[Node]]:
        node = await node_of(store, task)
        result = None
        if node.state is State.SUCCEEDED:
            try:
                result = await value_text(store, node)
            except MqcoreError as error:
                result = str(error)
        return node, result, await store.children(node.id, 0, min(node.size, _MOST_MEMBERS))

    node, result, members = with_store(target, read)
    if json:
        value = None if result is None else _value(result)
        print_json(
            node_data(node)
            | {"result": value, "members": [node_data(member) for member in members]}
        )
        return

    print_facts(node_facts(node) | ({} if result is None else {"result": result}))
    if members:
        rows = [(it.id, it.name or it.kind, it.state, it.reason or None) for it in members]
        print()
        print_table(("id", "task", "state", "reason"), rows, empty="")


def cancel(
    target: Target,
    task: Id,
    *,
    reason: Annotated[str, typer.Option(help="Why; shown with the task.")] = "by an operator",
    json: Json = False,
) -> None:
    """Cancel a task, or a workflow with all that is open in it.

    What has not started never starts. What runs is asked to stop within five seconds.
    """

    async def ask(_: Tasks, store: TaskStore) -> object:
        applied = await store.apply([Cancel(task, reason)])
        if isinstance(applied.outcomes[0], Unknown):
            await node_of(store, task)  # raises
        return applied.outcomes[0]

    outcome = with_store(target, ask)
    ended = outcome.state if isinstance(outcome, Terminal) else None
    if json:
        print_json({"id": task, "cancelled": ended is None, "ended_as": ended})
    elif ended is None:
        print(f"{task} is being cancelled")
    else:
        print(f"{task} has ended before: {ended}")
    if ended is not None:
        raise typer.Exit(1)


def retry(target: Target, task: Id, at: At) -> None:
    """Run a failed or expired task once more: its dead letter goes back to its queue."""

    async def redrive(tasks: Tasks) -> Mapping[str, str]:
        connected = tasks.connected()
        node = await node_of(connected.store, task)
        if node.state not in {State.FAILED, State.EXPIRED} or node.kind is not Kind.TASK:
            raise ConfigurationError(
                f"task {task} is {node.state}, and only a failed or expired task can be retried"
            )
        letters = connected.broker.dead_letters(tasks.queue(node.queue))
        done = await letters.redrive(ids=[message_key(node)])
        if done.moved:
            return {}
        return dict(done.left) or {message_key(node): "no dead letter has this id"}

    left = connected_to(target, at.settings(), redrive)
    if at.json:
        print_json({"id": task, "retried": not left, "left": left})
    elif left:
        print(f"{task} is not retried: {', '.join(left.values())}")
    else:
        print(f"{task} is sent again")
    if left:
        raise typer.Exit(1)


def send(
    target: Target,
    name: Annotated[
        str, typer.Argument(metavar="TASK", help="Its registered name.", show_default=False)
    ],
    arguments: Annotated[
        str, typer.Argument(metavar="JSON", help="Its arguments by name: '{\"days\": 7}'.")
    ] = "{}",
    *,
    queue: Annotated[str | None, typer.Option(help="Another queue than its own.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=10, help="0 to 10.")] = None,
    delay: Annotated[float, typer.Option(min=0, help="Seconds before it may start.")] = 0.0,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for its result.")] = 0.0,
    at: At,
) -> None:
    """Send a task, and print its id, or with --wait its result."""
    options: SendOptions = {}
    if queue is not None:
        options["queue"] = queue
    if priority is not None:
        options["priority"] = priority
    if delay:
        options["delay"] = delay

    async def work(tasks: Tasks) -> tuple[Job[Any], str | None]:
        job = await _call(tasks, name, arguments, options).send()
        if not wait:
            return job, None
        await job.result(wait)
        connected = tasks.connected()
        return job, await value_text(connected.store, await node_of(connected.store, job.id))

    job, result = connected_to(target, at.settings(), work, wait=wait)
    if at.json:
        print_json({"id": job.id} | ({} if result is None else {"result": _value(result)}))
    else:
        print(job.id if result is None else escaped(result))


def _call(tasks: Tasks, name: str, arguments: str, options: SendOptions) -> Call[Any]:
    task = tasks.find(name)
    if task is None:
        known = ", ".join(sorted(tasks.registered)) or "none"
        close = closest(name, tasks.registered)
        hint = f". Did you mean {close!r}?" if close else ""
        raise ConfigurationError(
            f"no task is registered as {name!r:.100}; registered are: {known}{hint}"
        )
    args, kwargs = task.parameters.decode(arguments)
    return Call(tasks, task.using(**options).plan(args, kwargs))


def inspect(
    target: Target,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Also workers that have been gone for an hour.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the workers: whether they live, what they run and consume, and what they have done."""

    async def read(_: Tasks, store: TaskStore) -> tuple[Sequence[Heartbeat], dict[str, Node]]:
        beats = [
            beat
            for beat in await store.workers()
            if everything or time.time() - beat.at - beat.ttl < _FORGOTTEN
        ]
        ids = [each["id"] for beat in beats if is_alive(beat) for each in info_of(beat)["active"]]
        nodes = await store.nodes(ids)
        return beats, {node.id: node for node in nodes if node is not None}

    beats, nodes = with_store(target, read)
    if json:
        print_json([worker_data(beat, nodes) for beat in beats])
        return

    rows = []
    for beat in beats:
        info, counts = info_of(beat), info_of(beat)["counts"]
        state = "alive" if is_alive(beat) else "gone"
        queues = ", ".join(info["queues"])
        done = counts.get("done"), counts.get("retried"), counts.get("dead")
        rows.append((beat.worker, state, ago(beat.at), len(info["active"]), *done, queues))
    columns = ("worker", "state", "seen", "active", "done", "retried", "dead", "queues")
    print_table(columns, rows, empty="no worker has sent a heartbeat")

    active = [
        (each["id"], each["name"], each["attempt"], _since(nodes.get(each["id"])), beat.worker)
        for beat in beats
        if is_alive(beat)
        for each in info_of(beat)["active"]
    ]
    if active:
        print()
        print_table(("id", "active task", "attempt", "for", "worker"), active, empty="")


command(app, "list", list_tasks)
command(app, "show", show)
command(app, "watch", watch)
command(app, "cancel", cancel)
command(app, "retry", retry)
command(app, "send", send)
command(app, "inspect", inspect)
command(app, "check", check)
app.add_typer(control.app)


def _since(node: Node | None) -> str | None:
    return None if node is None else ago(node.due)


def _wait(node: Node) -> str | None:
    if node.has_ended:
        return f"{ago(node.ended)} ago"
    left = node.due - time.time()
    return f"in {span(left)}" if left > 0 else ago(node.due)


def _value(text: str) -> object:
    try:
        return json_.loads(text)
    except ValueError:
        return text
