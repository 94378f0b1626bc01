"""`mqcore tasks check`: whether an application would start, found out without a broker or a store.

It imports the application, and reads its settings, tasks, routes and schedules as a worker does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import typer

from mqcore.app import App
from mqcore.cli.common import At, load_app, place_of
from mqcore.cli.output import amount, one_line, print_facts, print_json, print_table
from mqcore.cli.tasks_of import Target
from mqcore.config.plugins import default_plugins
from mqcore.config.settings import Settings
from mqcore.config.url import BrokerUrl
from mqcore.errors import MqcoreError
from mqcore.rules.checks import closest
from mqcore.tasks.api import Tasks
from mqcore.tasks.store.plugins import default_store_plugins

__all__ = ["Finding", "Findings", "check"]

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """What is wrong, and with what."""

    level: Level
    about: str
    text: str


@dataclass
class Findings:
    """What a check has found, and what it has looked at."""

    all: list[Finding] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def error(self, about: str, text: str) -> None:
        """Note what keeps the application from working."""
        self.all.append(Finding("error", about, one_line(text)))

    def warning(self, about: str, text: str) -> None:
        """Note what is probably not meant."""
        self.all.append(Finding("warning", about, one_line(text)))

    @contextmanager
    def of(self, about: str) -> Iterator[None]:
        """Note an error of mqcore that is raised inside."""
        try:
            yield
        except MqcoreError as error:
            self.error(about, str(error))

    def count(self, level: Level) -> int:
        """Return how many findings there are of a level."""
        return sum(finding.level == level for finding in self.all)


def check(
    target: Target,
    at: At,
    *,
    strict: Annotated[
        bool, typer.Option("--strict", help="Warnings count as errors for the exit code.")
    ] = False,
) -> int:
    """Import an application and check its settings, tasks, routes and schedules.

    Needs neither the broker nor the store. The exit code is 1 when there are errors.
    """
    findings = Findings()
    settings = app = None
    with findings.of("settings"):
        settings = at.settings()
    with findings.of("app"):
        app = load_app(target)
    if settings is not None:
        _check_broker(findings, settings)
    if app is not None:
        findings.facts["app"] = app.name
        parts = [part for part in app.tasks if isinstance(part, Tasks)]
        loaded = [_load(findings, part) for part in parts]  # each reports its own error
        is_loaded = all(loaded)
        if is_loaded:
            _check_queues(findings, app, settings)
        for part in parts if is_loaded else ():
            _check_tasks(findings, part)

    _report(findings, json=at.json)
    return 1 if findings.count("error") or (strict and findings.all) else 0


def _report(findings: Findings, *, json: bool) -> None:
    if json:
        print_json(
            {
                "ok": not findings.count("error"),
                "findings": [vars(finding) for finding in findings.all],
                **findings.facts,
            }
        )
        return
    facts = {
        name: ", ".join(value) or None if isinstance(value, list) else value
        for name, value in findings.facts.items()
    }
    print_facts(facts)
    if findings.all:
        print()
        rows = [(each.level, each.about, each.text) for each in findings.all]
        print_table(("level", "about", "finding"), rows, empty="")
        print()
    errors, warnings = findings.count("error"), findings.count("warning")
    print(f"{amount(errors, 'error')}, {amount(warnings, 'warning')}")


def _check_broker(findings: Findings, settings: Settings) -> None:
    findings.facts["broker"] = str(settings.url)
    with findings.of("broker"):
        backend = default_plugins().backend_for(settings.url.scheme)
        if backend.local:
            how = "" if "url" in settings.model_fields_set else "no broker is configured, and "
            findings.warning(
                "broker",
                f"{how}{settings.url} lives in one process: a worker gets only what its own "
                "process sends. Name one that processes share: MQCORE_URL, or url in mqcore.toml",
            )


def _load(findings: Findings, tasks: Tasks) -> bool:
    """Import the modules of `include`. Their code may raise anything."""
    about = f"tasks {tasks.name}"
    try:
        tasks.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        findings.error(about, f"include=: {type(error).__name__}: {error}{place_of(error)}")
        return False
    return True


def _check_queues(findings: Findings, app: App, settings: Settings | None) -> None:
    queues = []
    with findings.of("consumers"):
        queues = [spec.queue for spec in app.consumers()]
    findings.facts["queues"] = sorted(queue.name for queue in queues)
    if settings is None:
        return
    for queue in queues:
        with findings.of(f"queue {queue.name}"):
            queue.configured(**settings.queue_options(queue.name))

    # The section of another application may stand in the same file.
    bound = {name for router in app.routers for name in router.queues}
    names = {queue.name for queue in queues} | bound
    for name in settings.queues:
        if name not in names and (close := closest(name, names)):
            findings.warning(
                "settings",
                f"{settings.source_of('queues', name)}: the app has no queue {name!r}. Did you "
                f"mean {close!r}?",
            )


def _check_tasks(findings: Findings, tasks: Tasks) -> None:
    about = f"tasks {tasks.name}"
    registered = tasks.registered
    findings.facts[about] = sorted(registered)
    if not registered:
        text = "no task is registered. Name their modules: Tasks(..., include=[...])"
        findings.warning(about, text)
    _check_store(findings, tasks)
    if any(task.mode == "process" for task in registered.values()):
        with findings.of(about):
            _ = tasks.process

    for task in registered.values():
        soft, limit = task.soft_timeout, task.timeout
        if soft is not None and limit is not None and soft >= limit:
            findings.warning(
                f"task {task.name}",
                f"soft_timeout={soft:g} is not shorter than timeout={limit:g}, so it has no effect",
            )
    _check_routes(findings, tasks)
    _check_schedules(findings, tasks)


def _check_store(findings: Findings, tasks: Tasks) -> None:
    about = f"tasks {tasks.name}"
    if tasks.store is None:
        for task in tasks.registered.values():
            if task.unique:
                findings.error(f"task {task.name}", "unique= needs a store: Tasks(..., store=)")
        if tasks.schedules.names:
            findings.error(about, "schedules need a store: Tasks(..., store=)")
        return

    with findings.of(about):
        url = BrokerUrl(tasks.store)
        findings.facts[f"store of {tasks.name}"] = str(url)
        default_store_plugins().store_for(url.scheme)
        if url.scheme == "memory":
            findings.warning(
                about, f"the store {url} lives in one process: no other one sees results and states"
            )


def _check_routes(findings: Findings, tasks: Tasks) -> None:
    """Warn of patterns that never choose a queue."""
    names = list(tasks.registered)
    earlier: list[str] = []
    for pattern, queue in tasks.routes.items():
        about = f"route {pattern}"
        matching = [name for name in names if fnmatchcase(name, pattern)]
        left = [name for name in matching if not any(fnmatchcase(name, each) for each in earlier)]
        own = [name for name in left if tasks.registered[name].queue is not None]
        if not matching:
            close = closest(pattern, names)
            hint = f". Did you mean {close!r}?" if close else ""
            findings.warning(about, f"no task has a name that matches{hint}")
        elif not left:
            findings.warning(about, "an earlier route takes each task that it matches")
        elif len(own) == len(left):
            text = f"each task that it matches names a queue of its own ({', '.join(own)})"
            findings.warning(about, f"it sends nothing to {queue!r}: {text}")
        earlier.append(pattern)


def _check_schedules(findings: Findings, tasks: Tasks) -> None:
    findings.facts[f"schedules of {tasks.name}"] = sorted(tasks.schedules.names)
    for name in tasks.schedules.names:
        with findings.of(f"schedule {name}"):
            tasks.schedules.spec(name)
