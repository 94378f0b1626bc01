"""Follows a page as a reader would: writes its files, types its commands, compares what they print.

A block `python title="album.py"` (or `toml title=…`) is a file. A block `console` holds commands
after `$ ` and what they print. In a page with several terminals a title names the terminal:
`console title="Terminal 1"`. A command that does not end keeps its terminal; later blocks of that
terminal show what it has printed since. `$ ^C` presses Ctrl-C there.

Ids, times and durations differ from run to run and compare as equal. A line `…` matches any
number of lines; `…` at the end of a line for the rest of it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds that a command gets, on a busy machine."""
NOT_TYPED = ("pip ", "docker ", "python3 -m venv", ". ", "python3 noxfile.py", "export ", "cd ")
"""Beginnings of commands that set a machine up: the tests' environment is set up already."""
VARIES = (
    (re.compile(r"\b[0-9a-f]{32}\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{8}…"), "<id>…"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?"), "<time>"),
    (re.compile(r"\bseconds=[\d.]+"), "seconds=<n>"),
    (re.compile(r"\b\d+(\.\d+)? ?m?s\b"), "<n>s"),
    (re.compile(r"\bserver=\w+ [\d.]+"), "server=<server>"),
    (re.compile(r"\bdurability=\w+"), "durability=<word>"),
    (re.compile(r" +"), " "),
)


class Block(NamedTuple):
    """One fenced block of a page."""

    line: int
    language: str
    title: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Yield a page's fenced blocks, in order."""
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type == "fence" and token.map:
            language, _, rest = token.info.partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            yield Block(token.map[0] + 1, language, title[1] if title else "", token.content)


def lines(text: str) -> list[str]:
    """Return the lines of an output, without what differs from run to run."""
    for pattern, word in VARIES:
        text = pattern.sub(word, text)
    return [line.strip() for line in text.strip().splitlines()]


def same(shown: str, printed: str) -> bool:
    """Whether a line is the shown one; `…` at its end matches the rest of the line."""
    return printed.startswith(shown[:-1].rstrip()) if shown.endswith("…") else printed == shown


def agrees(shown: list[str], printed: list[str]) -> bool:
    """Whether a program printed what the page shows; a line `…` matches any lines."""
    if not shown:
        return not printed
    if shown[0] == "…":
        return any(agrees(shown[1:], printed[n:]) for n in range(len(printed) + 1))
    return bool(printed) and same(shown[0], printed[0]) and agrees(shown[1:], printed[1:])


def agrees_in_any_order(shown: list[str], printed: list[str]) -> bool:
    """Whether each shown line was printed, and no other: threads and messages race."""
    rest = list(printed)
    for line in shown:
        index = next((n for n, other in enumerate(rest) if same(line, other)), None)
        if index is None:
            return False
        del rest[index]
    return not rest


class Running:
    """A command that keeps its terminal."""

    def __init__(self, words: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._printed: list[str] = []
        self._read = 0
        self._reader = threading.Thread(target=self._collect)
        self._reader.start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        self._printed.extend(line for line in self.process.stdout)

    def expect(self, shown: list[str], where: str) -> None:
        """Wait until it has printed these lines since the last time."""
        deadline = time.monotonic() + PATIENCE
        while True:
            count = len(self._printed)
            news = lines("".join(self._printed[self._read : count]))
            if agrees(shown, news) if "…" in shown else agrees_in_any_order(shown, news):
                self._read = count
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"{where}: the page shows\n{shown}\nit printed\n{news}")
            time.sleep(0.05)

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait for the end."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE)
        self._reader.join()

    def close(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Reader:
    """Somebody who follows a page in an empty folder."""

    def __init__(self, page: str, folder: Path, replace: Mapping[str, str] | None = None) -> None:
        self.page, self.folder = page, folder
        self.replace = replace or {}
        self.terminals: dict[str, Running] = {}
        self.typed: list[str] = []
        kept = {name: value for name, value in os.environ.items() if "MQCORE_" not in name}
        kept |= {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
        kept["PYTEST_ADDOPTS"] = "-p no:asyncio -p no:randomly -p no:cacheprovider"
        self.environment = kept

    def follow(self, given: list[Block]) -> None:
        """Do what the blocks say, one after the other."""
        for block in given:
            if block.language in ("python", "toml") and block.title:
                path = self.folder / block.title
                path.write_text(self._own(block.text), encoding="utf-8")
            elif block.language == "console":
                self._type(block)

    def close(self) -> None:
        """End what is still running."""
        for running in self.terminals.values():
            running.close()

    def _own(self, text: str) -> str:
        for word, other in self.replace.items():
            text = text.replace(word, other)
        return text

    def _type(self, block: Block) -> None:
        where = f"{self.page}:{block.line}"
        head, *commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
        if head.strip():
            self.terminals[block.title].expect(lines(head), where)

        for number, entry in enumerate(commands):
            command, _, output = entry.partition("\n")
            if command.strip() == "^C":
                running = self.terminals.pop(block.title)
                running.interrupt()
                running.expect(lines(output), where)
                running.close()
            elif not command.startswith(NOT_TYPED):
                self._run(command, output, block, where, last=number == len(commands) - 1)

    def _run(self, command: str, output: str, block: Block, where: str, *, last: bool) -> None:
        environment = dict(self.environment)
        words = shlex.split(self._own(command), comments=True)
        while re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value

        self.typed.append(command)
        if words[0] in ("python", "pytest", "mqcore"):
            module = [] if words[0] == "python" else ["-m", words[0]]
            words = [sys.executable, *module, *words[1:]]
        if last and "mqcore worker" in command:
            self.terminals[block.title] = Running(words, self.folder, environment)
            self.terminals[block.title].expect(lines(output), where)
            return

        ended = subprocess.run(
            words,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        printed, shown = lines(ended.stdout), lines(output)
        alike = agrees(shown, printed) or agrees_in_any_order(shown, printed)
        assert alike, f"{where}: $ {command}\n{shown}\nit printed\n{ended.stdout}"
