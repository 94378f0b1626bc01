"""The contract in an author's project under CI: a smoke run, a partial run, and reports."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable

import pytest

from mqcore.contract import all_cases

pytest_plugins = ["pytester"]
CORE = sum(case.profile == "core" or bool(case.hooks) for case in all_cases())
SMOKE = """
import pytest
from mqcore.contract import MemoryHarness
from mqcore.contract.suite import test_contract

contract_smoke = {smoke}

@pytest.fixture
def harness():
    return MemoryHarness()
"""


@pytest.fixture
def project(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    for name in [name for name in os.environ if name.startswith(("MQCORE_", "PYTEST_ADDOPTS"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CI", "true")

    def run(*options: str, **files: str) -> pytest.RunResult:
        pytester.makepyfile(**files)
        return pytester.runpytest_subprocess("-q", *options)

    return run


def test_a_smoke_run_is_less_from_the_start_and_no_proof(
    project: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    found = project("--mqcore-contract-reports=reports", test_some=SMOKE.format(smoke=True))
    assert found.ret == 0  # under CI too: nothing was left out of what was asked for
    found.stdout.fnmatch_lines(["*mqcore contract: smoke passed*", f"memory, *: * of {CORE} cases"])
    assert not (pytester.path / "reports").exists()


def test_a_smoke_run_with_cases_left_out_is_partial(
    project: Callable[..., pytest.RunResult],
) -> None:
    found = project("-k", "core and not classify", test_some=SMOKE.format(smoke=True))
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    found.stdout.fnmatch_lines(["*mqcore contract: partial*"])


def test_each_module_has_a_report_of_its_own(
    project: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    whole = SMOKE.format(smoke=False)
    found = project(
        "--mqcore-contract-reports=reports", "-k", "core", test_one_4=whole, test_other=whole
    )
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    assert sorted(path.name for path in (pytester.path / "reports").iterdir()) == [
        "one_4.json",
        "other.json",
    ]
    report = json.loads((pytester.path / "reports" / "other.json").read_text())
    assert (report["backend"], report["verdict"]) == ("memory", "partial")


@pytest.mark.parametrize("old", ["--brokers=local", "--broker=redis", "--contract-report"])
def test_an_old_option_name_is_answered_with_the_new_one(
    project: Callable[..., pytest.RunResult], old: str
) -> None:
    found = project(old, test_some="def test_one(): ...")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    name = old.partition("=")[0]
    found.stderr.fnmatch_lines([f"ERROR: {name} is not *. mqcore's is --mqcore-{name[2:]}."])


def test_another_project_may_use_an_option_name_that_mqcore_once_had(
    project: Callable[..., pytest.RunResult],
) -> None:
    found = project(
        "--broker=mine",
        conftest="def pytest_addoption(parser): parser.addoption('--broker')",
        test_some="def test_one(pytestconfig): assert pytestconfig.getoption('--broker') == 'mine'",
    )
    found.assert_outcomes(passed=1)


BROKEN = """
import pytest
from mqcore.contract import MemoryHarness
from mqcore.contract.suite import test_model
from mqcore_memory.backend import MemoryBackend
from mqcore_memory.options import MemoryOptions

class Upside(MemoryBackend):
    async def publish(self, batch, *, timeout):
        return list(reversed(await super().publish(list(reversed(batch)), timeout=timeout)))

class Harness(MemoryHarness):
    def make_backend(self):
        return Upside(self.url, MemoryOptions(clock=self.clock))

@pytest.fixture
def harness():
    return Harness()
"""


def test_the_line_that_a_failed_model_prints_replays_it(
    project: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    found = project(test_upside=BROKEN)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(
        ["*came: m* (priority *) came before it in *", "steps:", "*publish *(priority *) stored*"]
    )

    line = next(line for line in found.outlines if line.startswith("replay: pytest "))
    words = shlex.split(line.removeprefix("replay: pytest "))
    again = pytester.runpytest_subprocess("-q", *words)
    again.assert_outcomes(failed=1)
    assert line in again.outlines

    wrong = pytester.runpytest_subprocess("-q", "-k", "test_model", "--mqcore-steps", "jump jobs")
    wrong.stdout.fnmatch_lines(["*'jump jobs' is not a step; the steps are: publish, *"])
