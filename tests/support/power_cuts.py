"""Power cuts while a process publishes and consumes: what is on the disk, and what was confirmed.

A cut stops the writer, copies what the disk holds, and opens the copy. The file system keeps for
five minutes in memory what no program has asked to be on the disk.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.logs import whole_lines
from support.loop_disk import LoopDisk

from mqcore.contract.brokers.processes import Command, Processes

__all__ = ["Cut", "Database", "Sqlite", "cuts"]

_WRITER = Path(__file__).with_name("power_cut_writer.py")
_PATIENCE = 60.0
COMMIT = 300
"""Seconds of the file system's own commits."""


@dataclass(frozen=True)
class Cut:
    """What was confirmed before a power cut, and what the disk had afterwards."""

    published: int
    settled: int
    lost: int
    """Confirmed, not on the disk, and no acknowledgement was sent."""
    returned: int
    """Their acknowledgement was confirmed, and they are there again."""

    @property
    def is_clean(self) -> bool:
        """Whether everything that was confirmed has survived."""
        return not (self.lost or self.returned)


class Database(ABC):
    """A database on a disk that is cut: its URL, its processes, and its copy."""

    megabytes: int

    @abstractmethod
    def start(self, folder: Path) -> str:
        """Begin to use a folder of the disk; return the URL for the writer."""

    @abstractmethod
    def pause(self) -> None:
        """Stop what writes."""

    @abstractmethod
    def resume(self) -> None:
        """Let it go on."""

    @abstractmethod
    def bodies(self, folder: Path) -> set[str]:
        """Open a copy of the folder as after a cut, and return the bodies of its messages."""

    def stop(self) -> None:  # noqa: B027 - a file has no process
        """End all processes."""


class Sqlite(Database):
    """A file."""

    megabytes = 192

    def __init__(self, synchronous: str = "full") -> None:
        self._synchronous = synchronous

    def start(self, folder: Path) -> str:
        """Nothing has to be started."""
        return f"sqlite:///{folder}/queue.db?synchronous={self._synchronous}"

    def pause(self) -> None:
        """The writer itself is stopped."""

    def resume(self) -> None:
        """As `pause`."""

    def bodies(self, folder: Path) -> set[str]:
        """Recover the log, and check the whole file."""
        with closing(sqlite3.connect(folder / "queue.db")) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'mq_messages'")
            if tables.fetchone() is None:
                return set()
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            rows = connection.execute("SELECT body FROM mq_messages")
            return {body.decode() for (body,) in rows}


def cuts(database: Database, number: int, folder: Path, seed: int = 1) -> Iterator[Cut]:
    """Cut the power so often, at moments that a seed draws, and yield what was found."""
    draw, log = random.Random(seed), folder / "log"
    with LoopDisk(folder, database.megabytes, commit=COMMIT) as disk:
        try:
            url = database.start(disk.folder)
            with _writer(url, log) as writer:
                for _ in range(number):
                    before = _size(log)
                    deadline = time.monotonic() + _PATIENCE
                    time.sleep(draw.uniform(0.1, 0.8))
                    while _size(log) == before and time.monotonic() < deadline:
                        assert not writer.ended(), writer.log(20)
                        time.sleep(0.01)
                    yield _cut(database, disk, writer, log)
        finally:
            database.stop()


@contextmanager
def _writer(url: str, log: Path) -> Iterator[Processes]:
    writer = Processes()
    writer.make_folder("mqcore-writer-")
    writer.commands = [Command([sys.executable, str(_WRITER), url, str(log)])]
    try:
        writer.start()
        yield writer
    finally:
        writer.stop()


def _cut(database: Database, disk: LoopDisk, writer: Processes, log: Path) -> Cut:
    writer.pause()
    database.pause()
    try:
        known: dict[str, set[str]] = {"published": set(), "settling": set(), "settled": set()}
        for line in whole_lines(log):
            word, name = line.split()
            known[word].add(name)
        with disk.after_a_power_cut() as copy:
            found = database.bodies(copy)
    finally:
        database.resume()
        writer.send(signal.SIGCONT)
    return Cut(
        len(known["published"]),
        len(known["settled"]),
        len(known["published"] - known["settling"] - found),
        len(known["settled"] & found),
    )


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
