"""`mqcore tasks control`: commands to running workers, and their answers."""

from __future__ import annotations

import json as json_
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from mqcore.broker import Broker
from mqcore.cli.common import LONELY, At, load_app
from mqcore.cli.options import command
from mqcore.cli.output import print_json, print_table
from mqcore.cli.task_rows import info_of, is_alive
from mqcore.cli.tasks_of import Target, opened_store
from mqcore.control.client import TIMEOUT, Control
from mqcore.control.protocol import Answer
from mqcore.errors import ConfigurationError, MqcoreError
from mqcore.tasks.api import Tasks

__all__ = ["app"]

app = typer.Typer(
    name="control",
    help="Send a command to the workers, all of them or chosen ones, and print their answers.",
    no_args_is_help=True,
)

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

Queue = Annotated[str | None, typer.Option(metavar="NAME", help="Only the consumer of this queue.")]
Count = Annotated[int, typer.Argument(min=1, max=1_000, help="By how many places.")]
QueueName = Annotated[
    str, typer.Argument(metavar="QUEUE", help="A queue of the app.", show_default=False)
]


@dataclass(frozen=True)
class To:
    """Which workers a command goes to, and how long their answers are waited for."""

    worker: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this worker; may be repeated."),
    ] = None
    timeout: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="How long answers are waited for at most."),
    ] = TIMEOUT


def ping(target: Target, to: To, at: At) -> int:
    """Ask the workers whether they answer, and what they run."""
    return _send(target, to, at, "ping", {})


def grow(target: Target, count: Count = 1, *, queue: Queue = None, to: To, at: At) -> int:
    """Run more handlers at once, until the worker ends."""
    return _send(target, to, at, "grow", {"count": count, "queue": queue})


def shrink(target: Target, count: Count = 1, *, queue: Queue = None, to: To, at: At) -> int:
    """Run fewer handlers at once, one at least. What runs goes on."""
    return _send(target, to, at, "shrink", {"count": count, "queue": queue})


def autoscale(
    target: Target,
    low: Annotated[
        int | None, typer.Argument(metavar="[MIN]", min=1, help="The smallest concurrency.")
    ] = None,
    high: Annotated[
        int | None, typer.Argument(metavar="[MAX]", min=1, help="The largest concurrency.")
    ] = None,
    *,
    queue: Queue = None,
    to: To,
    at: At,
) -> int:
    """Let the concurrency follow how busy the worker is; without numbers it stays as it is."""
    if (low is None) != (high is None):
        raise ConfigurationError("autoscale takes two numbers, the smallest and the largest")
    return _send(target, to, at, "autoscale", {"low": low, "high": high, "queue": queue})


def add_consumer(target: Target, queue: QueueName, to: To, at: At) -> int:
    """Consume one more of the app's queues."""
    return _send(target, to, at, "add_consumer", {"queue": queue})


def cancel_consumer(target: Target, queue: QueueName, to: To, at: At) -> int:
    """Stop to consume a queue. What runs gets the worker's grace to end."""
    return _send(target, to, at, "cancel_consumer", {"queue": queue})


def time_limit(
    target: Target,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Its registered name.", show_default=False)
    ],
    limit: Annotated[
        float, typer.Argument(min=0, metavar="SECONDS", help="0 for no limit.", show_default=False)
    ],
    *,
    soft: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="soft_timeout; 0 for none.")
    ] = None,
    to: To,
    at: At,
) -> int:
    """Change the time limit of a task, for the runs that begin from now on."""
    limits = {"timeout": limit or None}
    if soft is not None:
        limits["soft_timeout"] = soft or None
    return _send(target, to, at, "time_limit", {"task": task, **limits})


def rate(
    target: Target,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Its registered name.", show_default=False)
    ],
    limit: Annotated[
        str, typer.Argument(metavar="RATE", help="10/m, 2/s, 100/h, or off.", show_default=False)
    ],
    *,
    to: To,
    at: At,
) -> int:
    """Change how often a task starts, over all workers. It lasts until they end."""
    number, _, unit = limit.partition("/")
    if limit == "off":
        return _send(target, to, at, "rate", {"task": task, "count": None})
    if not number.isdecimal() or unit not in _UNITS:
        raise ConfigurationError(f"{limit!r:.60} is not a rate: write 10/m, 2/s, 100/h, or off")
    arguments = {"task": task, "count": int(number), "per": _UNITS[unit]}
    return _send(target, to, at, "rate", arguments)


def recycle(target: Target, to: To, at: At) -> int:
    """Drain, and end with exit code 75, so that a supervisor starts a fresh process."""
    return _send(target, to, at, "recycle", {})


def shutdown(target: Target, to: To, at: At) -> int:
    """Drain, and end. A supervisor does not start the worker again."""
    return _send(target, to, at, "shutdown", {})


for function in (ping, grow, shrink, autoscale, rate, time_limit, recycle, shutdown):
    command(app, function.__name__.replace("_", "-"), function)
command(app, "add-consumer", add_consumer)
command(app, "cancel-consumer", cancel_consumer)


def _send(target: str, to: To, at: At, name: str, arguments: Mapping[str, Any]) -> int:
    """Send a command and print the answers. Returns 1 unless all workers have executed it."""
    stored = [each for each in load_app(target).tasks if isinstance(each, Tasks) and each.store]

    async def work(broker: Broker) -> Sequence[Answer]:
        if broker.is_local:
            raise ConfigurationError(LONELY)
        known = [] if to.worker else [each for tasks in stored for each in await _known(tasks)]
        async with Control(broker) as control:
            return await control.send(
                name, arguments, workers=to.worker or (), known=known, timeout=to.timeout
            )

    answers = at.run(work, patience=to.timeout + 30.0, demanding=False)
    if at.json:
        print_json([_data(answer) for answer in answers])
    else:
        rows = [
            (answer.worker, "ok" if answer.ok else "failed", _text(answer)) for answer in answers
        ]
        print_table(("worker", "answer", ""), rows, empty="no worker has answered")
    return 0 if answers and all(answer.ok for answer in answers) else 1


async def _known(tasks: Tasks) -> Sequence[str]:
    """Return the living workers that the store of tasks knows, and that receive commands."""
    try:
        async with opened_store(tasks) as store:
            beats = await store.workers()
    except MqcoreError:
        return []  # the broker may know them
    return [name for beat in beats if is_alive(beat) for name in info_of(beat).get("control", [])]


def _data(answer: Answer) -> dict[str, object]:
    return {
        "worker": answer.worker,
        "ok": answer.ok,
        "answer": dict(answer.data) if answer.ok else None,
        "error": answer.error or None,
    }


def _text(answer: Answer) -> str:
    if not answer.ok:
        return answer.error
    return ", ".join(f"{name} {_value(value)}" for name, value in answer.data.items() if value)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={each}" for name, each in value.items())
    return value if isinstance(value, str) else json_.dumps(value)
