"""`mqcore contract run URL`: tests case by case whether a backend keeps mqcore's guarantees.

The cases are those of `mqcore.contract`. The output has a line for each case, then the failures,
the counts and a verdict. A run without some of the cases is *partial*: it helps the author of a
backend, and proves nothing.
"""

import asyncio
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from mqcore.cli.common import Json, place_of, quiet
from mqcore.cli.contract_store import run_store
from mqcore.cli.options import command
from mqcore.cli.output import amount, console, escaped, one_line, print_json, print_table
from mqcore.config.plugins import default_plugins
from mqcore.config.url import BrokerUrl
from mqcore.contract import Case, Harness, Report, Result, UrlHarness, all_cases, run_contract
from mqcore.contract.run import Status, Waiver
from mqcore.errors import BrokerError, ConfigurationError, MqcoreError
from mqcore.spi import Capabilities
from mqcore.testing import VirtualClock

__all__ = ["app", "harness_of", "run"]

_STATUSES: tuple[Status, ...] = ("passed", "failed", "waived", "not applicable", "not shown")
_STYLES = {"passed": "green", "failed": "bold red", "waived": "yellow"}
_OPENS_WITHIN = 15.0
_SHOWN = 5
"""How many cases with the same failure are named."""
_DETAILS = ("  seen as: ", "  logged: ")
"""Beginnings of lines of a failure that may differ although its cause is the same."""
_LOCAL_SILENCE = 0.05
_FOLDER = "the folder of {!r} does not exist"
_OWN_NAMES = re.compile(r"ct\.[0-9a-f]+|[0-9a-f]{16,}|\d+(\.\d+)?")

app = typer.Typer(name="contract", help="The contract: tests case by case what a backend must do.")


@dataclass(frozen=True)
class What:
    """Which cases to run."""

    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="PROFILE", help="Only this profile, such as core; again for more."),
    ] = None
    case: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Only cases with this in their name; * and ? are wildcards."
        ),
    ] = None

    @property
    def whole(self) -> bool:
        """Whether no case is left out."""
        return not (self.profile or self.case)

    def cases(self) -> list[Case]:
        """Return the cases.

        Raises `ConfigurationError` for an unknown profile, and when no case is left.
        """
        every = all_cases()
        profiles = list(dict.fromkeys(case.profile for case in every))

        for name in self.profile or ():
            if name not in profiles:
                raise ConfigurationError(
                    f"there is no profile {name!r:.60}; the profiles are: {', '.join(profiles)}"
                )

        chosen = [case for case in every if self.profile is None or case.profile in self.profile]
        if self.case is not None:
            patterns = [f"*{pattern.replace('[', '[[]')}*" for pattern in self.case]
            chosen = [
                case
                for case in chosen
                if any(fnmatchcase(case.name, pattern) for pattern in patterns)
            ]

        if not chosen:
            raise ConfigurationError(
                f"no case has {' or '.join(map(repr, self.case or ())):.100} in its name"
            )

        return chosen


@dataclass(frozen=True)
class How:
    """How the cases run, and which of them may fail."""

    virtual: Annotated[
        bool,
        typer.Option(
            "--virtual",
            help="Run in virtual time, which takes seconds instead of minutes; the backend must "
            "use mqcore's clock.",
        ),
    ] = False
    waive: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CASE:REASON", help="A case that is known to fail, and why; again for more."
        ),
    ] = None

    def waivers(self) -> list[Waiver]:
        """Return the waivers.

        Raises `ConfigurationError` for one without a reason, and for an unknown case.
        """
        waivers = []

        for text in self.waive or ():
            case, _, reason = text.partition(":")
            if not reason.strip():
                raise ConfigurationError(
                    f"--waive {text!r:.100}: give CASE:REASON; every report prints the reason"
                )
            if case.strip() not in {each.name for each in all_cases()}:
                raise ConfigurationError(
                    f"--waive: no case is named {case.strip()!r:.100}; a run prints their names"
                )
            waivers.append(Waiver(case.strip(), reason.strip()))

        return waivers


def run(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="The broker, for instance memory://.", show_default=False
        ),
    ],
    *,
    what: What,
    how: How,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the report here: FILE.json, or FILE.md for readers."
        ),
    ] = None,
    badge: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a badge here, FILE.svg; only a whole run has one."
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Run the contract on a broker for tests. Its cases create and delete queues named ct.….

    The exit code is 1 when a case fails that is not waived, or a waived case passes. With CI=true
    in the environment it is also 1 for a partial run, one with --profile or --case.
    """
    _check(report, {".json", ".md"}, "a report")
    _check(badge, {".svg"}, "a badge")
    cases, waivers, make = what.cases(), how.waivers(), harness_of(url, virtual=how.virtual)
    with quiet():
        capabilities = _capabilities(url, make())
        show: Callable[[Result], None] = (lambda _: None) if json else _printer(cases)
        results = run_contract(make, cases=cases, waivers=waivers, on_result=show)

    outcome = Report(
        results, capabilities, make().server_version() or capabilities.server, what.whole, waivers
    )
    if report is not None:
        report.write_text(
            outcome.markdown() if report.suffix == ".md" else outcome.json(), encoding="utf-8"
        )

    if badge is not None and (svg := outcome.badge()) is not None:
        badge.write_text(svg, encoding="utf-8")
    if json:
        print_json(outcome.data())
    else:
        _conclude(outcome, badge)

    unproven = outcome.verdict == "partial" and os.environ.get("CI") == "true"
    return 1 if unproven or not outcome.ok else 0


def harness_of(url: str, *, virtual: bool = False) -> Callable[[], Harness]:
    """Return a function that makes the harness of each case.

    A backend in this process that takes a clock gets a virtual one; with `virtual`, other backends
    do too. Raises `ConfigurationError` for a malformed URL, for a scheme that no plugin serves, and
    for `virtual` with a backend that takes no clock.
    """
    backend = default_plugins().backend_for(BrokerUrl(url).scheme)
    takes_clock = "clock" in backend.Options.model_fields
    if virtual and not takes_clock:
        raise ConfigurationError(
            f"--virtual: {backend.__name__} takes no virtual clock, because its Options have no "
            "field `clock`"
        )
    virtual = virtual or (backend.local and takes_clock)

    def make() -> Harness:
        harness = UrlHarness(
            url, plugins=default_plugins(), clock=VirtualClock() if virtual else None
        )
        if backend.local and virtual:
            harness.silence = _LOCAL_SILENCE  # only the case advances the clock
        return harness

    return make


def _check(path: Path | None, suffixes: set[str], what: str) -> None:
    """Refuse a file that cannot be written, before a run that may take minutes."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise ConfigurationError(
            f"{str(path)!r:.200}: {what} is written to a file in {' or '.join(sorted(suffixes))}"
        )
    if not path.parent.is_dir():
        raise ConfigurationError(f"{what}: {_FOLDER.format(str(path)):.300}")


def _capabilities(url: str, harness: Harness) -> Capabilities:
    """Connect once, so that a missing broker is reported in one line and not by each case."""

    async def ask() -> Capabilities:
        backend = harness.make_backend()
        limited = asyncio.timeout(_OPENS_WITHIN)
        try:
            async with limited:
                return await backend.open(lambda _: None)
        except TimeoutError as error:
            if not limited.expired():
                raise  # the driver's own
            raise BrokerError(f"no answer from {shown} within {_OPENS_WITHIN:g} s") from error
        finally:
            await backend.close()

    shown = BrokerUrl(url)
    try:
        return asyncio.run(ask())
    except MqcoreError:
        raise
    except Exception as error:
        raise BrokerError(
            f"cannot connect to {shown}: {type(error).__name__}: {error}{place_of(error)}"
        ) from error


def _printer(cases: Sequence[Case]) -> Callable[[Result], None]:
    """Return a function that prints a line for each result, in color on a terminal."""
    if not sys.stdout.isatty():
        return lambda result: print(
            f"{result.status:14}  {result.case.name}  {result.seconds:.2f} s", flush=True
        )
    screen, remaining = console(), len(cases)

    def tell(result: Result) -> None:
        nonlocal remaining
        remaining -= 1
        status = Text(f"{result.status:14}", style=_STYLES.get(result.status, "dim"))
        took = Text(f" {result.seconds:.2f} s, {remaining} to go", style="dim")
        screen.print(status, Text(f" {result.case.name}"), took, soft_wrap=True)

    return tell


def _conclude(report: Report, badge: Path | None) -> None:
    """Print the failures, the cases that were not shown, the counts and the verdict."""
    for alike in _alike(result for result in report.results if result.status == "failed"):
        print(
            f"\n{amount(len(alike), 'case')} "
            f"failed{' with the same text' if len(alike) > 1 else ''}:"
        )
        for result in alike[:_SHOWN]:
            print(
                f"  {result.case.name} ({' '.join(result.case.guarantees)}): "
                f"{one_line(result.case.text)}"
            )
        if len(alike) > _SHOWN:
            print(f"  and {len(alike) - _SHOWN} more: --json names them")
        for line in escaped(alike[0].text, lines=True).splitlines():
            print(f"    {line}")

    for waiver in report.waivers:
        print(one_line(f"waived: {waiver.case}: {waiver.reason}"))
    for result in report.repeated:
        print(one_line(f"passed when tried again: {result.case.name}: {result.repeated[0]}"))
    hidden = _alike(result for result in report.results if result.status == "not shown")
    if hidden:
        print()
    for alike in hidden:
        print(f"not shown: {amount(len(alike), 'case')}: {one_line(alike[0].text)}")
    print()
    profiles = dict.fromkeys(result.case.profile for result in report.results)
    rows = [(name, *(report.counts(name)[status] for status in _STATUSES)) for name in profiles]
    print_table(("profile", *_STATUSES), rows, empty="")
    counts = report.counts()
    summary = ", ".join(f"{counts[status]} {status}" for status in _STATUSES if counts[status])
    backend = one_line(f"{report.capabilities.backend}, {report.server}")
    print(f"\n{backend}: {summary} of {amount(len(report.results), 'case')}")
    if not report.whole:
        print("partial run: it proves nothing" + (", and there is no badge" if badge else ""))
    print(report.verdict)


def _alike(results: Iterable[Result]) -> list[list[Result]]:
    """Group results with the same text, except for names and numbers."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        said = [line for line in result.text.splitlines() if not line.startswith(_DETAILS)]
        groups.setdefault(_OWN_NAMES.sub("", "\n".join(said)), []).append(result)
    return list(groups.values())


command(app, "run", run)
command(app, "run-store", run_store)
