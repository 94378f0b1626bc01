"""`mqcore background`: workers that run without a terminal, by pid file and log file.

A process manager such as systemd does more. This is for machines without one, and for development.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from mqcore.cli import pid_files
from mqcore.cli.common import Json
from mqcore.cli.options import DefaultToList, command
from mqcore.cli.output import ago, iso, one_line, print_json, print_table
from mqcore.cli.tasks_of import Target
from mqcore.defaults import GRACE
from mqcore.errors import ConfigurationError

__all__ = ["app"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,99}")
_LATE = 5.0
"""Seconds that a worker may take longer than its grace."""
_KILLED = 5.0
_POLL = 0.05
_LAST_LINES = 5
_HEALTH = "--health-file"

app = typer.Typer(
    name="background",
    cls=DefaultToList,
    help="Workers in the background, by pid file: start, stop, restart, list.",
)

Names = Annotated[
    str, typer.Argument(metavar="NAME,...", help="Names of workers.", show_default=False)
]
Folder = Annotated[
    Path, typer.Option(metavar="PATH", help="Where their pid files are, and by default their logs.")
]
_HERE = Path()


@dataclass(frozen=True)
class Outcome:
    """What has become of one worker."""

    name: str
    state: str
    pid: int | None = None
    text: str = ""
    ok: bool = True


def start(
    target: Target,
    names: Names,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTIONS]", help="Options of `mqcore worker`, after `--`."),
    ] = None,
    *,
    folder: Folder = _HERE,
    logs: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where their log files are written.")
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait until it consumes.")
    ] = 30.0,
    json: Json = False,
) -> int:
    """Start workers, and return when they consume.

    `NAME.pid` and `NAME.log` are written to the folder. A worker that runs already is left alone.
    """
    words = list(options or ())
    grace = _grace_of(words)
    order = _Order([target, *words], str(Path.cwd()), (logs or folder).resolve(), grace, wait)
    return _each(names, folder, lambda path: _start(path, order), json=json)


def stop(
    names: Names,
    *,
    folder: Folder = _HERE,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Instead of the worker's grace and 5 s."),
    ] = None,
    kill: Annotated[
        bool, typer.Option("--kill", help="Kill a worker that has not ended by then.")
    ] = False,
    json: Json = False,
) -> int:
    """Let workers end their running handlers, within their grace, and wait for it."""
    return _each(names, folder, lambda path: _stop(path, timeout, kill=kill), json=json)


def restart(
    names: Names,
    *,
    folder: Folder = _HERE,
    logs: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where their log files are written.")
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait until it consumes.")
    ] = 30.0,
    json: Json = False,
) -> int:
    """Stop workers as `stop` does, and start each with the options that it had."""

    def again(path: Path) -> Outcome:
        node = pid_files.read(path)
        if node is None:
            text = "it was never started here, so its options are not known: use `start`"
            return Outcome(path.stem, "unknown", text=text, ok=False)
        ended = _stop(path, None, kill=False)
        if not ended.ok:
            return ended
        where = (logs or folder).resolve()
        return _start(path, _Order(list(node.command), node.folder, where, node.grace, wait))

    return _each(names, folder, again, json=json)


def list_workers(*, folder: Folder = _HERE, json: Json = False) -> int:
    """List the workers with a pid file in the folder."""
    nodes = [
        node for path in sorted(folder.glob("*.pid")) if (node := pid_files.read(path)) is not None
    ]
    lines = [(node, pid_files.is_running(node)) for node in nodes]
    if json:
        print_json(
            [
                {
                    "name": node.name,
                    "running": is_running,
                    "pid": node.pid,
                    "started": iso(node.started_at),
                    "command": list(node.command),
                }
                for node, is_running in lines
            ]
        )
        return 0
    rows = [
        (
            node.name,
            "running" if is_running else "ended",
            str(node.pid),
            ago(node.started_at),
            " ".join(node.command),
        )
        for node, is_running in lines
    ]
    empty = f"no pid file in {str(folder.resolve())!r}"
    print_table(("worker", "state", "pid", "for", "command"), rows, empty=empty)
    return 0


command(app, "start", start)
command(app, "stop", stop)
command(app, "restart", restart)
command(app, "list", list_workers)


@dataclass(frozen=True)
class _Order:
    """How a worker is started. `words` are the app and the options."""

    words: Sequence[str]
    folder: str
    logs: Path
    grace: float
    wait: float


def _each(names: str, folder: Path, act: Callable[[Path], Outcome], *, json: bool) -> int:
    """Do something with each worker, one after the other, and print what has become of it."""
    chosen = [name for name in names.split(",") if name]
    if not chosen or not all(map(_NAME.fullmatch, chosen)):
        raise ConfigurationError(
            f"{names!r:.200} is not a list of names such as w1,w2: a name has letters, digits, and "
            "any of . _ - @"
        )
    if not folder.is_dir():
        raise ConfigurationError(f"the folder {str(folder)!r} does not exist: make it first")

    outcomes = []
    for name in dict.fromkeys(chosen):
        path = folder / f"{name}.pid"
        with pid_files.locked(path):
            outcomes.append(act(path))
        if not json:
            print(_sentence(outcomes[-1]), flush=True)
    if json:
        print_json([vars(each) for each in outcomes])
    return 0 if all(each.ok for each in outcomes) else 1


def _sentence(outcome: Outcome) -> str:
    pid = f" (process {outcome.pid})" if outcome.pid is not None else ""
    text = f": {one_line(outcome.text)}" if outcome.text else ""
    return f"{outcome.name} {outcome.state}{pid}{text}"


def _grace_of(words: Sequence[str]) -> float:
    """Return the grace that options give to the worker."""
    given = next((word for word in words if word.startswith("--grace")), "")
    text = given.partition("=")[2] or next(
        (after for word, after in pairwise(words) if word == "--grace"), ""
    )
    try:
        return float(text or GRACE)
    except ValueError as error:
        raise ConfigurationError(f"--grace {text!r:.40} is not a number of seconds") from error


def _start(path: Path, order: _Order) -> Outcome:
    name, known = path.stem, pid_files.read(path)
    if known is not None and pid_files.is_running(known):
        return Outcome(name, "runs already", known.pid)

    log, health = order.logs / f"{name}.log", path.with_name(f".{name}.health")
    health.unlink(missing_ok=True)
    words = [*order.words]
    has_own = any(word.partition("=")[0] == _HEALTH for word in words)
    options = [] if has_own else [_HEALTH, str(health.resolve())]
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - the operator's own worker
                [sys.executable, "-m", "mqcore", "worker", *words, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=order.folder,
                start_new_session=True,
            )
    except OSError as error:
        return Outcome(name, "not started", text=f"{error}", ok=False)

    node = pid_files.Node(
        name,
        process.pid,
        pid_files.began(process.pid) or "",
        words,
        order.folder,
        time.time(),
        order.grace,
    )
    pid_files.write(path, node)
    return _awaited(process, node, path, None if has_own else health, log, order.wait)


def _awaited(
    process: subprocess.Popen[bytes],
    node: pid_files.Node,
    path: Path,
    health: Path | None,
    log: Path,
    wait: float,
) -> Outcome:
    """Wait until a worker has started, which writes its health, or has ended."""
    until = time.monotonic() + wait
    while True:
        if (code := process.poll()) is not None:
            pid_files.remove(path)
            text = f"it ended at once with exit code {code}. {log}: {_end_of(log)}"
            return Outcome(node.name, "not started", text=text, ok=False)
        is_late = time.monotonic() >= until
        if health is None or health.exists() or is_late:
            process.returncode = 0  # it outlives this command, so Python need not warn of it
            text = f"it does not consume yet after {wait:g} s; see {log}" if is_late else ""
            return Outcome(node.name, "started", node.pid, text)
        time.sleep(_POLL)


def _end_of(log: Path) -> str:
    """Return the last lines of a log file."""
    with log.open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - 4096, 0))
        lines = file.read().decode(errors="backslashreplace").splitlines()
    return " / ".join(lines[-_LAST_LINES:])


def _stop(path: Path, timeout: float | None, *, kill: bool) -> Outcome:
    node = pid_files.read(path)
    if node is None:
        return Outcome(path.stem, "does not run", text=f"there is no {path.name}")
    if not pid_files.is_running(node):
        pid_files.remove(path)
        text = f"it has ended before; its pid file named process {node.pid}, and is removed"
        return Outcome(path.stem, "does not run", text=text)

    limit = node.grace + _LATE if timeout is None else timeout
    state = "stopped"
    if not pid_files.signalled(node, signal.SIGTERM, limit):
        text = f"it has not ended within {limit:g} s"
        if not kill:
            return Outcome(path.stem, "still runs", node.pid, f"{text} (--kill)", ok=False)
        pid_files.signalled(node, signal.SIGKILL, _KILLED)
        state = "killed"
    pid_files.remove(path)
    path.with_name(f".{path.stem}.health").unlink(missing_ok=True)
    return Outcome(path.stem, state, node.pid)
