"""Eight processes on one SQLite file: no lock error, nothing lost, nothing handled twice (G2)."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mqcore import App, Broker, Queue, Receipt, Worker
from mqcore_sql.sqlite_file import DatabaseFile

jobs = Queue("jobs", str)
IDLE = 3.0
"""Seconds without a message after which a consumer ends."""


class Watch(logging.Handler):
    """What a process has to report: warnings, and how long it waited for its turns."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []
        self.waits: list[float] = []
        logging.getLogger("mqcore").addHandler(self)
        turn, waits = DatabaseFile.turn, self.waits

        @contextmanager
        def measured(file: DatabaseFile) -> Iterator[None]:
            began = time.monotonic()
            with turn(file):
                waits.append(time.monotonic() - began)
                yield

        DatabaseFile.turn = measured  # type: ignore[method-assign]  # it measures, and changes nothing

    def emit(self, record: logging.LogRecord) -> None:
        """Remember a warning of mqcore."""
        self.warnings.append(record.getMessage())

    def report(self) -> str:
        """Return what is known as JSON."""
        waits = sorted(self.waits) or [0.0]
        return json.dumps(
            {
                "warnings": self.warnings,
                "turns": len(self.waits),
                "p99": waits[len(waits) * 99 // 100],
                "longest": waits[-1],
            }
        )


async def publish(broker: Broker, name: str, number: int, batch: int) -> None:
    """Publish so many messages in batches; end with an error if one is not confirmed."""
    for first in range(0, number, batch):
        payloads = [f"{name}-{index}" for index in range(first, min(first + batch, number))]
        for outcome in await broker.publish_many(jobs, payloads, timeout=60):
            if not isinstance(outcome, Receipt):
                raise outcome


async def consume(broker: Broker, log: Path) -> None:
    """Handle messages and write each into the log, until none has come for some seconds."""
    app, last = App("consumer"), time.monotonic()
    with log.open("a", buffering=1) as lines:

        @app.consumer(jobs, concurrency=50, prefetch=200)
        async def handle(payload: str) -> None:
            nonlocal last
            last = time.monotonic()
            lines.write(f"{payload}\n")

        async with Worker(app, broker):
            while time.monotonic() - last < IDLE:  # noqa: ASYNC110 - it is silence that ends it
                await asyncio.sleep(0.1)


async def child(role: str, url: str, name: str, folder: Path, number: int, batch: int) -> None:
    """Be one of the processes."""
    watch = Watch()
    async with Broker.connect(url) as broker:
        if role == "publish":
            await publish(broker, name, number, batch)
        else:
            await consume(broker, folder / f"{name}.handled")
    (folder / f"{name}.report").write_text(watch.report())


def run(folder: Path, processes: int, messages: int, batch: int) -> bool:
    """Start the processes, wait, and print the figures; return whether all is as promised."""
    url, half = f"sqlite:///{folder}/queue.db", processes // 2
    each, began = messages // half, time.monotonic()
    load = ["--messages", str(each), "--batch", str(batch)]
    words = [sys.executable, __file__, *load, "--child"]
    running = [
        subprocess.Popen([*words, role, url, f"{role}{number}", str(folder)])
        for number in range(half)
        for role in ("publish", "consume")
    ]
    codes = [process.wait() for process in running]
    took = time.monotonic() - began - IDLE

    handled: Counter[str] = Counter()
    for log in folder.glob("*.handled"):
        handled.update(log.read_text().split())
    expected = {f"publish{number}-{index}" for number in range(half) for index in range(each)}
    reports = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.report")}
    warnings = [text for report in reports.values() for text in report["warnings"]]
    locked = [text for text in warnings if "locked" in text or "busy" in text]
    twice = sum(count - 1 for count in handled.values() if count > 1)

    print(f"{processes} processes, {len(expected):,} messages in batches of {batch}: {took:.1f} s")
    print(
        f"lock errors {len(locked)}, other warnings {len(warnings) - len(locked)}, lost "
        f"{len(expected - set(handled))}, handled twice {twice}, ends {sorted(set(codes))}"
    )
    for name, report in sorted(reports.items()):
        print(
            f"  {name}: {report['turns']:,} turns, waited for one {report['p99'] * 1e3:.0f} ms at "
            f"most in 99 of 100, longest {report['longest'] * 1e3:.0f} ms"
        )
    for text in warnings[:5]:
        print(f"  {text}")
    return codes == [0] * processes and set(handled) == expected and not (locked or twice)


def main() -> int:
    """Be the parent, or with `--child` one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8, help="half publish, half consume")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=100, help="messages of one publish_many")
    parser.add_argument("--folder", help="where the file is; by default a new one in /tmp")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        role, url, name, folder = options.child
        asyncio.run(child(role, url, name, Path(folder), options.messages, options.batch))
        return 0
    with tempfile.TemporaryDirectory(prefix="processes-", dir=options.folder) as folder:
        is_clean = run(Path(folder), options.processes, options.messages, options.batch)
    return int(not is_clean)


if __name__ == "__main__":
    sys.exit(main())
