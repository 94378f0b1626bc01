"""A process that is killed, stopped or forked while it has its turn at the lock file."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(60)

HOLDER = """
import asyncio, os, signal, sys, time
from mqcore.spi import Message, Outgoing, QueueSpec
from mqcore_sql import SqliteBackend, SqliteOptions

async def main():
    backend = SqliteBackend(f"sqlite:///{sys.argv[1]}", SqliteOptions())
    await backend.open(print)
    await backend.declare([QueueSpec(name="jobs")])

    def in_its_turn(driver):
        with driver._store.writing():
            driver._db.change("UPDATE {queues} SET published = 7")
            # with "fork" the child speaks, when it has begun, and the parent is silent
            if sys.argv[2] == "kill" or os.fork() == 0:
                os.write(1, f"{os.getpid()}\\n".encode())
            while True:
                signal.pause()

    await backend.run(in_its_turn)

asyncio.run(main())
"""


def start(path: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(path), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def first_number(process: subprocess.Popen[str]) -> int:
    """Wait until the holder, or its child, has its turn; return the id of that process."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def is_free(path: Path) -> bool:
    """Return whether nobody has the turn."""
    lock = os.open(f"{path}.lock", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def test_a_child_does_not_keep_the_turn_of_a_parent_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    process = start(path, "fork")
    child = first_number(process)
    try:
        assert not is_free(path)
        process.kill()
        process.wait()
        assert is_free(path)
    finally:
        os.kill(child, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


def test_a_process_that_is_killed_in_its_turn_frees_it_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    process = start(path, "kill")
    first_number(process)
    assert not is_free(path)
    process.kill()
    process.communicate()
    assert is_free(path)

    checked = subprocess.run(
        [sys.executable, "-c", READER, str(path)], capture_output=True, text=True, check=True
    )
    assert checked.stdout.split() == ["ok", "0"]


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(*connection.execute("PRAGMA integrity_check").fetchone())
print(*connection.execute("SELECT published FROM mq_queues").fetchone())
"""
