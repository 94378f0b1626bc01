"""`mqcore background`: workers by pid file, started, restarted and stopped by their names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import write
from support.waiting import eventually

from mqcore import ConfigurationError
from mqcore.cli import pid_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.commands import Refused, Run

APP = """
from mqcore import App
app = App("shop")

@app.consumer("orders")
async def handle(order: bytes) -> None: ...
"""
WAITS = "import signal; print('ready', flush=True); signal.pause()"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)\n"
    "while True: signal.pause()"
)


@pytest.fixture
def folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an application; whatever was started there is ended."""
    write("shop_in_background.py", APP)
    monkeypatch.setenv("MQCORE_URL", "sqlite:///queues.db")
    folder = Path("run")
    folder.mkdir()
    yield folder
    for path in folder.glob("*.pid"):
        with suppress(ConfigurationError):
            node = pid_files.read(path)
            if node is not None:
                pid_files.signalled(node, signal.SIGKILL, 30)


@pytest.fixture
def program() -> Iterator[Any]:
    """Start programs of Python, which are ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(text: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", text]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def node_of(name: str, pid: int, began: str | None = None, **more: Any) -> pid_files.Node:
    began = pid_files.began(pid) if began is None else began
    return pid_files.Node(name, pid, began or "", ["shop:app"], ".", 1.0, **more)


def test_workers_are_started_listed_restarted_and_stopped(run: Run, folder: Path) -> None:
    where = ("--folder", str(folder))
    app = "shop_in_background:app"
    said = run("background", "start", app, "w1,w2", *where, "--json", "--", "--grace", "20")
    assert said.code == 0, said
    assert [(it["name"], it["state"]) for it in said.data] == [("w1", "started"), ("w2", "started")]
    first, second = (it["pid"] for it in said.data)
    assert (folder / "w1.pid").read_text().startswith(f"{first}\n")
    assert run("background", "start", app, "w1", *where).out == (
        f"w1 runs already (process {first})\n"
    )

    listed = run("background", *where, "--json").data
    assert [(it["name"], it["running"], it["pid"]) for it in listed] == [
        ("w1", True, first),
        ("w2", True, second),
    ]
    assert listed[0]["command"] == [app, "--grace", "20"]
    (row, _) = run("background", *where).rows
    assert row[:3] == ["w1", "running", str(first)]

    (again,) = run("background", "restart", "w1", *where, "--json").data
    assert (again["state"], again["pid"] != first) == ("started", True)
    said = run("background", "stop", "w1,w2,w3", *where)
    assert said.code == 0
    assert said.out.splitlines() == [
        f"w1 stopped (process {again['pid']})",
        f"w2 stopped (process {second})",
        "w3 does not run: there is no w3.pid",
    ]
    assert list(folder.glob("*.pid")) == []
    log = (folder / "w1.log").read_text()
    assert log.count("consumer.started") >= 2
    assert "consumer.stopped" in log


def test_a_worker_that_cannot_start_is_reported_with_its_log(run: Run, folder: Path) -> None:
    said = run("background", "start", "shop_in_background:nothing", "w1", "--folder", str(folder))
    assert said.code == 1
    assert "w1 not started: it ended at once with exit code 2" in said.out
    assert "has no 'nothing'" in said.out
    assert not (folder / "w1.pid").exists()


def test_the_process_of_another_program_is_left_alone(run: Run, folder: Path, program: Any) -> None:
    """The id of a worker that has ended may belong to any process by now."""
    other = program(WAITS)
    pid_files.write(folder / "w1.pid", node_of("w1", other.pid, began="an earlier process"))
    assert run("background", "--folder", str(folder)).rows[0][1] == "ended"
    said = run("background", "stop", "w1", "--folder", str(folder), "--kill")
    assert said.code == 0
    assert "w1 does not run: it has ended before" in said.out
    assert not (folder / "w1.pid").exists()
    assert other.poll() is None


async def test_a_process_that_has_ended_is_recognised(program: Any) -> None:
    process = program(WAITS)
    node = node_of("w1", process.pid)
    assert pid_files.is_running(node)
    process.kill()
    await eventually(lambda: not pid_files.is_running(node), within=60)  # not waited for: a zombie
    assert pid_files.signalled(node, signal.SIGTERM, 0)
    process.wait()
    assert pid_files.signalled(node, signal.SIGTERM, 0)
    assert not pid_files.is_running(node_of("w2", process.pid, began=node.began))


def test_a_worker_that_does_not_end_is_killed_only_when_asked(
    run: Run, folder: Path, program: Any
) -> None:
    process = program(STUBBORN)
    pid_files.write(folder / "w1.pid", node_of("w1", process.pid))
    stop = ("background", "stop", "w1", "--folder", str(folder), "--timeout", "0.1")
    said = run(*stop)
    assert (said.code, process.poll()) == (1, None)
    assert "w1 still runs" in said.out
    assert (folder / "w1.pid").exists()

    said = run(*stop, "--kill")
    assert (said.code, said.out) == (0, f"w1 killed (process {process.pid})\n")
    assert process.wait(60) == -signal.SIGKILL


def test_a_restart_waits_for_the_end_of_the_old_one(run: Run, folder: Path, program: Any) -> None:
    process = program(STUBBORN)
    pid_files.write(folder / "w1.pid", node_of("w1", process.pid, grace=-4.9))
    said = run("background", "restart", "w1", "--folder", str(folder))
    assert (said.code, process.poll()) == (1, None)
    assert "w1 still runs" in said.out


def test_without_a_pidfd_the_id_is_checked_as_well(
    monkeypatch: pytest.MonkeyPatch, program: Any
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    process = program(WAITS)
    assert pid_files.signalled(node_of("w1", process.pid, began="earlier"), signal.SIGKILL, 0)
    assert process.poll() is None
    assert pid_files.signalled(node_of("w1", process.pid), signal.SIGTERM, 60)
    assert process.wait(60) == -signal.SIGTERM


def test_without_proc_the_system_is_asked(monkeypatch: pytest.MonkeyPatch, program: Any) -> None:
    process = program(WAITS)
    monkeypatch.setattr(pid_files, "_BOOT", Path("/nonexistent"))
    assert pid_files.began(process.pid)
    process.kill()
    process.wait()
    assert pid_files.began(process.pid) is None


def test_two_commands_do_not_start_one_worker_twice(refused: Refused, folder: Path) -> None:
    with pid_files.locked(folder / "w1.pid"):
        text = refused("background", "stop", "w1", "--folder", str(folder))
    assert "another command is starting or stopping 'w1'" in text


def test_what_is_wrong_is_one_line(refused: Refused, run: Run, folder: Path) -> None:
    where = ("--folder", str(folder))
    assert "is not a list of names" in refused("background", "stop", "../w1", *where)
    assert "does not exist" in refused("background", "stop", "w1", "--folder", "nowhere")
    assert "is not a number of seconds" in refused(
        "background", "start", "shop:app", "w1", *where, "--", "--grace", "long"
    )
    (folder / "w1.pid").write_text("12\n")
    assert "is not a pid file of" in refused("background", "stop", "w1", *where)
    said = run("background", "restart", "w9", *where)
    assert (said.code, "its options are not known" in said.out) == (1, True)
    assert run("background", "list", "--folder", ".").out.startswith("no pid file in ")


def test_a_pid_file_that_is_a_link_is_not_followed(folder: Path) -> None:
    target = folder / "target"
    target.write_text("precious")
    (folder / ".w1.pid.lock").symlink_to(target.resolve())
    with (
        pytest.raises(ConfigurationError, match="cannot be written"),
        pid_files.locked(folder / "w1.pid"),
    ):
        raise AssertionError
    assert target.read_text() == "precious"


def test_a_pid_file_is_for_its_owner_only(folder: Path) -> None:
    path = folder / "w1.file"
    pid_files.write(path, node_of("w1", os.getpid()))
    assert path.stat().st_mode & 0o777 == 0o600
    pid, data = path.read_text().splitlines()
    assert int(pid) == json.loads(data)["pid"] == os.getpid()
    assert pid_files.read(path) == node_of("w1", os.getpid())
