"""The runner of all tests: how it ends, and what it does about a test that fails."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(400)  # each starts several pytests

RUNNER = Path(__file__).parents[1] / "side_by_side.py"
SLOW = """
import os, time
from pathlib import Path
import pytest

@pytest.fixture(scope="session")
def container():
    up = Path(__file__).with_suffix(".up")
    up.write_text(str(os.getpid()))
    yield
    time.sleep(0.5)  # it is not removed in an instant
    up.with_suffix(".down").touch()

def test_slow(container):
    time.sleep(600)
"""
QUICK = "def test_quick(): pass\n"
FLAKY = """
from pathlib import Path

def test_quick(): pass

def test_flaky():
    before = Path(__file__).with_suffix(".before")
    was_there = before.exists()
    before.touch()
    assert was_there
"""
WRONG = """
import pytest

def test_quick(): pass

@pytest.mark.parametrize("number", range(NUMBER))
def test_wrong(number): assert False
"""


def tree(folder: Path, slow: tuple[str, ...]) -> None:
    """Make a tree of tests like ours, of which some start a container and take their time."""
    for name in (
        "tests/test_plain.py",
        "tests/contract/servers/test_one.py",
        "tests/e2e/servers/test_two.py",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SLOW if name in slow else QUICK)
    shutil.copy(RUNNER, folder / "tests")


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "slow",
    [
        ("tests/test_plain.py",),
        ("tests/contract/servers/test_one.py", "tests/e2e/servers/test_two.py"),
    ],
    ids=["the first run", "runs beside each other"],
)
@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ([], [signal.SIGTERM]),
        ([], [signal.SIGINT, signal.SIGTERM]),
        (["tests"], [signal.SIGTERM]),
    ],
    ids=["SIGTERM", "Ctrl-C as nox passes it on", "one run"],
)
def test_a_runner_that_is_told_to_end_leaves_nothing(
    tmp_path: Path, slow: tuple[str, ...], words: list[str], numbers: list[signal.Signals]
) -> None:
    if words:
        slow = slow[:1]
    tree(tmp_path, slow)
    environment = {
        **os.environ,
        "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:randomly -o timeout=0",
    }
    command = [sys.executable, str(tmp_path / "tests" / "side_by_side.py"), *words]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            deadline = time.monotonic() + 150
            up = [(tmp_path / name).with_suffix(".up") for name in slow]
            while not all(path.exists() and path.read_text() for path in up):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.01)
            for number in numbers:
                process.send_signal(number)
                time.sleep(0.1)
            out, _ = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode not in {0, -signal.SIGTERM}, out.decode()
    for path in up:
        assert path.with_suffix(".down").exists(), out.decode()
        assert not exists(int(path.read_text()))


@pytest.mark.parametrize(
    ("text", "code", "ends"),
    [
        (FLAKY, 0, ["FLAKY, and to be mended: one passed at the second try, alone", "1 rerun"]),
        (WRONG.replace("NUMBER", "2"), 1, ["failed: one", "2 failed", "2 rerun"]),
        (WRONG.replace("NUMBER", "4"), 1, ["failed: one", "4 failed"]),
    ],
    ids=["flaky", "wrong", "too many to be flaky"],
)
def test_a_failure_is_tried_again_alone_and_never_silent(
    tmp_path: Path, text: str, code: int, ends: list[str]
) -> None:
    tree(tmp_path, ())
    runner = tmp_path / "tests" / "side_by_side.py"
    places = 'ON_SERVERS = ("tests/e2e/servers", CONTRACTS)'
    runner.write_text(
        re.sub(r"ON_SERVERS = \(.*?\n\)", places, RUNNER.read_text(), flags=re.DOTALL)
    )
    (tmp_path / "tests/contract/servers/test_one.py").write_text(text)

    command = [sys.executable, str(runner)]
    environment = {**os.environ, "PYTEST_ADDOPTS": "-p no:randomly"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == code, done.stdout
    for end in ends:
        assert end in done.stdout
    assert "assert" in done.stdout  # the first failure is printed in any case
