"""The output of commands: a table on a terminal, plain columns in a pipe, JSON for programs.

Text from messages is escaped, so that a message cannot move the cursor of a terminal or forge a
line. Only on a terminal is output colored or cut. An id is never cut.
"""

import base64
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mqcore.rules.redact import mask_text

__all__ = [
    "ago",
    "amount",
    "console",
    "data_of_body",
    "escaped",
    "iso",
    "one_line",
    "print_facts",
    "print_json",
    "print_table",
    "rich_table",
    "shown_body",
    "span",
]

_LONGEST_LINE = 2000
_LAST_COLUMN, _BETWEEN = 20, 3
_STEPS = ((86_400, "d"), (3600, "h"), (60, "m"))

Row = Sequence[object]


def print_json(data: object, *, line: bool = False) -> None:
    """Print data as JSON; on one `line` when more objects follow.

    It is ASCII only, so the encoding of a pipe does not matter.
    """
    print(json.dumps(data, indent=None if line else 2, default=str), flush=line)


def console() -> Console:
    """Return a console for the current standard output, with colors only on a terminal."""
    terminal = sys.stdout.isatty()
    return Console(
        markup=False,
        emoji=False,
        highlight=False,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
    )


def print_table(columns: Sequence[str], rows: Sequence[Row], *, empty: str) -> None:
    """Print rows under the names of their columns, or `empty` when there are no rows.

    The last column takes the remaining width.
    """
    if not rows:
        print(empty)
    elif sys.stdout.isatty():
        screen = console()
        screen.width = max(screen.width, _needed(columns, rows))
        screen.print(rich_table(columns, rows))
    else:
        cells = [
            [_cell(value) for value in row]
            for row in [tuple(name.upper() for name in columns), *rows]
        ]
        widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
        for line in cells:
            print(
                "  ".join(
                    cell.ljust(width) for cell, width in zip(line, widths, strict=True)
                ).rstrip()
            )


def rich_table(columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """Return the table for a terminal: numbers on the right; only the last column is cut."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for at, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[at], int | float | None) for row in rows)
        table.add_column(
            name, justify="right" if numeric else "left", no_wrap=at < len(columns) - 1
        )
    for row in rows:
        table.add_row(*(Text(_cell(value), no_wrap=True, overflow="ellipsis") for value in row))
    return table


def _needed(columns: Sequence[str], rows: Sequence[Row]) -> int:
    """Return the width at which only the last column is cut. A narrower terminal wraps lines."""
    widest = [
        max(cell_len(_cell(row[at])) for row in (columns, *rows)) for at in range(len(columns))
    ]
    return sum(widest[:-1]) + min(widest[-1], _LAST_COLUMN) + _BETWEEN * len(columns)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values, a pair a line."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {_cell(value)}".rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else escaped(str(value))
    )


def amount(number: int, what: str) -> str:
    """Return a number of things for people: `1 message`, `2,000 messages`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def escaped(text: str, *, lines: bool = False) -> str:
    """Return text with unprintable characters escaped; with `lines`, newlines and tabs stay."""
    kept = "\n\t" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text
    )


def shown_body(body: bytes, *, most: int | None = None) -> str:
    """Return a body for people: escaped, and cut after `most` characters."""
    text = body[: most and (most + 1) * 4].decode("utf-8", "backslashreplace")
    shown = escaped(text, lines=most is None)
    return shown if most is None or len(shown) <= most else shown[: most - 1] + "…"


def data_of_body(body: bytes) -> dict[str, str]:
    """Return a body for programs: its text, or base64 if it is not UTF-8, and which of the two."""
    try:
        return {"body": body.decode(), "body_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode(), "body_encoding": "base64"}


def iso(moment: float | None) -> str | None:
    """Return seconds since the epoch as ISO 8601 in UTC."""
    if moment is None:
        return None
    return (
        datetime.fromtimestamp(moment, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def ago(moment: float | None) -> str | None:
    """Return how long ago a moment was, for people."""
    return None if moment is None else span(max(time.time() - moment, 0.0))


def span(seconds: float) -> str:
    """Return a length of time for people: `4.2s`, `3m07s`, `2h15m`, `9d04h`."""
    smaller = {"d": ("h", 3600), "h": ("m", 60), "m": ("s", 1)}
    for size, unit in _STEPS:
        if seconds >= size:
            below, divisor = smaller[unit]
            return f"{int(seconds // size)}{unit}{int(seconds % size // divisor):02}{below}"
    return f"{seconds:.1f}s"


def one_line(text: str) -> str:
    """Return text for an error or a log: one line, printable, URLs without their secrets."""
    return mask_text(escaped(" ".join(text.split())))[:_LONGEST_LINE]
