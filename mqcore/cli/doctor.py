"""`mqcore doctor`: checks a broker, and whether it fits an application.

It demands nothing of the server, so that it can also check one that the application would refuse.
It changes nothing. Its result is a `Report` with facts, and with problems and what to do about
them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer

from mqcore.app import App
from mqcore.broker import Broker, session_of
from mqcore.cli.backends import capabilities_data
from mqcore.cli.common import LONELY, At, Json, is_local, load_app
from mqcore.cli.output import amount, one_line, print_facts, print_json, print_table
from mqcore.cli.routes import data_of, describe, leftovers
from mqcore.config.settings import Settings
from mqcore.errors import BrokerError, UnsupportedFeature
from mqcore.publishing.enlisting import OUTBOX
from mqcore.publishing.outbox import look_at
from mqcore.queue import DLQ
from mqcore.rules.capabilities import WARNING, Capabilities, Capability, Durability
from mqcore.rules.routing import Binding
from mqcore.spi import QueueCounts

__all__ = ["Report", "doctor"]

_SURVIVES = {
    Durability.MEMORY: "a confirmed message is lost with the broker's process",
    Durability.PROCESS: "a confirmed message survives a kill of the broker, not a power cut",
    Durability.MACHINE: "a confirmed message survives a power cut, not the loss of the machine",
    Durability.REPLICATED: "a confirmed message survives the loss of the machine",
}
_NO_REASON = {
    True: "the backend gives no details",
    False: "nothing is kept outside the broker's process",
}
_MOST_LETTERS = 1000
_WAITS_LONG = 60.0
"""Seconds after which a message that waits in an outbox is a problem."""


@dataclass
class Report:
    """The result. `problems` need attention, `notes` explain."""

    url: str
    connected: bool = False
    capabilities: Capabilities | None = None
    queues: list[QueueCounts] = field(default_factory=list)
    dead: dict[str, dict[str, int]] = field(default_factory=dict)
    """For each dead-letter queue that holds messages: how many for each reason."""
    leftovers: list[Binding] = field(default_factory=list)
    outbox: dict[str, float] | None = None
    """How many messages wait in the outbox, for how many seconds, and how many are dead."""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def doctor(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL", help="The broker; by default the configured one.", show_default=False
        ),
    ] = None,
    *,
    app: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:APP", help="Compare with the queues, bindings and settings of an app."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check a broker: connection, durability, capabilities, dead letters, bindings.

    The exit code is 1 when there are problems.
    """
    at = At(url, json)
    settings, user_app = at.settings(), None if app is None else load_app(app)
    report = Report(str(settings.url))
    try:
        at.run(lambda broker: _examine(broker, settings, user_app, report), demanding=False)
        if settings.outbox is not None:
            there = At(settings.outbox.reveal())
            there.run(lambda database: _check_outbox(database, report), demanding=False)
    except BrokerError as error:
        report.problems.append(one_line(str(error)))

    if json:
        print_json(_data(report))
    else:
        _print(report)

    if report.problems:
        raise typer.Exit(1)


async def _examine(
    broker: Broker, settings: Settings, user_app: App | None, report: Report
) -> None:
    report.connected = True
    report.capabilities = broker.capabilities
    if settings.durability is not None and settings.durability > broker.capabilities.durability:
        report.problems.append(
            f"the settings ask for durability {settings.durability.word!r}, and this server gives "
            f"{broker.capabilities.durability.word!r} as it is configured"
        )

    for support in report.capabilities.supports.values():
        if warning := support.limits.get(WARNING):
            report.problems.append(str(warning))

    report.problems += await broker.diagnose()
    await _check_queues(broker, report, user_app)
    if is_local(broker) and not report.queues:
        report.notes.append(LONELY)
    await _check_bindings(broker, settings, report, user_app)
    if user_app is not None:
        report.problems += await session_of(broker).unused_settings(
            user_app.name, [spec.queue for spec in user_app.consumers()], user_app.routers
        )


async def _check_outbox(database: Broker, report: Report) -> None:
    """Look at what the application has committed and no relay has published."""
    depth, since = await look_at(session_of(database).connection)
    dead = sum(counts.total or 0 for counts in await database.counts(OUTBOX + DLQ))
    age = 0.0 if since is None else max(database.clock.now() - since, 0.0)
    report.outbox = {"waiting": depth, "age": round(age, 1), "dead_letters": dead}

    if age > _WAITS_LONG:
        report.problems.append(
            f"{amount(depth, 'message')} of the outbox wait, the oldest for {age:.0f} s: does a "
            "worker or `mqcore relay` run?"
        )
    if dead:
        report.problems.append(
            f"the outbox has {amount(dead, 'dead letter')}: mqcore dlq list {OUTBOX} --url OUTBOX"
        )


async def _check_queues(broker: Broker, report: Report, user_app: App | None) -> None:
    try:
        report.queues = sorted(await broker.counts(), key=lambda counts: counts.name)
    except UnsupportedFeature as error:
        report.notes.append(str(error))
        return

    named = {counts.dead_letter: counts.name for counts in report.queues}

    for counts in report.queues:
        number = counts.total
        if counts.role != "dead_letter" or not number:
            continue
        report.dead[counts.name] = reasons = await _reasons(broker, counts.name)
        why = (
            f" ({', '.join(f'{count} {reason}' for reason, count in reasons.items())})"
            if reasons
            else ""
        )
        whose = "" if counts.name in named else ", and belongs to no existing queue"
        report.problems.append(
            f"{counts.name!r} holds {amount(number, 'dead letter')}{why}{whose}: mqcore dlq list "
            f"{counts.name}"
        )

    if user_app is not None:
        there = {counts.name for counts in report.queues}
        missing = [spec.queue.name for spec in user_app.consumers() if spec.queue.name not in there]
        if missing:
            report.notes.append(
                f"queues that do not exist yet; a worker declares them: {', '.join(missing)}"
            )


async def _reasons(broker: Broker, queue: str) -> dict[str, int]:
    """Count the first thousand dead letters by reason, if the backend can list them."""
    try:
        letters = await broker.dead_letters(queue).list(_MOST_LETTERS)
    except UnsupportedFeature:
        return {}
    return dict(Counter(letter.reason for letter in letters))


async def _check_bindings(
    broker: Broker, settings: Settings, report: Report, user_app: App | None
) -> None:
    try:
        bindings = await broker.bindings()
    except UnsupportedFeature as error:
        report.notes.append(str(error))
        return

    there = {counts.name for counts in report.queues}

    for binding in bindings if there else ():
        if binding.queue not in there:
            report.problems.append(
                f"the binding {describe(binding)} leads to a queue that does not exist"
            )

    if user_app is None:
        return
    report.leftovers = leftovers(bindings, user_app, settings)
    for binding in report.leftovers:
        report.problems.append(
            f"neither code nor settings have the binding {describe(binding)}: mqcore routes prune"
        )


def _data(report: Report) -> dict[str, object]:
    capabilities = report.capabilities
    return {
        "ok": not report.problems,
        "url": report.url,
        "connected": report.connected,
        "server": capabilities and capabilities.server,
        "durability": capabilities and capabilities.durability.word,
        "capabilities": capabilities and capabilities_data(capabilities),
        "queues": [
            {
                "queue": counts.name,
                "role": counts.role,
                "ready": counts.ready,
                "in_flight": counts.leased,
                "delayed": counts.delayed,
            }
            for counts in report.queues
        ],
        "dead_letters": report.dead,
        "outbox": report.outbox,
        "leftover_bindings": [data_of(binding) for binding in report.leftovers],
        "notes": report.notes,
        "problems": report.problems,
    }


def _print(report: Report) -> None:
    facts: dict[str, object] = {"url": report.url, "connects": "yes" if report.connected else "no"}
    if (capabilities := report.capabilities) is not None:
        facts["server"] = capabilities.server
        facts["durability"] = (
            f"{capabilities.durability.word}: {_SURVIVES[capabilities.durability]}"
        )
        facts["because"] = (
            _limits(capabilities, Capability.DURABLE)
            or _NO_REASON[capabilities.has(Capability.DURABLE)]
        )

    if (outbox := report.outbox) is not None:
        facts["outbox"] = (
            f"{amount(int(outbox['waiting']), 'message')} wait, the oldest for {outbox['age']:g} s"
        )
    print_facts(facts)
    if capabilities is not None:
        rows = [
            (which.value, capabilities[which].level.value, _limits(capabilities, which))
            for which in Capability
        ]
        print()
        print_table(("capability", "level", "limits"), rows, empty="")
        print()
        lines = [
            (counts.name, counts.role, counts.ready, counts.leased, counts.delayed)
            for counts in report.queues
        ]
        print_table(("queue", "role", "ready", "in flight", "delayed"), lines, empty="no queues")

    print()
    _print_lines("note", report.notes)
    _print_lines("problem", report.problems)
    print(amount(len(report.problems), "problem") if report.problems else "ok")


def _limits(capabilities: Capabilities, which: Capability) -> str:
    limits = capabilities[which].limits.items()
    return ", ".join(f"{name}={_plain(value)}" for name, value in limits if name != WARNING)


def _plain(value: float | str | bool) -> str:
    return f"{value:,.12g}" if isinstance(value, float) else str(value)


def _print_lines(kind: str, lines: Iterable[str] | Sequence[str]) -> None:
    for line in lines:
        print(f"{kind}: {one_line(line)}")
