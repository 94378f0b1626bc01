"""A Python program of a test, as a user would start it: from a file, or with `-m` as a module."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Ended(NamedTuple):
    """A program that has ended."""

    code: int
    lines: list[str]
    errors: str


class Program:
    """A program that runs, its output read line by line."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("MQCORE_")
        }
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, number: int | None = None) -> Ended:
        """Send a signal, if one is given, and return what came after it."""
        if number is not None:
            self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=30)
        return Ended(self.process.returncode, out.splitlines(), errors)


class Start(Protocol):
    """Writes a program into a file and starts it."""

    def __call__(self, source: str, *, as_module: bool = False) -> Program: ...
