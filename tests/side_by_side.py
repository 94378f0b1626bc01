"""All the tests: those without a server, a few runs at a time; then a run for each server.

    python tests/side_by_side.py [OPTION…]          # options are passed to every pytest

Cases on a server mostly wait (a contract takes minutes, and under a sixth of that is work of a
processor), so runs of their own lose nothing by company, and each has its server to itself: it may
kill it. A contract's cases, its model and the tests in which brokers are killed
are runs of their own. Each writes a log, of which the summary is shown when it passes and the whole
when it fails. The last line adds all of them up, in pytest's own form. Each contract run leaves its
report in `.nox/logs/reports`, or where `--mqcore-contract-reports=DIR` says. How many runs on
servers go on at once, `MQCORE_TESTS_AT_ONCE` says.

A few tests that fail beside others are run once more at the end, alone. One that passes then is
flaky, not wrong: the last lines name it, its first failure is printed, and it is a defect to mend.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = "tests/contract/servers"
ON_SERVERS = (
    "tests/e2e/servers",
    CONTRACTS,
    "tests/integration/interop",
    "tests/integration/postgresql",
    "tests/integration/rabbitmq",
    "tests/integration/redis",
    "tests/contract/test_beanstalk.py",
    "tests/contract/test_beanstalk_corners.py",
    "tests/contract/test_brokers_live.py",
    "tests/e2e/test_broker_fixtures.py",
    "tests/e2e/test_lab.py",
    "tests/e2e/test_segmentation_on_brokers.py",
)
"""Folders and files of tests that mostly wait for servers, those that take longest first."""
LONG = (
    "tests/contract/test_task_stores.py",
    "tests/contract/test_task_store_sqlite.py",
    "tests/mutants/test_task_mutants.py",
    "tests/integration/schedules",
    "tests/integration/sqlite",
    "tests/integration/tasks",
    "tests/integration/test_inbox_transactions.py",
    "tests/integration/test_inbox_killed.py",
    "tests/integration/test_enlist.py",
    "tests/integration/test_outbox.py",
    "tests/integration/test_outbox_campaign.py",
    "tests/integration/test_django.py",
    "tests/integration/test_outage.py",
)
"""Folders and files that take a minute or more without a server: each is a run of its own."""
FOLDERS = (
    "tests/integration",
    "tests/e2e",
    "tests/contract",
    "tests/unit",
    "tests/docs",
    "tests/mutants",
)
"""What else needs no server, that which takes longest first."""
LOGS = ROOT / ".nox" / "logs"
_CORES = os.cpu_count() or 2
_AT_ONCE = int(os.environ.get("MQCORE_TESTS_AT_ONCE") or 2 * _CORES)
_AT_ONCE_WITHOUT_A_SERVER = _CORES + 1  # they wait too, for about a third of their time
_COLOR = re.compile(r"\x1b\[[\d;]*m")
_SUMMARY = re.compile(r"^=+ (?P<counts>.* in [\d.]+s).* =+$", re.MULTILINE)
_COUNT = re.compile(
    r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed|deselected|warnings?|rerun)\b"
)
_TOLD = re.compile(r"^=+ mqcore .*(?:\n(?!=).*)*", re.MULTILINE)
"""The sections that mqcore's own plugin writes."""
_TESTS_FAILED = 1
_FINE = (0, 5)
"""Exit codes of pytest: some tests failed; all passed, or there was nothing to run."""
_WIDTH = 80
_PATIENCE = 60
"""Seconds that the runs have to remove what they started."""
_INTERRUPTED = 130
_SECOND_TRIES = 3
"""How many tests in all may be run again. More than that fail for a reason."""


class Going:
    """The pytest runs that are going on. They end with this program."""

    def __init__(self) -> None:
        self.stopping = False
        self._processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a run that writes into a pipe, in its own group.

        A Ctrl-C reaches it through this program, and once.
        """
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=ROOT, text=True, process_group=0, **pipes)
        self._processes[process.pid] = process
        if self.stopping:
            process.send_signal(signal.SIGINT)
        return process

    def ended(self, process: subprocess.Popen[str]) -> None:
        """Forget it."""
        self._processes.pop(process.pid, None)

    def watch(self) -> None:
        """End them all at SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGALRM, self._kill)

    def _stop(self, _number: int, _frame: object) -> None:
        if self.stopping:
            return  # a second interrupt would break off the tidying up
        self.stopping = True
        signal.alarm(_PATIENCE)
        for process in tuple(self._processes.values()):
            process.send_signal(signal.SIGINT)

    def _kill(self, _number: int, _frame: object) -> None:
        for process in tuple(self._processes.values()):
            os.killpg(process.pid, signal.SIGKILL)


GOING = Going()


class Run(NamedTuple):
    """One pytest that has ended."""

    name: str
    code: int
    text: str
    seconds: float
    arguments: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no test failed."""
        return self.code in _FINE

    @property
    def counts(self) -> Counter[str]:
        """Count the results; a run that ended badly without a summary counts as one error."""
        last = [found["counts"] for found in _SUMMARY.finditer(_COLOR.sub("", self.text))][-1:]
        counts: Counter[str] = Counter()
        for number, word in _COUNT.findall("".join(last)):
            counts["errors" if word == "error" else "warnings" if word == "warning" else word] += (
                int(number)
            )
        if self.code not in _FINE and not (counts["failed"] or counts["errors"]):
            counts["errors"] += 1
        return counts


class SecondTry(NamedTuple):
    """A run of which some tests failed, and a run of those alone."""

    first: Run
    second: Run

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.first.name

    @property
    def passed(self) -> bool:
        """Whether all that had failed has passed now. Nothing to run is no pass."""
        return self.second.code == 0

    @property
    def counts(self) -> Counter[str]:
        """Count what was run again by its second result, and how many these were."""
        counts, again = self.first.counts, self.second.counts
        counts["rerun"] = counts["failed"] + counts["errors"]
        counts["failed"], counts["errors"] = again["failed"], again["errors"]
        counts["passed"] += again["passed"]
        return counts


def run(name: str, arguments: Sequence[str]) -> Run:
    """Run pytest to its end, and log its output."""
    began, log = time.monotonic(), LOGS / f"{name}.log"
    cache = ("-o", f"cache_dir={LOGS / 'cache' / name}")  # of its own: for a second try
    command = [sys.executable, "-m", "pytest", *cache, *arguments]
    if GOING.stopping:
        return Run(name, _INTERRUPTED, "interrupted before it began", 0.0)
    with log.open("w") as kept:
        process = GOING.start(command)
        with process:
            for line in process.stdout or ():
                kept.write(line)
        GOING.ended(process)
    seconds = time.monotonic() - began
    return Run(name, process.returncode, log.read_text(), seconds, tuple(arguments))


def tried_again(runs: Sequence[Run]) -> list[Run | SecondTry]:
    """Run what has failed once more, alone, unless it is too much to be an accident."""
    failed = [run for run in runs if not run.passed]
    number = sum(run.counts["failed"] + run.counts["errors"] for run in failed)
    broken = any(run.code != _TESTS_FAILED for run in failed)
    if GOING.stopping or broken or number > _SECOND_TRIES:
        return list(runs)
    return [run if run.passed else SecondTry(run, second_try(run)) for run in runs]


def second_try(first: Run) -> Run:
    """Run the tests of a run that have failed, and print the result."""
    # their report stays that of the first run
    words = [word for word in first.arguments if not word.startswith("--mqcore-contract-reports")]
    failed_ones = [*words, "--last-failed", "--last-failed-no-failures=none"]
    cache = ("-o", f"cache_dir={LOGS / 'cache' / first.name}")
    again = run(f"{first.name}-again", [*failed_ones, *cache])
    tell(again)
    return again


def say(text: str, end: str = "\n") -> None:
    """Write at once, for readers who watch the run."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def tell(run: Run) -> None:
    """Print the result of a run."""
    ended = "passed" if run.passed else f"FAILED with {run.code}"
    say(f"\n--- {run.name}: {ended} in {run.seconds:.0f} s: {counted(run.counts)}")
    say("\n".join(_TOLD.findall(run.text)) if run.passed else run.text)


def told(runs: Iterable[Run]) -> Iterator[Run]:
    """Print the result of each run as it comes."""
    for done in runs:
        if done.seconds:
            tell(done)
        yield done


def counted(counts: Counter[str]) -> str:
    """Return counts in the order in which pytest tells them."""
    order = (
        "failed",
        "passed",
        "skipped",
        "deselected",
        "xfailed",
        "xpassed",
        "warnings",
        "errors",
        "rerun",
    )
    return ", ".join(f"{counts[word]} {word}" for word in order if counts[word]) or "no tests ran"


def without_a_server() -> list[tuple[str, list[str]]]:
    """Return name and arguments of each run that needs no server."""
    others = [f"--ignore={place}" for place in (*ON_SERVERS, *LONG)]
    folders = [place for place in FOLDERS if (ROOT / place).is_dir()]
    rest = [f"--ignore={place}" for place in FOLDERS]
    return [
        *((Path(place).name, [place, *others]) for place in folders),
        *((Path(place).stem, [place]) for place in LONG if (ROOT / place).exists()),
        ("the-rest", ["tests", *rest]),
    ]


def on_servers() -> list[tuple[str, list[str]]]:
    """Return name and arguments of each run on a server."""
    found = []
    for place in ON_SERVERS:
        for file in sorted((ROOT / place).glob("test_*.py")) or [ROOT / place]:
            name, goal = file.stem.removeprefix("test_"), str(file.relative_to(ROOT))
            parts = ("test_contract", "test_model") if place == CONTRACTS else ()
            inside = [part for part in parts if f'"{part}"' in file.read_text()]
            found += [
                (f"{name}-{part.removeprefix('test_')}", [f"{goal}::{part}"]) for part in inside
            ] or [(name, [goal])]
    return found


def alone(words: Sequence[str]) -> int:
    """Run one pytest at this terminal, and return its exit code.

    It stays in the terminal's group, for a debugger. Ctrl-C reaches it there, so only a SIGTERM is
    passed on.
    """
    asked: list[int] = []

    def stop(number: int, _frame: object) -> None:
        if not asked and number == signal.SIGTERM:
            process.send_signal(signal.SIGINT)
        asked.append(number)

    with subprocess.Popen([sys.executable, "-m", "pytest", *words], cwd=ROOT) as process:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        return process.wait()


def main(options: Sequence[str]) -> int:
    """Run everything; 0 when all has passed."""
    if not all(option.startswith("--") for option in options):
        return alone(options)
    GOING.watch()
    began = time.monotonic()
    LOGS.mkdir(parents=True, exist_ok=True)
    # reports are of servers
    plain = [option for option in options if not option.startswith("--mqcore-contract-reports")]
    if plain == options:
        options = [*options, f"--mqcore-contract-reports={LOGS / 'reports'}"]
    runs: list[Run] = []
    for at_once, goals, words in (
        (_AT_ONCE_WITHOUT_A_SERVER, without_a_server(), plain),
        (_AT_ONCE, on_servers(), options),
    ):
        with ThreadPoolExecutor(at_once) as pool:
            runs += told(pool.map(lambda it, words=words: run(it[0], [*it[1], *words]), goals))

    results = tried_again(runs)
    failed = [result.name for result in results if not result.passed]
    flaky = [result.name for result in results if isinstance(result, SecondTry) and result.passed]
    if flaky:
        say(f"\nFLAKY, and to be mended: {', '.join(flaky)} passed at the second try, alone")
    if failed:
        say(f"\nfailed: {', '.join(failed)}; the logs are in {LOGS.relative_to(ROOT)}/")
    seconds = time.monotonic() - began
    total = sum((result.counts for result in results), Counter[str]())
    say(f" {counted(total)} in {seconds:.2f}s ({int(seconds) // 60} min) ".center(_WIDTH, "="))
    return _INTERRUPTED if GOING.stopping else int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
