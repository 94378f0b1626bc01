"""`mqcore worker`: runs an app's consumers, in one or several processes, until a signal stops it.

One process imports the app, connects and calls `Worker.run`. For several processes, this one only
supervises. Each of the others runs the same command for one process. They get the broker's URL in
the environment, because a list of processes would show the password.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Annotated

import typer

from mqcore.app import App
from mqcore.cli.common import At, load_app
from mqcore.cli.health import PID, check_health_file, keep_health_file
from mqcore.cli.logs import json_stream, logging_set_up
from mqcore.cli.tasks_of import stored_tasks
from mqcore.config.plugins import default_plugins
from mqcore.config.settings import Settings
from mqcore.defaults import GRACE
from mqcore.errors import ConfigurationError
from mqcore.running.signals import call_at_stop_signals
from mqcore.running.supervisor import RECYCLE, SHUT_DOWN, Supervisor
from mqcore.worker import Worker, WorkerOptions

__all__ = ["worker"]

_URL = "MQCORE_URL"
_LATE = 1.0
"""Seconds between the end of the grace, or the second signal, and the forced end (G13)."""


@dataclass(frozen=True)
class How:
    """The options of the worker."""

    queues: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Consume only these of the app's queues, separated by commas."
        ),
    ] = None
    processes: Annotated[
        int, typer.Option(min=1, help="How many worker processes; several are supervised.")
    ] = 1
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many messages each consumer handles at once; overrides the code."
        ),
    ] = None
    lease: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long the messages of a killed worker wait for another one; overrides the "
            "code.",
        ),
    ] = None
    grace: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="How long running handlers may take after SIGTERM."
        ),
    ] = GRACE
    health_file: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Write the worker's health to this JSON file every 2 s.",
        ),
    ] = None
    max_messages: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after this many messages, with exit code 75."),
    ] = None
    max_memory: Annotated[
        int | None,
        typer.Option(min=1, metavar="BYTES", help="Stop above this size, with exit code 75."),
    ] = None
    scheduler: Annotated[
        bool,
        typer.Option(
            "--scheduler",
            help="Also fire the schedules of the app's tasks. Any number of workers may: each "
            "instant is sent once.",
        ),
    ] = False
    control: Annotated[
        bool,
        typer.Option(
            "--control/--no-control",
            help="Receive commands through the broker (`mqcore tasks control`).",
        ),
    ] = True
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False

    def options(self) -> WorkerOptions:
        """Return the given options, for `Worker`.

        Raises `ConfigurationError` for a health file that cannot be written.
        """
        options: WorkerOptions = {"grace": self.grace, "control": self.control}
        if self.queues is not None:
            options["queues"] = [name for name in self.queues.split(",") if name]
        if self.concurrency is not None:
            options["concurrency"] = self.concurrency
        if self.lease is not None:
            options["lease"] = self.lease
        if self.max_messages is not None:
            options["max_messages"] = self.max_messages
        if self.max_memory is not None:
            options["max_memory"] = self.max_memory
        if self.health_file is not None:
            path = Path(self.health_file.replace(PID, str(os.getpid())))
            if why := check_health_file(path):
                raise ConfigurationError(why)
            options["health_file"] = path

        return options

    def words(self, target: str, *, json: bool) -> list[str]:
        """Return the command for one of several processes."""
        given = {
            "--queues": self.queues,
            "--concurrency": self.concurrency,
            "--lease": self.lease,
            "--grace": self.grace,
            "--health-file": None if self.health_file is None else f"{self.health_file}.{PID}",
            "--max-messages": self.max_messages,
            "--max-memory": self.max_memory,
        }
        words = [
            sys.executable,
            "-m",
            "mqcore",
            "worker",
            target,
            "--supervised",
            *(["--json"] if json else []),
            *(["--scheduler"] if self.scheduler else []),
            *([] if self.control else ["--no-control"]),
        ]
        return words + [
            word
            for name, value in given.items()
            if value is not None
            for word in (name, str(value))
        ]


def worker(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:APP", help="The app, for instance shop:app.", show_default=False
        ),
    ],
    how: How,
    at: At,
) -> int:
    """Run an app's consumers until SIGTERM or Ctrl-C, then drain.

    A second signal ends the grace. The app is imported from the working directory. Events are
    logged to standard error. With --json they are lines of JSON on standard output, and what the
    app prints goes to standard error.
    """
    settings = at.settings()
    if how.processes > 1 and default_plugins().backend_for(settings.url.scheme).local:
        raise ConfigurationError(
            f"{settings.url} lives in one process: {how.processes} workers would each have a "
            "broker of their own. Leave --processes out, or use a broker that processes share"
        )
    if how.processes > 1:
        with json_stream(enabled=at.json):
            app = _loaded(target, how)
        with logging_set_up(sys.stdout if at.json else None):
            # Report wrong options once, not in each process.
            Worker(app, app.connect(settings=settings), **how.options())
            return asyncio.run(_supervise(how, target, settings, json=at.json))

    with json_stream(enabled=at.json) as stream:
        app = _loaded(target, how)
        with logging_set_up(stream), _deadline(how.grace) as at_signal:
            return asyncio.run(_work(app, how, settings, at_signal))


def _loaded(target: str, how: How) -> App:
    app = load_app(target)
    if how.scheduler:
        for tasks in stored_tasks(app):
            tasks.schedules.specs()  # refuses wrong schedules before it connects
            tasks.schedules.in_worker = True
    return app


@contextmanager
def _deadline(grace: float) -> Iterator[Callable[[], object]]:
    """End the process at most grace + 1 s after a signal, even if its event loop is blocked (G13).

    Yields the function to call at a signal. The broker takes unfinished messages back, as after any
    death of a process.
    """
    news: SimpleQueue[str] = SimpleQueue()  # its `put` may be called in a signal handler
    Thread(target=_end_late, args=(news, grace), name="mqcore-deadline", daemon=True).start()
    try:
        yield partial(news.put, "signal")
    finally:
        news.put("")


def _end_late(news: SimpleQueue[str], grace: float) -> None:
    word, wait = news.get(), grace + _LATE
    with suppress(Empty):
        while word:
            word, wait = news.get(timeout=wait), _LATE
        return

    text = (
        f"mqcore: the worker did not end within the grace of {grace:g} s and {_LATE:g} s more; it "
        "is ended now\n"
    )
    os.write(2, text.encode())  # the main thread may hold the locks of logging
    os._exit(1)


async def _work(app: App, how: How, settings: Settings, at_signal: Callable[[], object]) -> int:
    broker = app.connect(settings=settings)
    options = how.options()
    if broker.is_local:  # no other process can send it a command
        options["control"] = False
    running = Worker(app, broker, **options)  # refuses wrong options before it connects
    async with broker:
        if how.supervised:
            lifeline = _take_lifeline()
            asyncio.get_running_loop().add_reader(lifeline, _orphaned, running, lifeline)
        with call_at_stop_signals(at_signal):
            await running.run()
    if running.is_shut_down:
        return SHUT_DOWN if how.supervised else 0
    return RECYCLE if running.recycle else 0


def _take_lifeline() -> int:
    """Move the supervisor's pipe away from standard input.

    A program that a handler starts would otherwise wait for input on it indefinitely.
    """
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return lifeline


def _orphaned(running: Worker, lifeline: int) -> None:
    """Drain when the supervisor has died: nothing is ever written to its pipe."""
    if not os.read(lifeline, 1):
        asyncio.get_running_loop().remove_reader(lifeline)
        running.stop()


async def _supervise(how: How, target: str, settings: Settings, *, json: bool) -> int:
    os.environ[_URL] = settings.url.reveal()
    supervisor = Supervisor(how.words(target, json=json), how.processes, grace=how.grace)
    if how.health_file is None:
        return await supervisor.run()
    keeping = asyncio.create_task(
        keep_health_file(Path(how.health_file), supervisor, how.processes)
    )

    try:
        return await supervisor.run()
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
