"""`mqcore queues`: list queues with their counts and rates, alter and delete a queue.

A rate is the difference of two samples, `--interval` seconds apart. A queue's dead letters are
counted in its own row. A dead-letter queue has a row only when it belongs to no listed queue.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from enum import Enum
from time import monotonic
from typing import Annotated, cast

import typer
from rich.live import Live

from mqcore.broker import Broker
from mqcore.cli.common import At, confirm
from mqcore.cli.options import DefaultToList, command
from mqcore.cli.output import amount, console, print_json, print_table, rich_table
from mqcore.connection.altering import AlterOptions
from mqcore.errors import BrokerError, ConfigurationError
from mqcore.spi import QueueCounts

__all__ = ["alter", "app", "delete", "list_queues"]

_COLUMNS = ("queue", "ready", "in flight", "delayed", "dead", "publish/s", "settle/s")
_SHORTEST = 0.01
_USUAL = 1.0  # the interval of --watch without rates
_LEFT_OUT = object()
_EMPTY = "the broker has no queues"


class Overflow(Enum):
    """The values of `--overflow`."""

    REJECT = "reject"
    DEAD_LETTER = "dead_letter"


app = typer.Typer(
    name="queues",
    cls=DefaultToList,
    help="Queues: list, alter and delete them. `mqcore queues --watch` is `mqcore queues list "
    "--watch`.",
)


@dataclass(frozen=True)
class Line:
    """One queue of the list.

    `in_flight` and `delayed` are None where the broker does not report them. `dead` is None without
    a dead-letter queue. A rate is None where the broker does not count.
    """

    queue: str
    role: str
    ready: int
    in_flight: int | None
    delayed: int | None
    dead: int | None
    dead_letter: str | None
    published_per_second: float | None
    settled_per_second: float | None

    def cells(self) -> tuple[object, ...]:
        """Return the cells of its row."""
        rates = self.published_per_second, self.settled_per_second
        return self.queue, self.ready, self.in_flight, self.delayed, self.dead, *rates


def list_queues(
    *,
    interval: Annotated[
        float, typer.Option(min=0, help="Seconds over which rates are measured; 0 for no rates.")
    ] = 1.0,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again each interval, until Ctrl-C.")
    ] = False,
    at: At,
) -> None:
    """List all queues: ready, in flight, delayed and dead messages, and rates per second."""

    async def once(broker: Broker) -> list[Line]:
        return await anext(samples(broker, interval))

    async def forever(broker: Broker) -> None:
        live = (
            Live(console=console(), auto_refresh=False)
            if sys.stdout.isatty() and not at.json
            else None
        )
        with live or nullcontext():
            async for lines in samples(broker, max(interval, _SHORTEST) if interval else _USUAL):
                _show_again(lines, live, json=at.json)

    if watch:
        try:
            at.run(forever, patience=None)
        except KeyboardInterrupt:
            return
    else:
        lines = at.run(once, patience=interval + 30.0)
        if at.json:
            print_json([asdict(line) for line in lines])
        else:
            print_table(_COLUMNS, [line.cells() for line in lines], empty=_EMPTY)


def _show_again(lines: Sequence[Line], live: Live | None, *, json: bool) -> None:
    """Show a sample: over the last one on a terminal, else below it, or as a line of JSON."""
    if json:
        print_json([asdict(line) for line in lines], line=True)
    elif live is not None:
        live.update(rich_table(_COLUMNS, [line.cells() for line in lines]), refresh=True)
    else:
        print_table(_COLUMNS, [line.cells() for line in lines], empty=_EMPTY)
        print(flush=True)


async def samples(broker: Broker, interval: float) -> AsyncIterator[list[Line]]:
    """Count all queues again and again. Each sample has the rates since the one before it."""
    before, began = await _counts(broker), monotonic()
    while True:
        await asyncio.sleep(interval)
        now, ended = await _counts(broker), monotonic()
        yield _lines(before, now, ended - began if interval else 0.0)
        before, began = now, ended


async def _counts(broker: Broker) -> dict[str, QueueCounts]:
    return {counts.name: counts for counts in await broker.counts()}


def _lines(
    before: Mapping[str, QueueCounts], now: Mapping[str, QueueCounts], passed: float
) -> list[Line]:
    named = {counts.dead_letter for counts in now.values()}
    shown = [
        counts
        for counts in now.values()
        if counts.role != "dead_letter" or counts.name not in named
    ]
    return [
        _line(before.get(counts.name), counts, now, passed)
        for counts in sorted(shown, key=lambda counts: counts.name)
    ]


def _line(
    before: QueueCounts | None, counts: QueueCounts, every: Mapping[str, QueueCounts], passed: float
) -> Line:
    buried = every.get(counts.dead_letter or "")
    return Line(
        queue=counts.name,
        role=counts.role,
        ready=counts.ready,
        in_flight=counts.leased,
        delayed=counts.delayed,
        dead=None if buried is None else buried.total,
        dead_letter=counts.dead_letter,
        published_per_second=_rate(
            None if before is None else before.published, counts.published, passed
        ),
        settled_per_second=_rate(
            None if before is None else before.settled, counts.settled, passed
        ),
    )


def _rate(before: int | None, now: int | None, passed: float) -> float | None:
    """Return the growth per second. A counter that went back was reset."""
    if before is None or now is None or passed <= 0:
        return None
    return round(max(now - before, 0) / passed, 1)


def delete(
    queue: Annotated[
        str, typer.Argument(metavar="QUEUE", help="Name of the queue.", show_default=False)
    ],
    *,
    if_empty: Annotated[
        bool, typer.Option("--if-empty", help="Only if it holds no message.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    at: At,
) -> None:
    """Delete a queue with its quarantine and its bindings. Its dead-letter queue stays."""

    async def held(broker: Broker) -> QueueCounts:
        return (await broker.counts(queue))[0]

    async def work(broker: Broker) -> bool:
        return await broker.delete(queue, if_empty=if_empty)

    if not yes:
        counts = at.run(held)
        confirm(
            f"Queue {queue!r} holds {amount(counts.total, 'message')}. Delete the queue and its "
            "messages?",
            yes=yes,
        )
    gone = at.run(work, patience=None)
    if at.json:
        print_json({"queue": queue, "deleted": gone})
    elif gone:
        print(f"queue {queue!r} is deleted")
    if not gone:
        raise BrokerError(f"queue {queue!r} is not deleted: it holds messages or has a consumer")


def alter(
    queue: Annotated[
        str, typer.Argument(metavar="QUEUE", help="Name of the queue.", show_default=False)
    ],
    *,
    ttl: Annotated[
        str | None, typer.Option(metavar="SECONDS|none", help="Seconds that a message lives.")
    ] = None,
    max_length: Annotated[
        str | None, typer.Option(metavar="N|none", help="How many ready messages it holds at most.")
    ] = None,
    overflow: Annotated[
        Overflow | None, typer.Option(help="What happens to further messages.")
    ] = None,
    retention: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS|none", help="Seconds that its dead-letter queue keeps a message."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    at: At,
) -> None:
    """Alter the settings of a queue. Its messages stay.

    A setting that is not given stays as it is; `none` removes it.
    """
    given = {
        "ttl": _seconds("--ttl", ttl),
        "max_length": _count("--max-length", max_length),
        "overflow": overflow.value if overflow else _LEFT_OUT,
        "retention": _seconds("--retention", retention),
    }
    settings = {name: value for name, value in given.items() if value is not _LEFT_OUT}

    if isinstance(settings.get("retention"), float):
        confirm(
            f"Dead letters of {queue!r} that are older than {retention} s are removed for good. Go "
            "on?",
            yes=yes,
        )

    async def work(broker: Broker) -> None:
        await broker.alter(queue, **cast("AlterOptions", settings))

    at.run(work)
    if at.json:
        print_json({"queue": queue, "altered": settings})
    else:
        said = ", ".join(
            f"{name}={'none' if value is None else value}" for name, value in settings.items()
        )
        print(f"queue {queue!r} now has {said}")


def _seconds(option: str, text: str | None) -> object:
    return _parsed(option, text, float, "a number of seconds")


def _count(option: str, text: str | None) -> object:
    return _parsed(option, text, int, "a whole number")


def _parsed(option: str, text: str | None, kind: Callable[[str], object], what: str) -> object:
    """Return the value of an option, None for `none`."""
    if text is None:
        return _LEFT_OUT
    if text.lower() == "none":
        return None
    try:
        return kind(text)
    except ValueError:
        raise ConfigurationError(f"{option} {text!r:.60}: give {what}, or none") from None


command(app, "list", list_queues)
command(app, "alter", alter)
command(app, "delete", delete)
