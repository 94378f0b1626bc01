"""A case that checks seconds is tried again when the machine stood still, and is not hidden."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mqcore.clock import SystemClock
from mqcore.contract import Case, MemoryHarness, Report, Result, UrlHarness
from mqcore.contract.kit import ContractError, Kit
from mqcore.contract.machine import Waits
from mqcore.contract.run import run_case
from mqcore.testing import memory_url

STOOD_STILL, IDLE = Waits(latest=0.7), Waits(latest=0.01, machine=0.02)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Waits]:
    """Say what is measured of the machine, by the one element of a list."""
    measured = [STOOD_STILL]

    @contextmanager
    def watched() -> Iterator[Waits]:
        yield measured[0]

    monkeypatch.setattr("mqcore.contract.run.watched", watched)
    return measured


def in_real_time() -> UrlHarness:
    return UrlHarness(memory_url("machine"), clock=SystemClock())


def failing(times: int, profile: str = "lease") -> tuple[Case, list[str]]:
    """Make a case that fails so many times, and what counts its tries."""
    tries: list[str] = []

    async def run(_: Kit) -> None:
        tries.append("tried")
        if len(tries) <= times:
            raise ContractError("a lease that holds", f"it was lost in try {len(tries)}")

    return Case(f"{profile}.a_case", profile, ("G5",), (), "A case.", run), tries


def report(result: Result) -> Report:
    assert result.capabilities is not None
    return Report([result], result.capabilities, "a server", whole=True)


@pytest.mark.usefixtures("machine")
def test_a_lease_that_the_machine_lost_is_tried_again_and_told() -> None:
    case, tries = failing(1)
    result = run_case(case, in_real_time())
    assert (result.status, len(tries)) == ("passed", 2)

    told = report(result)
    assert told.ok
    for text in (result.repeated[0], told.markdown(), told.json()):
        assert "stood still for 0.70 s" in text
        assert "it was lost in try 1" in text


@pytest.mark.usefixtures("machine")
def test_a_backend_that_always_fails_fails_on_any_machine() -> None:
    case, tries = failing(100)
    result = run_case(case, in_real_time())
    assert (result.status, len(tries)) == ("failed", 3)
    assert report(result).repeated == []


def test_on_an_idle_machine_the_first_failure_counts(machine: list[Waits]) -> None:
    machine[:] = [IDLE]
    case, tries = failing(1)
    assert run_case(case, in_real_time()).status == "failed"
    assert len(tries) == 1


@pytest.mark.usefixtures("machine")
def test_what_may_not_happen_at_any_speed_is_not_excused() -> None:
    case, tries = failing(1, "recovery")
    assert run_case(case, in_real_time()).status == "failed"
    assert len(tries) == 1


@pytest.mark.usefixtures("machine")
def test_virtual_time_does_not_depend_on_the_machine() -> None:
    case, tries = failing(1)
    assert run_case(case, MemoryHarness()).status == "failed"
    assert len(tries) == 1


STOPPED = '''
import os, signal, subprocess, sys
from mqcore.contract.machine import watched

# again and again: the first may come before this process has stopped
waker = f"""
import os, signal, time
while True:
    time.sleep(1)
    os.kill({os.getpid()}, signal.SIGCONT)
"""
with watched() as waits:
    with subprocess.Popen([sys.executable, "-c", waker]) as waking:
        os.kill(os.getpid(), signal.SIGSTOP)
        waking.kill()
print(waits.busy, waits.latest)
'''


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be stopped there")
def test_a_process_that_was_stopped_has_stood_still() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED], capture_output=True, text=True, check=True, timeout=60
    )
    busy, latest = done.stdout.split()
    assert busy == "True"
    assert float(latest) >= 0.5
