"""All the tests: those without a server, beside the long ones; then a run for each server.

    python tests/side_by_side.py [OPTION…]          # options are passed to every pytest

Cases on a server mostly wait, so runs of their own lose nothing by company, and each has its server
to itself: it may kill it. A contract's cases, its model and the tests in which brokers are killed
are runs of their own. Each writes a log, of which the summary is shown when it passes and the whole
when it fails. The last line adds all of them up, in pytest's own form. Each contract run leaves its
report in `.nox/logs/reports`, or where `--mqcore-contract-reports=DIR` says. How many run at once,
`MQCORE_TESTS_AT_ONCE` says.
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
    "tests/mutants/test_task_mutants.py",
    "tests/integration/test_inbox_transactions.py",
    "tests/integration/test_inbox_killed.py",
    "tests/integration/test_enlist.py",
    "tests/integration/test_outbox.py",
    "tests/integration/test_outbox_campaign.py",
    "tests/integration/test_django.py",
    "tests/integration/test_outage.py",
    "tests/integration/sqlite",
)
"""Folders and files that take a minute or more: a second core has time for them."""
LOGS = ROOT / ".nox" / "logs"
_AT_ONCE = int(os.environ.get("MQCORE_TESTS_AT_ONCE") or 2 * (os.cpu_count() or 2))
_COLOR = re.compile(r"\x1b\[[\d;]*m")
_SUMMARY = re.compile(r"^=+ (?P<counts>.* in [\d.]+s).* =+$", re.MULTILINE)
_COUNT = re.compile(
    r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed|deselected|warnings?|rerun)\b"
)
_TOLD = re.compile(r"^=+ mqcore .*(?:\n(?!=).*)*", re.MULTILINE)
"""The sections that mqcore's own plugin writes."""
_FINE = (0, 5)
"""Exit codes of pytest: all passed, or there was nothing to run."""
_WIDTH = 80
_PATIENCE = 60
"""Seconds that the runs have to remove what they started."""
_INTERRUPTED = 130


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


def run(name: str, arguments: Sequence[str], *, aloud: bool) -> Run:
    """Run pytest to its end.

    With `aloud` its output is passed on at once; otherwise it is only logged.
    """
    began, log = time.monotonic(), LOGS / f"{name}.log"
    color = ["--color=yes"] if aloud and sys.stdout.isatty() else []
    command = [sys.executable, "-m", "pytest", *color, *arguments]
    if GOING.stopping:
        return Run(name, _INTERRUPTED, "interrupted before it began", 0.0)
    with log.open("w") as kept:
        process = GOING.start(command)
        with process:
            for line in process.stdout or ():
                kept.write(line)
                if aloud:
                    say(line, end="")
        GOING.ended(process)
    return Run(name, process.returncode, log.read_text(), time.monotonic() - began)


def say(text: str, end: str = "\n") -> None:
    """Write at once, for readers who watch the run."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def tell(run: Run) -> None:
    """Print the result of a run on a server."""
    ended = "passed" if run.code in _FINE else f"FAILED with {run.code}"
    say(f"\n--- {run.name}: {ended} in {run.seconds:.0f} s: {counted(run.counts)}")
    say(run.text if run.code not in _FINE else "\n".join(_TOLD.findall(run.text)))


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


def on_servers() -> list[tuple[str, str]]:
    """Return name and goal of each run on a server."""
    found = []
    for place in ON_SERVERS:
        for file in sorted((ROOT / place).glob("test_*.py")) or [ROOT / place]:
            name, goal = file.stem.removeprefix("test_"), str(file.relative_to(ROOT))
            parts = ("test_contract", "test_model") if place == CONTRACTS else ()
            inside = [part for part in parts if f'"{part}"' in file.read_text()]
            found += [
                (f"{name}-{part.removeprefix('test_')}", f"{goal}::{part}") for part in inside
            ] or [(name, goal)]
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
    runs = []
    with ThreadPoolExecutor(1) as beside:
        found = [place for place in LONG if (ROOT / place).exists()]
        long = beside.map(lambda place: run(Path(place).stem, [place, *plain], aloud=False), found)
        short = [*(f"--ignore={place}" for place in (*ON_SERVERS, *LONG)), *plain]
        runs.append(run("without-a-server", short, aloud=True))
        runs += told(long)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        runs += told(pool.map(lambda it: run(it[0], [it[1], *options], aloud=False), on_servers()))
    failed = [run.name for run in runs if run.code not in _FINE]
    if failed:
        say(f"\nfailed: {', '.join(failed)}; the logs are in {LOGS.relative_to(ROOT)}/")
    seconds = time.monotonic() - began
    total = sum((run.counts for run in runs), Counter[str]())
    say(f" {counted(total)} in {seconds:.2f}s ({int(seconds) // 60} min) ".center(_WIDTH, "="))
    return _INTERRUPTED if GOING.stopping else int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
