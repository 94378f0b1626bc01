"""mqcore beside other libraries and the raw clients, in one run.

    python benchmarks/peers.py [--only redis] [--rounds 3] [--scale 1.0] [--page]

Each scenario of each contender runs in a process of its own, one after the other and interleaved: a
round runs all of them once. A row is the median of its rounds. Compare ratios inside one run, not
figures of two machines. RabbitMQ is an installed server with durable classic queues, persistent
messages and confirms; Redis an installed server without persistence; PostgreSQL an installed server
that writes to the disk at each commit, as SQLite does. Payloads are JSON of 200 bytes.
"""

import argparse
import ast
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import uuid
from collections import defaultdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import report
from contenders.common import PREFETCH, THREADS

from mqcore.contract.brokers import Brokers

HERE = Path(__file__).parent
METHOD = (
    "JSON payloads of 200 bytes. RabbitMQ has durable classic queues, persistent messages and "
    "confirms; Redis runs without persistence; PostgreSQL and SQLite write to the disk at each "
    "commit."
)
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
    "postgresql": {
        "mqcore": "ours",
        "psycopg": "raw_psycopg",
        "procrastinate": "procrastinate_peer",
    },
    "sqlite": {"mqcore": "ours", "sqlite3": "raw_sqlite", "huey": "huey_peer"},
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
    "raw_psycopg": {"drain, blocking", "latency"},
    "raw_sqlite": {"drain, blocking", "latency"},
    "huey_peer": {"drain"},
}
"""What a contender has no way to do."""
SLOW = {"kombu_peer", "dramatiq_peer", "celery_peer", "huey_peer"}
"""Contenders that publish a quarter of the messages, so that a run does not wait for them."""
PUBLISHING = {"one by one", "bulk"}
SLOW_HANDLING = {"procrastinate_peer", "huey_peer"}
"""Contenders that handle a quarter of the messages, for the same reason."""
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
    "psycopg",
    "procrastinate",
    "huey",
)
TODAY = date.today().isoformat()  # noqa: DTZ011 - the day on the wall


class Figure(NamedTuple):
    """One row: messages a second, CPU in ms for 1,000 messages, memory in MiB, latency in ms."""

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
                slow = SLOW if scenario in PUBLISHING else SLOW_HANDLING
                count = int(size * options.scale / (4 if script in slow else 1))
                if figure := measure(script, scenario, url, count):
                    found[scenario][name].append(figure)

    return {
        scenario: {name: median(figures) for name, figures in rows.items()}
        for scenario, rows in found.items()
    }


def figures_of(
    tables: dict[str, tuple[str, dict[str, dict[str, Figure]], list[float]]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return the figures of a run as `report.py` reads them."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    contenders = []
    for script in sorted({script for names in CONTENDERS.values() for script in names.values()}):
        text = (HERE / "contenders" / f"{script}.py").read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(text)) or "").replace("\n", " ")
        contenders.append(f"`{script}.py`: {about}")
    contenders.append(f"All: prefetch {PREFETCH}; {THREADS} threads where handlers block.")

    return {
        "measured": TODAY,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {versions}",
        "method": f"{METHOD} Medians of {options.rounds} rounds.",
        "contenders": contenders,
        "tables": {
            kind: {
                "title": title,
                "measured": TODAY,
                "load": max(load),
                "rows": {
                    scenario: {
                        name: {
                            column: round(value, 2)
                            for column, value in figure._asdict().items()
                            if value
                        }
                        for name, figure in figures.items()
                    }
                    for scenario, figures in rows.items()
                },
            }
            for kind, (title, rows, load) in tables.items()
        },
    }


def added_to(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the page with the tables of this run in place of theirs."""
    tables = {**old["tables"], **new["tables"]}
    ordered = {kind: tables[kind] for kind in CONTENDERS if kind in tables}
    return {**new, "tables": ordered, "measured": old["measured"]}


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
        "--page",
        action="store_true",
        help="write docs/benchmarks.md, its figures and its charts; with --only these tables alone",
    )
    options = parser.parse_args()
    tables = {}

    with Brokers("local") as brokers, TemporaryDirectory() as folder:
        embedded = {
            "memory": ("In one process", "memory://"),
            "sqlite": (f"SQLite {sqlite3.sqlite_version}", f"sqlite:///{folder}/mqcore.db"),
        }
        for kind in options.only or CONTENDERS:
            if kind in embedded:
                title, url = embedded[kind]
            else:
                server = brokers.server(kind)
                title, url = server.title, server.url
            load = [os.getloadavg()[0]]
            tables[kind] = (title, run(kind, url, options), load)
            load.append(os.getloadavg()[0])

    data = figures_of(tables, options)
    for entry in data["tables"].values():
        print(report.table(entry))
    if options.page:
        if options.only and report.FIGURES.exists():
            data = added_to(json.loads(report.FIGURES.read_text(encoding="utf-8")), data)
        report.FIGURES.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        report.write(data)


if __name__ == "__main__":
    main()
