"""The pytest plugin: makes a test of each case, collects the results, and reports the verdict.

It is loaded by its entry point in every project that has mqcore installed, and does nothing where
`test_contract` is not collected. When cases are left out (`-k`, `--deselect`, a crash), the report
is *partial*; with `CI=true` that fails the run. A test module with `contract_smoke = True` runs
profile *core* and the cases that need a hook only. That suits another way to reach the same server.
The fixtures for real brokers are part of the plugin.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqcore.contract.case import Case
    from mqcore.contract.harness import Harness
    from mqcore.contract.report import Report
    from mqcore.contract.run import Result, Waiver

__all__ = ["Contract"]

pytest_plugins = ["mqcore.contract.brokers.fixtures", "mqcore.contract.task_fixtures"]
_KEY = pytest.StashKey["Contracts"]()
_RENAMED = ("--broker", "--brokers", "--broker-url", "--contract-report", "--contract-reports")
"""Old names of our options, before all of them began with `--mqcore-`."""


class Contract:
    """The results of one test module, which is one backend."""

    def __init__(self, waivers: list[Waiver], name: str) -> None:
        """Start empty; `name` is the module's name."""
        self.waivers, self.name = waivers, name
        self.expected = 0
        self.smoke = False
        self.results: list[Result] = []
        self.server = ""
        self.provider = ""
        self._pool: ThreadPoolExecutor | None = None
        self._running: dict[str, Future[Result]] = {}

    def waiver(self, case: Case) -> Waiver | None:
        """Return the waiver of a case, if it has one."""
        return next((waiver for waiver in self.waivers if waiver.case == case.name), None)

    def run(self, case: Case, harness: Harness, items: Iterable[pytest.Item]) -> Result:
        """Run a case.

        Where the harness allows several at once, all cases of `items` start with the first. A case
        that is exclusive runs alone.
        """
        from mqcore.contract.run import run_case  # noqa: PLC0415 - as below

        if harness.at_once > 1 and not case.exclusive:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(harness.at_once, "contract")
                for one in map(_case_of, items):
                    if not one.exclusive:
                        self._running[one.name] = self._pool.submit(
                            run_case, one, harness, self.waiver(one)
                        )
            if (running := self._running.pop(case.name, None)) is not None:
                return running.result()
        wait(self._running.values())
        return run_case(case, harness, self.waiver(case))

    def end(self) -> None:
        """Start no more cases: the run is over."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def add(self, result: Result, harness: Harness) -> None:
        """Record a result."""
        self.results.append(result)
        self.server = self.server or harness.server_version()
        self.provider = getattr(harness, "provider", "")

    @property
    def complete(self) -> bool:
        """Whether every selected case has a result."""
        return len(self.results) == self.expected

    def report(self) -> Report | None:
        """Return the report; None when no case reached the backend."""
        from mqcore.contract.report import Report  # noqa: PLC0415 - this module is loaded in every pytest run: it stays small

        capabilities = next(
            (result.capabilities for result in self.results if result.capabilities is not None),
            None,
        )
        if capabilities is None:
            return None
        whole = self.complete and not self.smoke
        return Report(
            self.results, capabilities, self.server or capabilities.server, whole, self.waivers
        )


class Contracts:
    """The contracts of one pytest run, by test module."""

    def __init__(self, waivers: list[Waiver]) -> None:
        """Start empty."""
        self._waivers = waivers
        self._runs: dict[str, Contract] = {}

    def of(self, module: str) -> Contract:
        """Return the contract of one module."""
        name = module.rpartition(".")[2].removeprefix("test_")
        return self._runs.setdefault(module, Contract(self._waivers, name))

    def end(self) -> None:
        """Start no more cases."""
        for run in self._runs.values():
            run.end()

    def reports(self) -> list[tuple[Contract, Report]]:
        """Return the reports of the modules in which a case reached the backend."""
        found = [(run, run.report()) for run in self._runs.values()]
        return [(run, report) for run, report in found if report is not None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for reports and `test_model`, and the ini option `contract_waivers`."""
    group = parser.getgroup("mqcore")
    group.addoption(
        "--mqcore-contract-report", metavar="PATH", help="write the contract's report: .json or .md"
    )
    group.addoption(
        "--mqcore-contract-reports",
        metavar="DIR",
        help="write the JSON report of each test module into this folder",
    )
    group.addoption(
        "--mqcore-steps",
        metavar="STEPS",
        help="let test_model do these steps and nothing else; a trace that fails prints them",
    )
    parser.addini(
        "contract_waivers",
        "cases that are known to fail, one `case: reason` a line",
        type="linelist",
        default=[],
    )


@pytest.hookimpl(trylast=True)
def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> None:
    """Reject an option's old name and name the new one.

    The old names are not registered, so other plugins can use them. This runs last, when conftest
    files have added their options.
    """
    _, unknown = parser.parse_known_and_unknown_args(args)
    for name in (argument.partition("=")[0] for argument in unknown):
        if name in _RENAMED:
            new = f"--mqcore-{name.removeprefix('--')}"
            raise pytest.UsageError(
                f"{name} is not an option of pytest or its plugins. mqcore's is {new}."
            )


def pytest_configure(config: pytest.Config) -> None:
    """Read the waivers."""
    lines = config.getini("contract_waivers")
    if not lines:
        config.stash[_KEY] = Contracts([])
        return
    from mqcore.contract.case import all_cases  # noqa: PLC0415 - as above
    from mqcore.contract.run import Waiver  # noqa: PLC0415 - as above

    pairs = [line.partition(":") for line in lines]
    if any(not reason.strip() for _, _, reason in pairs):
        raise pytest.UsageError(
            "contract_waivers: each line must be `case: reason`; the reason is printed with each "
            "report"
        )
    waivers = [Waiver(case.strip(), reason.strip()) for case, _, reason in pairs]
    names = [case.name for case in all_cases()]
    if wrong := [waiver.case for waiver in waivers if waiver.case not in names]:
        raise pytest.UsageError("\n".join(_no_such_case(case, names) for case in wrong))
    config.stash[_KEY] = Contracts(waivers)


def _no_such_case(wrong: str, names: list[str]) -> str:
    """Return an error for an unknown case, with similar names.

    A waiver of an unknown case would have no effect.
    """
    near = get_close_matches(wrong, names, n=3, cutoff=0.5)
    # A case with variants.
    near += [name for name in names if name.partition("[")[0] == wrong and name not in near]
    hint = f"similar: {', '.join(near)}" if near else "`mqcore contract run URL` prints the names"
    return f"contract_waivers: no case is named {wrong!r}; {hint}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each case."""
    if "contract_case" in metafunc.fixturenames:
        from mqcore.contract.case import all_cases  # noqa: PLC0415 - as above

        run = metafunc.config.stash[_KEY].of(metafunc.module.__name__)
        run.smoke = getattr(metafunc.module, "contract_smoke", False)
        cases = [
            case for case in all_cases() if case.profile == "core" or case.hooks or not run.smoke
        ]
        run.expected += len(cases)
        metafunc.parametrize("contract_case", cases, ids=[case.name for case in cases])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run exclusive cases before the others of their module, which may run at the same time."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        if isinstance(item, pytest.Function) and "contract_case" in item.fixturenames:
            places.setdefault(item.module.__name__, []).append(place)
    for own in places.values():
        found = sorted(
            (items[place] for place in own), key=lambda item: not _case_of(item).exclusive
        )
        for place, item in zip(own, found, strict=True):
            items[place] = item


def _case_of(item: pytest.Item) -> Case:
    case: Case = item.callspec.params["contract_case"]  # type: ignore[attr-defined]  # an item that was made of a case
    return case


@pytest.fixture
def contract(request: pytest.FixtureRequest) -> Contract:
    """Collects the results of this module."""
    return request.config.stash[_KEY].of(request.module.__name__)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the verdict of each backend, and write the reports."""
    reports = config.stash[_KEY].reports()
    for run, report in reports:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts().items()))
        verdict = "smoke passed" if run.smoke and run.complete and report.ok else report.verdict
        terminalreporter.write_sep("=", f"mqcore contract: {verdict}")
        by = f", {run.provider}" if run.provider else ""
        terminalreporter.write_line(
            f"{report.capabilities.backend}, {report.server}{by}: {counts} of {run.expected} cases"
        )
        for waiver in run.waivers:
            terminalreporter.write_line(f"waived: {waiver.case}: {waiver.reason}")
        for result in report.repeated:
            terminalreporter.write_line(
                f"passed when tried again: {result.case.name}: {result.repeated[0]}"
            )
        if given := config.getoption("--mqcore-contract-report"):
            path = Path(given)
            if len(reports) > 1:
                path = path.with_stem(f"{path.stem}-{report.capabilities.backend}")
            path.write_text(
                report.markdown() if path.suffix == ".md" else report.json(), encoding="utf-8"
            )
        folder = config.getoption("--mqcore-contract-reports")
        if folder and not run.smoke:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{run.name}.json").write_text(report.json(), encoding="utf-8")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a partial run under CI: it is not a proof."""
    session.config.stash[_KEY].end()
    partial = any(not run.complete for run, _ in session.config.stash[_KEY].reports())
    if partial and os.environ.get("CI") == "true" and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
