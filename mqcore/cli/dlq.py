"""`mqcore dlq`: list, show, redrive and purge dead letters (G11)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer

from mqcore.admin.dead_letters import DeadLetter, DeadLetterFilter, Redriven
from mqcore.broker import Broker
from mqcore.cli.common import At, confirm
from mqcore.cli.options import command
from mqcore.cli.output import (
    ago,
    amount,
    data_of_body,
    escaped,
    iso,
    print_facts,
    print_json,
    print_table,
    shown_body,
)
from mqcore.errors import ConfigurationError, UnsupportedFeature
from mqcore.messages.message import Reason

__all__ = ["app", "list_letters", "purge", "redrive", "show"]

_SHOWN_ERROR = 100

app = typer.Typer(name="dlq", help="Dead letters: list, show, redrive and purge them.")

Queue = Annotated[
    str,
    typer.Argument(
        metavar="QUEUE",
        help="The queue where they died, or a dead-letter queue.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Which:
    """Which dead letters to choose. They must match all given options."""

    id: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A message's id; may be repeated.")
    ] = None
    reason: Annotated[
        str | None,
        typer.Option(help=", ".join(reason.value for reason in Reason)),
    ] = None
    error: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A text that the error contains.")
    ] = None
    died_in: Annotated[
        str | None,
        typer.Option(
            "--queue",
            metavar="QUEUE",
            help="The queue where it died, for a shared dead-letter queue.",
        ),
    ] = None
    before: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Died before this time: ISO 8601 (UTC by default) or seconds since the epoch.",
        ),
    ] = None
    after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Died at or after this time.")
    ] = None

    def filters(self) -> DeadLetterFilter:
        """Return the filter. Raises `ConfigurationError` for a wrong time."""
        filters: DeadLetterFilter = {}
        if self.id:
            filters["ids"] = set(self.id)
        if self.reason is not None:
            filters["reason"] = self.reason
        if self.error is not None:
            filters["error"] = self.error
        if self.died_in is not None:
            filters["queue"] = self.died_in
        if self.before is not None:
            filters["before"] = _moment("--before", self.before)
        if self.after is not None:
            filters["after"] = _moment("--after", self.after)
        return filters

    def chosen(self, *, everything: bool) -> DeadLetterFilter:
        """Return the filter for a command that changes something: it needs a filter or `--all`."""
        filters = self.filters()
        if bool(filters) == everything:
            raise ConfigurationError(
                "--all cannot be combined with a filter"
                if everything
                else "choose the dead letters: --id, --reason, --error, --queue, --before, "
                "--after, or --all"
            )
        return filters


def _moment(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass

    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{option} {text!r:.60} is not a time: give ISO 8601, for instance 2025-01-31T08:30, "
            "or seconds since the epoch"
        ) from error

    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def list_letters(
    queue: Queue,
    which: Which,
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many to list, the oldest first.")] = 100,
    at: At,
) -> None:
    """List dead letters, the oldest first."""
    filters = which.filters()

    async def work(broker: Broker) -> list[DeadLetter]:
        return await broker.dead_letters(queue).list(limit, **filters)

    letters = at.run(work)
    if at.json:
        print_json([_data(letter, whole=False) for letter in letters])
        return
    rows = [
        (
            letter.id,
            letter.reason,
            letter.queue,
            letter.attempts,
            ago(letter.death.last_at),
            letter.error[:_SHOWN_ERROR],
        )
        for letter in letters
    ]
    print_table(
        ("id", "reason", "died in", "attempts", "ago", "error"), rows, empty="no dead letters"
    )


def show(
    queue: Queue,
    id: Annotated[str, typer.Argument(metavar="ID", help="The message's id.", show_default=False)],
    at: At,
) -> None:
    """Show one dead letter: why it died, its headers, traceback and body."""

    async def work(broker: Broker) -> DeadLetter | None:
        return await broker.dead_letters(queue).get(id)

    letter = at.run(work)
    if letter is None:
        raise ConfigurationError(f"queue {queue!r} has no dead letter with id {id!r:.140}")
    if at.json:
        print_json(_data(letter, whole=True))
        return
    message, death = letter.message, letter.death
    facts = {
        "id": letter.id,
        "reason": letter.reason,
        "died in": letter.queue,
        "attempts": letter.attempts,
        "published": iso(message.published_at),
        "first failure": iso(death.first_at),
        "last failure": iso(death.last_at),
        "redriven": message.redriven,
        "priority": message.priority,
        "content type": message.content_type,
        "error type": death.error_type or None,
        "error": death.error or None,
    }
    print_facts({**facts, **{f"header {name}": value for name, value in letter.headers.items()}})
    if death.traceback:
        print(f"\ntraceback\n{escaped(death.traceback, lines=True).rstrip()}")
    print(f"\nbody ({len(letter.body):,} bytes)\n{shown_body(letter.body)}")


def redrive(
    queue: Queue,
    which: Which,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that exist now.")] = False,
    to: Annotated[
        str | None,
        typer.Option(metavar="QUEUE", help="Where to move them; by default where they died."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also messages that came back five times already.")
    ] = False,
    at: At,
) -> None:
    """Move dead letters back to the queue where they died, or to another queue.

    Their attempts start at 1 again, and they no longer expire. The exit code is 1 when a message
    could not be moved; it stays in the dead-letter queue.
    """
    filters = which.chosen(everything=everything)

    async def work(broker: Broker) -> Redriven:
        if to is not None:
            await _check_there(broker, to)
        return await broker.dead_letters(queue).redrive(to=to, force=force, **filters)

    done = at.run(work, patience=None)
    missing = sorted(set(which.id or ()) - set(done.moved) - set(done.left))
    unmoved = {**done.left, **dict.fromkeys(missing, "no dead letter has this id")}
    if at.json:
        print_json({"moved": list(done.moved), "left": unmoved})
    else:
        print(f"{len(done.moved):,} redriven, {len(unmoved):,} not redriven")
        if unmoved:
            print_table(("id", "reason"), list(unmoved.items()), empty="")
    if unmoved:
        raise typer.Exit(1)


async def _check_there(broker: Broker, queue: str) -> None:
    """Raise `QueueNotFound` before anything is leased, if the broker can tell."""
    try:
        await broker.counts(queue)
    except UnsupportedFeature:
        return


def purge(
    queue: Queue,
    which: Which,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    at: At,
) -> None:
    """Remove dead letters for good."""
    filters = which.chosen(everything=everything)

    async def number(broker: Broker) -> int:
        return len(await broker.dead_letters(queue).list(1_000_000_000, **filters))

    async def work(broker: Broker) -> int:
        return await broker.dead_letters(queue).purge(**filters)

    if not yes:
        confirm(
            f"Remove {amount(at.run(number), 'dead letter')} of {queue!r} for good?",
            yes=yes,
        )
    gone = at.run(work, patience=None)
    if at.json:
        print_json({"purged": gone})
    else:
        print(f"{amount(gone, 'dead letter')} removed")


def _data(letter: DeadLetter, *, whole: bool) -> dict[str, object]:
    message, death = letter.message, letter.death
    data: dict[str, object] = {
        "id": letter.id,
        "reason": letter.reason,
        "queue": letter.queue,
        "attempts": letter.attempts,
        "redriven": message.redriven,
        "published_at": iso(message.published_at),
        "first_at": iso(death.first_at),
        "last_at": iso(death.last_at),
        "error_type": death.error_type,
        "error": death.error,
    }
    if whole:
        data["priority"], data["content_type"] = message.priority, message.content_type
        data |= {
            "headers": dict(letter.headers),
            "traceback": death.traceback,
            **data_of_body(letter.body),
        }

    return data


command(app, "list", list_letters)
command(app, "show", show)
command(app, "redrive", redrive)
command(app, "purge", purge)
