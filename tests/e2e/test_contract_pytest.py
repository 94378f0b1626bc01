"""The contract as an author's project runs it under CI: a smoke run that is one, a run with cases left out, a report each."""

from __future__ import annotations

import json
import os
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
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
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
    found = project("--contract-reports=reports", test_some=SMOKE.format(smoke=True))
    assert found.ret == 0  # under CI too: nothing was left out of what was asked for
    found.stdout.fnmatch_lines(["*mqcore contract: smoke passed*", f"memory, *: * of {CORE} cases"])
    assert not (pytester.path / "reports").exists()


def test_a_smoke_run_with_cases_left_out_is_partial(project: Callable[..., pytest.RunResult]) -> None:
    found = project("-k", "core and not classify", test_some=SMOKE.format(smoke=True))
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    found.stdout.fnmatch_lines(["*mqcore contract: partial*"])


def test_each_module_has_a_report_of_its_own(
    project: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    whole = SMOKE.format(smoke=False)
    found = project("--contract-reports=reports", "-k", "core", test_one_4=whole, test_other=whole)
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    assert sorted(path.name for path in (pytester.path / "reports").iterdir()) == ["one_4.json", "other.json"]
    report = json.loads((pytester.path / "reports" / "other.json").read_text())
    assert (report["backend"], report["verdict"]) == ("memory", "partial")
