"""mqcore beside kombu, FastStream, dramatiq, Celery and the raw clients, in one run.

    python benchmarks/peers.py [--only redis] [--rounds 3] [--scale 1.0] [--page docs/benchmarks.md]

Each scenario of each contender runs in a process of its own, one after the other and interleaved: a
round runs all of them once. A row is the median of its rounds. Compare ratios inside one run, not
figures of two machines. RabbitMQ is an installed server with durable classic queues, persistent
messages and confirms; Redis an installed server without persistence. Payloads are JSON of 200
bytes.
"""

import argparse
import ast
import json
import platform
import statistics
import subprocess
import sys
import uuid
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from contenders.common import PREFETCH, THREADS

from mqcore.contract.brokers import Brokers

HERE = Path(__file__).parent
SCENARIOS = {
    "one by one": 1500,
    "bulk": 10_000,
    "drain": 10_000,
    "drain, blocking": 4_000,
    "latency": 150,
}
"""Each scenario, and how many messages it takes at scale 1."""
CONTENDERS = {
    "redis": {
        "mqcore": "ours",
        "redis-py": "raw_redis",
        "FastStream": "faststream_peer",
        "dramatiq": "dramatiq_peer",
    },
    "rabbitmq": {
        "mqcore": "ours",
        "py-amqp, pika": "raw_amqp",
        "kombu": "kombu_peer",
        "FastStream": "faststream_peer",
        "dramatiq": "dramatiq_peer",
        "Celery": "celery_peer",
    },
    "memory": {"mqcore": "ours", "asyncio.Queue": "raw_memory", "kombu": "kombu_peer"},
}
CANNOT = {
    "raw_redis": {"drain, blocking"},
    "raw_amqp": {"drain, blocking"},
    "raw_memory": {"drain, blocking", "latency"},
    "faststream_peer": {"drain, blocking"},
    "kombu_peer": {"drain, blocking"},
    "dramatiq_peer": {"drain"},
    "celery_peer": {"drain", "bulk", "latency"},
}
"""What a contender has no way to do."""
SLOW = {"kombu_peer", "dramatiq_peer", "celery_peer"}
"""Contenders that publish a quarter of the messages, so that a run does not wait for them."""
PUBLISHING = {"one by one", "bulk"}
PACKAGES = (
    "mqcore",
    "pika",
    "amqp",
    "redis",
    "hiredis",
    "kombu",
    "faststream",
    "aio-pika",
    "dramatiq",
    "celery",
)


class Figure(NamedTuple):
    """One row: messages a second, CPU in ms for 1,000 messages, memory in MiB, latency p50 and p99 in ms."""

    rate: float
    cpu: float
    memory: float
    p50: float = 0.0
    p99: float = 0.0


def measure(contender: str, scenario: str, url: str, count: int) -> Figure | None:
    """Run one scenario once; None when it fails or takes more than two minutes."""
    script = HERE / "contenders" / f"{contender}.py"
    words = [
        sys.executable,
        str(script),
        scenario,
        url,
        f"bench-{uuid.uuid4().hex[:12]}",
        str(count),
    ]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=120, check=True, cwd=script.parent
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"  {contender}: {scenario}: {error}", file=sys.stderr)
        print(str(getattr(error, "stderr", ""))[-500:], file=sys.stderr)
        return None

    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    waits = sorted(1000 * wait for wait in found["latencies"][len(found["latencies"]) // 10 :])
    p50, p99 = (statistics.median(waits), waits[int(len(waits) * 0.99)]) if waits else (0.0, 0.0)
    return Figure(count / found["seconds"], found["cpu"] * 1e6 / count, found["memory"], p50, p99)


def median(figures: list[Figure]) -> Figure:
    """Return the median of each column."""
    return Figure(*(statistics.median(column) for column in zip(*figures, strict=True)))


def run(kind: str, url: str, options: argparse.Namespace) -> dict[str, dict[str, Figure]]:
    """Run all contenders of one broker; a figure for each scenario and contender."""
    found: dict[str, dict[str, list[Figure]]] = defaultdict(lambda: defaultdict(list))

    for turn in range(options.rounds):
        print(f"{kind}: round {turn + 1} of {options.rounds}", file=sys.stderr)
        for scenario, size in SCENARIOS.items():
            for name, script in CONTENDERS[kind].items():
                if scenario in CANNOT.get(script, ()):
                    continue
                where = "memory://" if kind == "memory" else url
                count = int(
                    size * options.scale / (4 if script in SLOW and scenario in PUBLISHING else 1)
                )
                if figure := measure(script, scenario, where, count):
                    found[scenario][name].append(figure)

    return {
        scenario: {name: median(figures) for name, figures in rows.items()}
        for scenario, rows in found.items()
    }


def table(title: str, rows: dict[str, dict[str, Figure]]) -> str:
    """Return the Markdown of one broker, with the ratio of mqcore to each row."""
    lines = [
        f"## {title}",
        "",
        "| scenario | who | messages a second | CPU, ms a thousand | mqcore is |",
        "|---|---|--:|--:|--:|",
    ]
    waits = [
        "",
        "| latency on an idle system | p50, ms | p99, ms | memory, MiB |",
        "|---|--:|--:|--:|",
    ]

    for scenario, figures in rows.items():
        for name, figure in figures.items():
            if scenario == "latency":
                waits.append(
                    f"| {name} | {figure.p50:.2f} | {figure.p99:.2f} | {figure.memory:.0f} |"
                )
                continue
            ours = figures.get("mqcore")
            ratio = f"{ours.rate / figure.rate:.2f} times" if ours and name != "mqcore" else ""
            lines.append(
                f"| {scenario} | {name} | {figure.rate:,.0f} | {figure.cpu:,.0f} | {ratio} |"
            )

    return "\n".join([*lines, *(waits if "latency" in rows else []), ""])


def chart(title: str, rows: dict[str, dict[str, Figure]]) -> str:
    """Return an SVG with one group of bars a scenario, each as long as its share of the fastest."""
    bars, y = [], 46
    for scenario, figures in rows.items():
        if scenario == "latency":
            continue
        bars.append(f'<text x="12" y="{y}" class="scenario">{scenario}</text>')
        y += 10
        fastest = max(figure.rate for figure in figures.values())
        for name, figure in sorted(figures.items(), key=lambda item: -item[1].rate):
            width = max(460 * figure.rate / fastest, 1)
            kind = "ours" if name == "mqcore" else "other"
            bars.append(f'<text x="118" y="{y + 12}" class="name">{name}</text>')
            bars.append(
                f'<rect x="126" y="{y}" width="{width:.0f}" height="15" rx="2" class="{kind}"/>'
            )
            bars.append(
                f'<text x="{132 + width:.0f}" y="{y + 12}" class="rate">{figure.rate:,.0f}/s</text>'
            )
            y += 20
        y += 24

    style = (
        "text{font:13px "
        "sans-serif;fill:#444}.title{font-weight:600;font-size:15px}.name{text-anchor:end}"
        ".scenario{font-weight:600}.ours{fill:#c2410c}.other{fill:#94a3b8}.rate{font-size:12px}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 {y}" role="img" '
        f'aria-label="{title}">'
    )
    return "\n".join(
        [
            head,
            f"<style>{style}</style>",
            f'<text x="12" y="22" class="title">{title}</text>',
            *bars,
            "</svg>",
            "",
        ]
    )


def page(
    tables: dict[str, tuple[str, dict[str, dict[str, Figure]]]],
    goal: Path | None,
    options: argparse.Namespace,
) -> str:
    """Return the whole page, and write the charts beside it."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    parts = [
        "# Benchmarks",
        "",
        (
            f"Made by `python3 noxfile.py -s bench` on {platform.machine()}, Python "
            f"{platform.python_version()}, with {versions}."
        ),
        "",
        __doc__.partition("\n\n")[2].partition("\n\n")[2].strip(),
        (
            f"Medians of {options.rounds} rounds. A row in which mqcore loses is printed like any "
            "other."
        ),
        "",
    ]
    for kind, (title, rows) in tables.items():
        if goal is not None:
            picture = goal.parent / "assets" / f"benchmark-{kind}.svg"
            picture.parent.mkdir(exist_ok=True)
            picture.write_text(chart(title, rows), encoding="utf-8")
            parts += [f"![{title}: messages a second](assets/{picture.name})", ""]
        parts.append(table(title, rows))
    parts += ["## How each was run", ""]
    for script in sorted({script for one in CONTENDERS.values() for script in one.values()}):
        text = (HERE / "contenders" / f"{script}.py").read_text(encoding="utf-8")
        parts.append(
            f"- `{script}.py`: {(ast.get_docstring(ast.parse(text)) or '').replace(chr(10), ' ')}"
        )
    parts.append(f"- All: prefetch {PREFETCH}; {THREADS} threads where handlers block.")
    return "\n".join([*parts, ""])


def main() -> None:
    """Run what the command line asks for, print the page, and write it where it is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=CONTENDERS, action="append", help="this broker alone; again for more"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times the messages of each scenario"
    )
    parser.add_argument(
        "--page", type=Path, help="write the page here, and its charts into assets/ beside it"
    )
    options = parser.parse_args()
    tables = {}

    with Brokers("local") as brokers:
        for kind in options.only or CONTENDERS:
            server = None if kind == "memory" else brokers.server(kind)
            title = server.title if server else "In one process"
            tables[kind] = (title, run(kind, server.url if server else "", options))

    text = page(tables, options.page, options)
    print(text)
    if options.page is not None:
        options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
