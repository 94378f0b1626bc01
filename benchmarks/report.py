"""Figures of a run as a page and as charts: `docs/benchmarks.md` and the pictures beside it.

    python benchmarks/report.py          # draws docs/benchmarks.md again from docs/benchmarks.json

`peers.py --page` measures, stores the figures, and calls this.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "benchmarks.json"
RAW = {"py-amqp, pika", "py-amqp", "pika", "redis-py", "asyncio.Queue", "psycopg", "sqlite3"}
"""Clients without a library: no retries, headers or reconnects. No peers, but the upper bound."""
SCENARIOS = {
    "one by one": "publish, each confirmed before the next",
    "bulk": "publish in bulk",
    "drain": "handle, async",
    "drain, blocking": "handle, in threads",
}
STYLE = """
.chart { --ink: #1f2937; --soft: #64748b; --ours: #0f766e; --peer: #94a3b8; --raw: #cbd5e1; }
@media (prefers-color-scheme: dark) { .chart { --ink: #e2e8f0; --soft: #94a3b8; --ours: #2dd4bf;
  --peer: #64748b; --raw: #475569; } }
.chart text { font: 12px system-ui, "Segoe UI", Roboto, sans-serif; fill: var(--ink); }
.chart .title { font-weight: 600; font-size: 14px; }
.chart .scenario { font-weight: 600; }
.chart .note { fill: var(--soft); font-size: 11px; }
.chart .rate { fill: var(--soft); }
.chart .ours { fill: var(--ours); }
.chart .peer { fill: var(--peer); }
.chart .raw { fill: var(--raw); }
""".strip()

BUSY = 2.5
"""The load above which a table says that its machine was busy: half a core beyond two."""

Rows = dict[str, dict[str, dict[str, float]]]
"""Of one broker: scenario, contender, and its figures (`rate`, `cpu`, `memory`, `p50`, `p99`)."""


def kind(name: str) -> str:
    """Return the class of a contender's bar."""
    return "ours" if name == "mqcore" else "raw" if name in RAW else "peer"


def picture(width: int, height: int, title: str, parts: list[str]) -> str:
    """Return an SVG with these elements."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([head, f"<style>\n{STYLE}\n</style>", *parts, "</svg>", ""])


def bar(x: int, y: int, width: float, name: str, rate: float) -> list[str]:
    """Return the elements of one bar, its name before it and its figure behind it."""
    return [
        f'<text x="{x - 6}" y="{y + 11}" text-anchor="end">{escape(name)}</text>',
        f'<rect x="{x}" y="{y}" width="{width:.0f}" height="13" rx="2" class="{kind(name)}"/>',
        f'<text x="{x + width + 6:.0f}" y="{y + 11}" class="rate">{rate:,.0f}</text>',
    ]


def chart(title: str, rows: Rows) -> str:
    """Return a picture with one group of bars for each scenario, scaled to its fastest bar."""
    parts, y = [], 44
    for scenario, figures in rows.items():
        if scenario not in SCENARIOS:
            continue

        parts.append(f'<text x="12" y="{y}" class="scenario">{SCENARIOS[scenario]}</text>')
        y += 8
        fastest = max(figure["rate"] for figure in figures.values())
        for name, figure in sorted(figures.items(), key=lambda item: -item[1]["rate"]):
            parts += bar(108, y, max(470 * figure["rate"] / fastest, 1), name, figure["rate"])
            y += 18
        y += 24

    heading = f'<text x="12" y="18" class="title">{escape(title)}: messages a second</text>'
    return picture(660, y - 16, f"{title}: messages a second", [heading, *parts])


def pace(data: dict[str, Any]) -> str:
    """Return the picture for the home page: mqcore beside the fastest peer in each scenario."""
    parts = [
        '<text x="8" y="15" class="title">Messages a second, beside the fastest peer library</text>'
    ]
    y = 36
    for column, broker in enumerate(("rabbitmq", "redis")):
        x, y = 8 + 370 * column, 36
        parts.append(
            f'<text x="{x}" y="{y}" class="scenario">{escape(title_of(data, broker))}</text>'
        )
        for scenario in ("one by one", "bulk", "drain"):
            figures = data["tables"][broker]["rows"][scenario]
            peers = {name: entry for name, entry in figures.items() if kind(name) == "peer"}
            best = max(peers, key=lambda name: peers[name]["rate"])
            top = max(figures["mqcore"]["rate"], peers[best]["rate"])
            parts.append(f'<text x="{x}" y="{y + 17}" class="note">{SCENARIOS[scenario]}</text>')
            for place, name in enumerate(("mqcore", best)):
                rate = figures[name]["rate"]
                parts += bar(x + 74, y + 22 + 15 * place, 210 * rate / top, name, rate)
            y += 54

    note = f"measured {data['measured']}; each pair is scaled to its longer bar"
    parts.append(f'<text x="8" y="{y + 14}" class="note">{note}</text>')
    return picture(740, y + 22, "Messages a second, beside the fastest peer library", parts)


def title_of(data: dict[str, Any], broker: str) -> str:
    """Return the name of the server that was measured."""
    return str(data["tables"][broker]["title"])


def circumstances(entry: dict[str, Any]) -> list[str]:
    """Return what to know before reading a table: its day, and what else the machine did."""
    if "load" not in entry:
        return []
    text = f"Measured on {entry['measured']}, at a load of {entry['load']:.0f}."
    if entry["load"] > BUSY:
        text += (
            " **The machine had other work to do**: the figures are lower than on a quiet machine. "
            "The rows took turns, so compare them. CPU is what the library itself used."
        )
    return [text, ""]


def table(entry: dict[str, Any]) -> str:
    """Return the Markdown of one broker, with the ratio of mqcore to each row."""
    rows: Rows = entry["rows"]
    lines = [
        f"## {entry['title']}",
        "",
        *circumstances(entry),
        "| scenario | library | messages a second | CPU, ms a thousand | mqcore is |",
        "|---|---|--:|--:|--:|",
    ]
    waits = [
        "",
        "| latency on an idle system | p50, ms | p99, ms |",
        "|---|--:|--:|",
    ]

    for scenario, figures in rows.items():
        for name, figure in figures.items():
            if scenario == "latency":
                p99 = f"{figure['p99']:.2f}" if "p99" in figure else ""
                waits.append(f"| {name} | {figure['p50']:.2f} | {p99} |")
                continue
            ratio = figures["mqcore"]["rate"] / figure["rate"] if "mqcore" in figures else 0
            times = f"{ratio:.2f} times" if ratio and name != "mqcore" else ""
            cpu = f"{figure['cpu']:,.0f}" if "cpu" in figure else ""
            lines.append(
                f"| {SCENARIOS[scenario]} | {name} | {figure['rate']:,.0f} | {cpu} | {times} |"
            )

    return "\n".join([*lines, *(waits if "latency" in rows else []), ""])


def write(data: dict[str, Any]) -> None:
    """Write the page and the pictures."""
    parts = [
        "# Benchmarks",
        "",
        f"Measured on {data['measured']}: {data['machine']}. {data['method']}",
        "",
        (
            "Compare rows of one table only: two machines, or two days on a shared machine, differ "
            "by a factor of two and more. A row in which mqcore loses is printed like any other. "
            "*Raw* clients (py-amqp, pika, redis-py, psycopg, sqlite3, asyncio.Queue) send bytes "
            "without retries, types, headers or reconnects. They are the upper bound."
        ),
        "",
        "To measure on your machine: `python3 noxfile.py -s bench`.",
        "",
    ]
    for broker, entry in data["tables"].items():
        name = f"benchmark-{broker}.svg"
        (DOCS / "assets" / name).write_text(chart(entry["title"], entry["rows"]), encoding="utf-8")
        parts += [
            table(entry),
            f"![{entry['title']}: messages a second](assets/{name})",
            "",
        ]
    if data.get("contenders"):
        parts += ["## How each was run", "", *(f"- {line}" for line in data["contenders"]), ""]
    (DOCS / "assets" / "pace.svg").write_text(pace(data), encoding="utf-8")
    (DOCS / "benchmarks.md").write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(json.loads(FIGURES.read_text(encoding="utf-8")))
