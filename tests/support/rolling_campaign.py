"""Rolling restarts of workers on one server, and a ledger of what became of each message."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from support.logs import whole_lines
from support.slow_proxy import SlowProxy

from mqcore import Broker, MqcoreError, PublishUnknown, Queue
from mqcore.messages.message import new_id

TESTS = Path(__file__).parents[1]
GRACE = 8.0
AT_ONCE = 3
"""Workers that run at the same time."""
REJECTED_EVERY = 10


@dataclass(frozen=True)
class Load:
    """What a campaign does: so many restarts, answers up to `late` seconds late, `rate` messages a
    second, and `pause` seconds between a start and the next SIGTERM."""

    restarts: int
    late: float = 1.0
    rate: float = 40.0
    pause: float = 0.5
    seed: int = 1


@dataclass
class Ledger:
    """What is known about each message besides the broker's answers."""

    confirmed: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    dead: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    slow_exits: list[float] = field(default_factory=list)
    started: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)

    def read(self, log: Path) -> None:
        """Count what the workers wrote."""
        self.started.clear()
        self.events.clear()
        for line in whole_lines(log):
            _, _, what, *words = line.split(" ")
            if what == "started":
                self.started[words[0]] += 1
            elif what == "event":
                self.events[words[0]] += 1

    @property
    def lost(self) -> set[str]:
        return {what for what in self.confirmed if not self.started[what]}

    @property
    def reported_failed_but_stored(self) -> set[str]:
        return {what for what in self.failed if self.started[what]}

    @property
    def doubled(self) -> dict[str, int]:
        return {what: count for what, count in self.started.items() if count > 1}

    @property
    def dead_wrong(self) -> dict[str, int]:
        """Dead letters that are not exactly one for each refused message."""
        refused = {what for what in self.started if what.startswith("reject")}
        return {
            what: self.dead[what]
            for what in refused | set(self.dead)
            if self.dead[what] != (what in refused)
        }

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        wrong = self.lost or self.doubled or self.dead_wrong or self.reported_failed_but_stored
        return not wrong and not self.events["message.quarantined"] and set(self.exits) <= {0}


class Workers:
    """Worker processes, the oldest first."""

    def __init__(self, url: str, queue: str, folder: Path) -> None:
        self.log = folder / "log"
        self.log.touch()
        self._errors = (folder / "stderr").open("ab")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MQCORE_")},
            "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
            "ROLLING_LOG": str(self.log),
            "ROLLING_QUEUE": queue,
        }
        self.url = url
        self.running: list[asyncio.subprocess.Process] = []

    async def start(self, url: str | None = None) -> None:
        """Start one more, and return when it consumes."""
        words = ["-m", "mqcore", "worker", "support.rolling:app", "--grace", str(GRACE)]
        environment = {**self.environment, "MQCORE_URL": url or self.url}
        process = await asyncio.create_subprocess_exec(
            sys.executable, *words, env=environment, stdout=self._errors, stderr=self._errors
        )
        self.running.append(process)
        async with asyncio.timeout(60):
            while f" {process.pid} event consumer.started" not in self.log.read_text():
                if process.returncode is not None:
                    raise SystemExit(
                        f"a worker ended with {process.returncode}; see {self._errors.name}"
                    )
                await asyncio.sleep(0.05)

    async def stop_oldest(self, ledger: Ledger) -> None:
        """SIGTERM it, and note how and when it ends."""
        process = self.running.pop(0)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        ledger.exits[await process.wait()] += 1
        if (took := time.monotonic() - began) > GRACE + 1.5:
            ledger.slow_exits.append(round(took, 2))

    def kill(self) -> None:
        """End those that still run, and close their log."""
        self._errors.close()
        for process in self.running:
            if process.returncode is None:
                process.kill()


async def publish(
    url: str, queue: Queue[str], ledger: Ledger, rate: float, stop: asyncio.Event
) -> None:
    """Publish until asked to stop, one message at a time in several tasks."""
    numbers = iter(range(10**9))

    async with Broker.connect(url) as broker:

        async def one(what: str) -> None:
            try:
                await broker.publish(queue, what, timeout=5)
            except PublishUnknown:
                ledger.unknown.add(what)
            except MqcoreError:
                ledger.failed.add(what)
            else:
                ledger.confirmed.add(what)

        async with asyncio.TaskGroup() as tasks:
            while not stop.is_set():
                number = next(numbers)
                tasks.create_task(
                    one(f"{'reject' if number % REJECTED_EVERY == 0 else 'do'}-{number}")
                )
                await asyncio.sleep(1 / rate)


async def settle(url: str, queue: Queue[str], workers: Workers, ledger: Ledger) -> None:
    """Let a last worker, which is not slowed down, handle the rest; list the dead letters."""
    await workers.start(url)
    async with Broker.connect(url) as broker:
        deadline, quiet = time.monotonic() + 60, 0
        while time.monotonic() < deadline and quiet < 10:
            await asyncio.sleep(0.3)
            ledger.read(workers.log)
            counts = [count for count in await broker.counts(queue) if count.name == queue.name]
            empty = all(count.ready == count.leased == 0 for count in counts)
            quiet = quiet + 1 if empty and not ledger.lost else 0
        await workers.stop_oldest(ledger)
        letters = await broker.dead_letters(queue).list(100_000)
        ledger.dead = Counter(broker_text(letter.message.body) for letter in letters)
    ledger.read(workers.log)


def broker_text(body: bytes) -> str:
    """The payload of a message as the publisher wrote it."""
    return body.decode().strip('"')


async def campaign(url: str, host: str, port: int, load: Load, folder: Path) -> Ledger:
    """Run the rolling restarts on one server."""
    queue: Queue[str] = Queue(f"rolling.{new_id()[:12]}", str)
    ledger, stop = Ledger(), asyncio.Event()

    async with SlowProxy(host, port, load.late, load.seed) as proxy:
        slow_url = url.replace(f":{port}", f":{proxy.port}", 1)
        workers = Workers(slow_url, queue.name, folder)
        async with Broker.connect(url) as broker:
            await broker.declare(queue)

        publishing = asyncio.create_task(publish(slow_url, queue, ledger, load.rate, stop))
        try:
            for _ in range(AT_ONCE):
                await workers.start()

            stopping: list[asyncio.Task[None]] = []
            for _ in range(load.restarts):
                stopping.append(asyncio.create_task(workers.stop_oldest(ledger)))
                await workers.start()
                await asyncio.sleep(load.pause)
            await asyncio.gather(*stopping)

            stop.set()
            await publishing
            await asyncio.gather(
                *(workers.stop_oldest(ledger) for _ in range(len(workers.running)))
            )
            await settle(url, queue, workers, ledger)
        finally:
            stop.set()
            publishing.cancel()
            workers.kill()
    return ledger


def summary(ledger: Ledger) -> str:
    """One line of figures."""
    return (
        f"{len(ledger.confirmed)} confirmed, {len(ledger.unknown)} unknown, "
        f"{len(ledger.failed)} failed; "
        f"lost {len(ledger.lost)}, "
        f"started again {len(ledger.doubled)} {sorted(ledger.doubled.items())[:6]}, "
        f"wrong dead letters {len(ledger.dead_wrong)} {sorted(ledger.dead_wrong.items())[:6]}, "
        f"failed but stored {len(ledger.reported_failed_but_stored)}, exits {dict(ledger.exits)}, "
        f"late exits {ledger.slow_exits}, events {dict(ledger.events)}"
    )
