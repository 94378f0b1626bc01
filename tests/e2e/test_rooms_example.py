"""The rooms service against a simulated Proxmox cluster: its demo, run as a user runs it.

Workers are killed in each step, answers are lost, rooms are deleted while they are made, and a
storage is full. Each room ends with exactly the machines that it should have.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.demo import ROOT

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("fakepve", "proxmoxer", "uvicorn")),
        reason="needs the dependency group rooms",
    ),
]
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
SCENARIOS = ["storage-full", "lost-answers", "cancelled", "killed-workers", "mistakes"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rooms")


@pytest.fixture(scope="module")
def demo(out: Path) -> dict[str, dict[str, Any]]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MQCORE_")}
    words = [sys.executable, "-m", "examples.rooms.demo", "--out", str(out), "--only", *SCENARIOS]
    environment = own | {"COLUMNS": "100"}
    with subprocess.Popen(
        words, cwd=ROOT, env=environment, text=True, start_new_session=True, **PIPES
    ) as process:
        try:
            said, errors = process.communicate(timeout=380)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the workers and the cluster
            raise
    assert process.returncode == 0, said + errors
    results: list[dict[str, Any]] = json.loads((out / "result.json").read_text())
    for each in results:
        assert any(
            line.split()[:2] == [each["name"], str(each["rooms"])] for line in said.splitlines()
        ), said
    return {each["name"]: each for each in results}


def counts(result: dict[str, Any]) -> tuple[int, ...]:
    """Return rooms and templates, ready, removed, machines and clones."""
    return tuple(result[name] for name in ("rooms", "ready", "removed", "machines", "clones"))


def test_a_room_whose_worker_is_killed_in_any_step_has_exactly_one_machine(
    demo: dict[str, dict[str, Any]],
) -> None:
    assert counts(demo["killed-workers"]) == (10, 8, 2, 8, 9)


def test_a_request_that_was_done_is_not_repeated_when_its_answer_is_lost(
    demo: dict[str, dict[str, Any]],
) -> None:
    assert counts(demo["lost-answers"]) == (3, 3, 0, 3, 3)


def test_a_room_that_is_deleted_at_any_time_leaves_no_machine(
    demo: dict[str, dict[str, Any]],
) -> None:
    assert counts(demo["cancelled"])[:4] == (3, 0, 3, 0)


def test_a_room_that_cannot_be_made_is_given_up_without_another_attempt(
    demo: dict[str, dict[str, Any]], out: Path
) -> None:
    assert counts(demo["storage-full"]) == (2, 0, 2, 0, 2)
    command = [sys.executable, "-m", "mqcore", "dlq", "list", "rooms", "--json"]
    url = f"sqlite:///{out / 'rooms.db'}"
    listed = subprocess.run([*command, "--url", url], capture_output=True, check=True, timeout=60)
    letters = json.loads(listed.stdout)
    assert {(letter["reason"], letter["attempts"]) for letter in letters} == {("rejected", 1)}
    assert {letter["error_type"] for letter in letters} == {"examples.rooms.proxmox.StorageFull"}
    assert len(letters) == 3, "two rooms and a template"


def test_a_request_that_makes_no_sense_makes_no_machine(demo: dict[str, dict[str, Any]]) -> None:
    assert counts(demo["mistakes"]) == (1, 1, 0, 1, 1)


def test_no_storage_has_more_than_two_clones_at_once(demo: dict[str, dict[str, Any]]) -> None:
    assert all(each["at_once"] <= 2 for each in demo.values())
