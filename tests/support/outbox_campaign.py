"""Transactions, a third of them rolled back, while writers, workers and relays are killed."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text

from mqcore import Broker, Queue, Settings
from mqcore.errors import MqcoreError, QueueNotFound

if TYPE_CHECKING:
    from support.databases import AppDatabase

__all__ = ["Load", "Outcome", "campaign"]

PROGRAM = Path(__file__).with_name("outbox_process.py")
WRITERS, WORKERS, RELAYS = 3, 2, 2
placed = Queue("placed", dict[str, int])


@dataclass(frozen=True)
class Load:
    """`transactions` in all; one process is killed every `pause` seconds, up to `kills` times.

    `limit`: seconds after which the campaign is given up.
    """

    transactions: int
    kills: int
    pause: float
    limit: float
    seed: int


@dataclass
class Outcome:
    """What was committed, and what was handled how often."""

    committed: set[str] = field(default_factory=set)
    handled: Counter[str] = field(default_factory=Counter)
    begun: int = 0
    left: int = 0
    dead: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def lost(self) -> int:
        """Committed and never handled."""
        return len(self.committed - set(self.handled))

    @property
    def unwanted(self) -> int:
        """Handled and never committed."""
        return len(set(self.handled) - self.committed)

    @property
    def is_clean(self) -> bool:
        """Whether exactly the committed messages arrived."""
        return not (self.lost or self.unwanted or self.left or self.dead)

    def __str__(self) -> str:
        twice = sum(count - 1 for count in self.handled.values())
        kills = ", ".join(f"{count} {role}s" for role, count in sorted(self.kills.items()))
        return (
            f"{self.begun:,} transactions, {len(self.committed):,} messages committed, "
            f"{self.lost} lost, {self.unwanted} not committed but handled, {twice} handled again, "
            f"{self.dead} dead letters, {self.left} left, killed: {kills or 'none'}, "
            f"{self.seconds:.0f} s"
        )


class Processes:
    """The processes of a campaign, each by its name. All are ended with it."""

    def __init__(self, config: Path, relay: list[str], chance: random.Random) -> None:
        self._config, self._relay, self._chance = config, relay, chance
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self.kills: Counter[str] = Counter()
        self.folder = config.parent

    async def start(self, role: str, name: str) -> None:
        command = [str(PROGRAM), role, str(self._config), name]
        if role == "relay":
            command = self._relay
        with (self.folder / f"{name}.errors").open("ab") as errors:
            self._running[name] = await asyncio.create_subprocess_exec(
                sys.executable, *command, cwd=self.folder, stdout=errors, stderr=errors
            )

    async def kill_one(self) -> None:
        """Kill a random process, and start it again."""
        names = [name for name, process in self._running.items() if process.returncode is None]
        if not names:
            return
        name = self._chance.choice(sorted(names))
        process = self._running[name]
        if process.returncode is None:
            process.kill()
        await process.wait()
        role = name.rstrip("0123456789")
        self.kills[role] += 1
        await self.start(role, name)

    async def restart_failed(self) -> None:
        """Start again what has ended by itself, as a supervisor does."""
        for name, process in list(self._running.items()):
            is_complete = (self.folder / f"{name}.complete").exists()
            if process.returncode is not None and not is_complete:
                await self.start(name.rstrip("0123456789"), name)

    async def end(self) -> None:
        """Ask all to end, and kill what does not."""
        alive = [process for process in self._running.values() if process.returncode is None]
        for process in alive:
            process.send_signal(signal.SIGTERM)
        for process in alive:
            try:
                async with asyncio.timeout(40):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def campaign(
    database: AppDatabase, url: str, outbox: str | None, load: Load, folder: Path
) -> Outcome:
    """Run it, and return what became of each message."""
    async with Broker.connect(url, settings=Settings(), queues=[placed], outbox=outbox):
        pass
    engine = create_engine(database.sync_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE written (id VARCHAR(40))"))

    config = folder / "config.json"
    lock = f"{database.place}.lock" if database.product == "sqlite" else ""
    each = -(-load.transactions // WRITERS)
    given = {"url": url, "outbox": outbox, "database": database.sync_url, "folder": str(folder)}
    config.write_text(json.dumps({**given, "transactions": each, "lock": lock}))
    relay = ["-m", "mqcore", "relay", outbox or "", "--url", url]
    processes = Processes(config, relay, random.Random(load.seed))

    began = time.monotonic()
    try:
        async with asyncio.timeout(load.limit):
            await _under_fire(processes, load, outbox)
            await _emptied(url, outbox)
    except TimeoutError:
        pass
    finally:
        await processes.end()

    outcome = Outcome(kills=processes.kills, seconds=time.monotonic() - began)
    with engine.begin() as connection:
        outcome.committed = {id for (id,) in connection.execute(text("SELECT id FROM written"))}
        connection.execute(text("DROP TABLE written"))
    engine.dispose()
    _read_logs(folder, outcome)
    outcome.left, outcome.dead = await _remains(url, outbox)
    return outcome


def _read_logs(folder: Path, outcome: Outcome) -> None:
    outcome.begun = sum(path.stat().st_size for path in folder.glob("*.begun"))
    for path in folder.glob("*.handled"):
        outcome.handled.update(path.read_text().split())


async def _under_fire(processes: Processes, load: Load, outbox: str | None) -> None:
    """Run everything, and kill until the transactions are done."""
    for number in range(WRITERS):
        await processes.start("writer", f"writer{number}")
    for number in range(WORKERS):
        await processes.start("worker", f"worker{number}")
    for number in range(RELAYS if outbox else 0):
        await processes.start("relay", f"relay{number}")

    while len(list(processes.folder.glob("*.complete"))) < WRITERS:
        await asyncio.sleep(load.pause)
        await processes.restart_failed()
        if processes.kills.total() < load.kills:
            await processes.kill_one()


async def _emptied(url: str, outbox: str | None) -> None:
    """Wait until nothing is left."""
    while sum(await _remains(url, outbox)):  # noqa: ASYNC110 - other processes empty it
        await asyncio.sleep(0.5)


async def _remains(url: str, outbox: str | None) -> tuple[int, int]:
    """Return how many messages wait, and how many dead letters there are."""
    left = dead = 0
    for place, queue in ((url, "placed"), (outbox, "mq.outbox")):
        if place is None:
            continue
        async with Broker.connect(place, settings=Settings()) as broker:
            for name in (queue, f"{queue}.dlq"):
                try:
                    (counts,) = await broker.counts(name)
                except (QueueNotFound, MqcoreError):
                    continue
                if name == queue:
                    left += counts.total
                else:
                    dead += counts.total
    return left, dead
