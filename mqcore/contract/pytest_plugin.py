"""The pytest plugin: makes a test of each case, gathers the results, and says at the end what the run is worth.

It is loaded by its entry point in every project that has mqcore installed, and does nothing where `test_contract` is not collected.
Leaving cases out (`-k`, `--deselect`, a crash) makes the report *partial*; under `CI=true` that fails the run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mqcore.contract.case import Case
    from mqcore.contract.harness import Harness
    from mqcore.contract.report import Report
    from mqcore.contract.run import Result, Waiver

__all__ = ["Contract"]

_KEY = pytest.StashKey["Contracts"]()


class Contract:
    """The results of one test module, which is one backend."""

    def __init__(self, waivers: list[Waiver]) -> None:
        """Start with none."""
        self.waivers = waivers
        self.expected = 0
        self.results: list[Result] = []
        self.server = ""

    def waiver(self, case: Case) -> Waiver | None:
        """Return the waiver of a case, if it has one."""
        return next((waiver for waiver in self.waivers if waiver.case == case.name), None)

    def add(self, result: Result, harness: Harness) -> None:
        """Note a result."""
        self.results.append(result)
        self.server = self.server or harness.server_version()

    def report(self) -> Report | None:
        """Return the report; None when no case reached the backend."""
        from mqcore.contract.report import Report  # noqa: PLC0415 - this module is loaded in every pytest run: it stays small

        capabilities = next((result.capabilities for result in self.results if result.capabilities is not None), None)
        if capabilities is None:
            return None
        whole = len(self.results) == self.expected
        return Report(self.results, capabilities, self.server or capabilities.server, whole, self.waivers)


class Contracts:
    """All of one pytest run, by the name of the test module."""

    def __init__(self, waivers: list[Waiver]) -> None:
        """Start with none."""
        self._waivers = waivers
        self._runs: dict[str, Contract] = {}

    def of(self, module: str) -> Contract:
        """Return those of one module."""
        return self._runs.setdefault(module, Contract(self._waivers))

    def reports(self) -> list[tuple[Contract, Report]]:
        """Return the reports of the modules in which a case reached the backend."""
        found = [(run, run.report()) for run in self._runs.values()]
        return [(run, report) for run, report in found if report is not None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--contract-report` and the ini option `contract_waivers`."""
    parser.getgroup("mqcore").addoption(
        "--contract-report", metavar="PATH", help="write the contract's report: .json or .md"
    )
    parser.addini(
        "contract_waivers", "cases that are known to fail, one `case: reason` a line", type="linelist", default=[]
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the waivers."""
    lines = config.getini("contract_waivers")
    if not lines:
        config.stash[_KEY] = Contracts([])
        return
    from mqcore.contract.run import Waiver  # noqa: PLC0415 - as above

    pairs = [line.partition(":") for line in lines]
    if any(not reason.strip() for _, _, reason in pairs):
        msg = "contract_waivers: every line is `case: reason`, and the reason is printed with each report"
        raise pytest.UsageError(msg)
    config.stash[_KEY] = Contracts([Waiver(case.strip(), reason.strip()) for case, _, reason in pairs])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each case."""
    if "contract_case" in metafunc.fixturenames:
        from mqcore.contract.case import all_cases  # noqa: PLC0415 - as above

        cases = all_cases()
        metafunc.config.stash[_KEY].of(metafunc.module.__name__).expected += len(cases)
        metafunc.parametrize("contract_case", cases, ids=[case.name for case in cases])


@pytest.fixture
def contract(request: pytest.FixtureRequest) -> Contract:
    """Where the results of this module are gathered."""
    return request.config.stash[_KEY].of(request.module.__name__)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the run is worth, and write the report; of several backends each beside the other, by name."""
    reports = config.stash[_KEY].reports()
    for run, report in reports:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts().items()))
        terminalreporter.write_sep("=", f"mqcore contract: {report.verdict}")
        terminalreporter.write_line(f"{report.capabilities.backend}, {report.server}: {counts} of {run.expected} cases")
        for waiver in run.waivers:
            terminalreporter.write_line(f"waived: {waiver.case}: {waiver.reason}")
        if given := config.getoption("--contract-report"):
            path = Path(given)
            if len(reports) > 1:
                path = path.with_stem(f"{path.stem}-{report.capabilities.backend}")
            path.write_text(report.markdown() if path.suffix == ".md" else report.json(), encoding="utf-8")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A partial run is no proof: under CI it fails."""
    partial = any(report.verdict == "partial" for _, report in session.config.stash[_KEY].reports())
    if partial and os.environ.get("CI") == "true" and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
