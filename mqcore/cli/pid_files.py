"""Pid files that name one process for certain, and signals that reach no other one.

A process id is given to another process some time after its own has ended. So a pid file holds the
time at which its process began, too. A file whose process has ended, or whose id belongs to another
process by now, is stale, and that process is left alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mqcore.errors import ConfigurationError

__all__ = ["Node", "began", "is_running", "locked", "read", "remove", "signalled", "write"]

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_ZOMBIE = "Z"
_STATE, _BEGAN = 0, 19
"""Places in /proc/PID/stat after the name of the program."""
_POLL = 0.05


@dataclass(frozen=True)
class Node:
    """A process that was started under a name."""

    name: str
    pid: int
    began: str
    """When the process began, as the system states it."""
    command: Sequence[str]
    folder: str
    """Its working directory."""
    started_at: float = 0.0
    grace: float = 30.0


def began(pid: int) -> str | None:
    """Return what tells a process from a later one with the same id; None when it has ended."""
    stat = Path(f"/proc/{pid}/stat")
    if _BOOT.exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (OSError, UnicodeDecodeError):
            return None
        if fields[_STATE] == _ZOMBIE:
            return None
        return f"{_BOOT.read_text().strip()} {fields[_BEGAN]}"

    command = ["ps", "-o", "state=,lstart=", "-p", str(pid)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - its own words
    state, _, start = found.stdout.strip().partition(" ")
    return None if not start or state.startswith(_ZOMBIE) else start.strip()


def is_running(node: Node) -> bool:
    """Whether the process of a pid file is the one that runs under its id."""
    return began(node.pid) == node.began


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other commands from changing the pid file meanwhile.

    Raises `ConfigurationError` when another command is changing it.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the pid file {str(path)!r} cannot be written: {error.strerror}. Choose another "
            "--folder"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"another command is starting or stopping {path.stem!r} in {str(path.parent)!r}. Wait "
            "until it has ended"
        ) from None
    else:
        yield
    finally:
        os.close(descriptor)


def read(path: Path) -> Node | None:
    """Return what a pid file says; None without one. Raises `ConfigurationError`."""
    try:
        _, _, rest = path.read_text().partition("\n")
        return Node(**json.loads(rest))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{str(path)!r} is not a pid file of `mqcore background` ({error}). Remove it, or "
            "choose another --folder"
        ) from error


def write(path: Path, node: Node) -> None:
    """Write a pid file in one step. Its first line is the process id, as other programs expect."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
        file.write(f"{node.pid}\n{json.dumps(asdict(node))}\n")
    temporary.replace(path)


def remove(path: Path) -> None:
    """Remove a pid file."""
    path.unlink(missing_ok=True)


def signalled(node: Node, number: signal.Signals, timeout: float) -> bool:
    """Send a signal to the process of a pid file and wait for its end; whether it has ended.

    No other process gets the signal, whatever ends and begins meanwhile.
    """
    try:
        handle = os.pidfd_open(node.pid)
    except AttributeError:  # not Linux
        return _signalled_by_id(node, number, timeout)
    except ProcessLookupError:
        return True

    try:
        if not is_running(node):
            return True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
        ready, _, _ = select.select([handle], [], [], max(timeout, 0.0))
        return bool(ready)
    finally:
        os.close(handle)


def _signalled_by_id(node: Node, number: signal.Signals, timeout: float) -> bool:
    if not is_running(node):
        return True
    with suppress(ProcessLookupError):
        os.kill(node.pid, number)
    until = time.monotonic() + timeout
    while is_running(node):
        if time.monotonic() >= until:
            return False
        time.sleep(_POLL)
    return True
