"""What backends can do, side by side: a table made from contract reports.

A report is the plain data of `Report.data()`, or of a JSON file that a run has written.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mqcore.rules.capabilities import Capability

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["capability_table", "cell", "limits_in_words"]

_SECONDS = {"after_crash", "granularity", "held_at_most", "max", "window"}
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"), (0.001, "ms"))


def limits_in_words(limits: Mapping[str, object]) -> str:
    """Return limits as text: `granularity 5 ms, max 3,650 d`."""
    return ", ".join(f"{name} {_value(name, value)}" for name, value in limits.items())


def capability_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: a row for each capability and one for durability.

    A column is a report, or all reports of one backend whose servers can do the same.
    """
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for report in reports:
        key = json.dumps(
            [report[name] for name in ("backend", "durability", "capabilities")], sort_keys=True
        )
        alike.setdefault(key, []).append(report)

    columns = [same[0] for same in alike.values()]
    servers = [", ".join(report["server"] for report in same) for same in alike.values()]
    heads = [
        f"{column['backend']}<br>{cell(names)}"
        for column, names in zip(columns, servers, strict=True)
    ]
    rows = [["", *heads], ["---"] * (len(heads) + 1)]

    for capability in Capability:
        supports = [
            column["capabilities"].get(capability.name, {"level": "none", "limits": {}})
            for column in columns
        ]
        cells = [
            f"{support['level']}: {limits_in_words(support['limits'])}".rstrip(": ")
            for support in supports
        ]
        rows.append([capability.name, *map(cell, cells)])

    rows.append(["durability", *(cell(column["durability"]) for column in columns)])
    rows.append(
        [
            "the run",
            *(cell(", ".join(dict.fromkeys(map(_counts, same)))) for same in alike.values()),
        ]
    )

    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _counts(report: Mapping[str, Any]) -> str:
    return f"{report['verdict']}: " + ", ".join(
        f"{count:,} {status}" for status, count in report["counts"].items()
    )


def _value(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if name not in _SECONDS:
        return f"{value:,.10g}"
    return next(
        (f"{value / size:,.4g} {unit}" for size, unit in _UNITS if value >= size), f"{value:g} s"
    )


def cell(text: str) -> str:
    """Return text that fits into one cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
