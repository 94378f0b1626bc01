"""The processes of one server on this machine, with a temporary folder for data and output.

Each process leads its own process group, so that a signal reaches its children. A guard, one more
small process, waits for the end of this one: a test run that is killed with signal 9 leaves neither
a server nor a folder behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mqcore.contract.brokers import guard
from mqcore.contract.brokers.server import BrokerUnavailable

__all__ = ["Command", "Processes", "program"]

_ENDS_WITHIN = 10.0
_BETWEEN = 0.005
_MORE_PLACES = (
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
    "/opt/homebrew/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)),
)
"""Where servers are installed that an ordinary user's PATH may not contain."""


@dataclass(frozen=True)
class Command:
    """A process to start: its words, and additions to its environment."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Processes:
    """The processes of one server while it runs.

    They may be killed and started again; `stop` removes everything.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self.folder: Path | None = None
        self.commands: list[Command] = []
        self.running: list[subprocess.Popen[bytes]] = []
        self._output: IO[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def make_folder(self, prefix: str) -> Path:
        """Create the folder and start its guard; return the folder."""
        self.folder = Path(tempfile.mkdtemp(prefix=prefix))
        self._output = (self.folder / "output.log").open("ab")
        self._guard = subprocess.Popen(  # noqa: S603 - our own script, by its full path
            [sys.executable, "-I", "-S", guard.__file__, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self.folder

    def start(self) -> None:
        """Start the commands in order."""
        for command in self.commands:
            process = subprocess.Popen(  # noqa: S603 - the servers of the catalogue, or a command that a test has named
                command.words,
                env={**os.environ, **command.environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.running.append(process)
            self._tell_guard([started.pid for started in self.running])

    def end(self, number: signal.Signals = signal.SIGKILL) -> bool:
        """Signal the processes and wait, the last started first.

        Returns False when one still runs after 10 s.
        """
        self.send(number)
        if number is signal.SIGKILL:
            # Before waiting: afterwards another process may have the same id.
            self._tell_guard([])

        for process in reversed(self.running):
            with suppress(subprocess.TimeoutExpired):
                process.wait(_ENDS_WITHIN)
        self.running = [process for process in self.running if process.returncode is None]
        return not self.running

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every process group.

        A process that has been waited for is skipped.
        """
        for process in reversed(self.running):
            if process.returncode is None:
                children = _children(process.pid)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                for child in children:
                    with suppress(ProcessLookupError):
                        os.kill(child, number)

    def pause(self) -> None:
        """Stop the processes, and return when they have stopped; SIGCONT continues them."""
        self.send(signal.SIGSTOP)

        deadline = time.monotonic() + _ENDS_WITHIN
        for process in self.running:
            while not _has_stopped(process) and time.monotonic() < deadline:
                time.sleep(_BETWEEN)

    def ended(self) -> str:
        """Return how a process has ended; empty while all run."""
        codes = [process.poll() for process in self.running]
        return next((f"ended with {code}" for code in codes if code is not None), "")

    def log(self, lines: int) -> str:
        """Return the last lines of their output."""
        if self.folder is None:
            return ""
        text = (self.folder / "output.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """Kill what runs, and remove the folder with its data. May be called again."""
        self.end()
        if self._output is not None:
            self._output.close()
            self._output = None

        if self._guard is not None:
            self._guard.communicate()  # at the end of its input it removes the folder and ends
            self._guard = None
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def _tell_guard(self, groups: Sequence[int]) -> None:
        if self._guard is None or self._guard.stdin is None:
            return
        # The guard may have been killed; `stop` ends the processes then.
        with suppress(OSError):
            self._guard.stdin.write(" ".join(map(str, groups)).encode() + b"\n")
            self._guard.stdin.flush()


def _children(pid: int) -> list[int]:
    """Return the children that have left the group of a process, as those of PostgreSQL do."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [child for child in map(int, found.split()) if os.getpgid(child) != pid]
    except OSError:
        return []


def _has_stopped(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process is stopped or has ended.

    It is asked without taking the exit status, which another caller waits for.
    """
    if process.returncode is not None:
        return True
    options = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
    return os.waitid(os.P_PID, process.pid, options) is not None


def program(name: str) -> str:
    """Return the path of an installed program. Raises `BrokerUnavailable`."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_MORE_PLACES))
    found = shutil.which(name, path=path)
    if found is None:
        raise BrokerUnavailable(f"{name} is not installed")
    return found
