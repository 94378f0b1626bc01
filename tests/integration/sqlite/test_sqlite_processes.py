"""Several processes on one file: none waits for a lock in vain, none loses, none handles twice."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.logs import whole_lines

from mqcore.spi import QueueSpec
from mqcore_sql import SqliteBackend, SqliteOptions

PROGRAM = Path(__file__).parents[2] / "support" / "sqlite_process.py"
EACH, PROCESSES = 300, 3

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'spool.db'}"
    backend = SqliteBackend(url, SqliteOptions())
    await backend.open(lambda _: None)
    await backend.declare([QueueSpec(name="jobs")])
    await backend.close()
    return url


class Processes:
    """The processes of a test. They are ended with it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.running: list[subprocess.Popen[str]] = []

    def start(self, role: str, name: str) -> subprocess.Popen[str]:
        log = self.folder / f"{name}.log"
        command = [sys.executable, str(PROGRAM), role, self.url, str(log), str(EACH)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.running.append(process)
        return process

    def handled(self) -> Counter[str]:
        lines = [whole_lines(path) for path in self.folder.glob("consume*.log")]
        return Counter(name for names in lines for name in names)


@pytest.fixture
def processes(url: str, tmp_path: Path) -> Iterator[Processes]:
    found = Processes(url, tmp_path)
    yield found
    for process in found.running:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> str:
    """Return the output of a process that ends well, and what it wrote when it does not."""
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    return output


def expected() -> Counter[str]:
    return Counter(
        f"publish{number}-{index}" for number in range(PROCESSES) for index in range(EACH)
    )


def test_processes_take_turns_and_each_message_is_handled_once(processes: Processes) -> None:
    started = [
        processes.start(role, f"{role}{number}")
        for number in range(PROCESSES)
        for role in ("publish", "consume")
    ]
    assert [ended(process) for process in started] == [""] * len(started)
    assert processes.handled() == expected()


def test_what_a_killed_consumer_held_is_handled_by_another(processes: Processes) -> None:
    publishers = [processes.start("publish", f"publish{number}") for number in range(PROCESSES)]
    victim = processes.start("consume", "consume-victim")
    for process in publishers:
        ended(process)
    victim.kill()
    ended(processes.start("consume", "consume-survivor"))

    handled = processes.handled()
    assert set(handled) == set(expected())
    assert handled.total() - len(expected()) <= 10  # what it had written down and not acknowledged
