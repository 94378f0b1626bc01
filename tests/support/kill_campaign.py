"""Worker processes killed in turn on one server, and a ledger of what became of each message."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import TYPE_CHECKING

from support.deaths import Workers
from support.logs import whole_lines

from mqcore import Broker, MqcoreError, Queue
from mqcore.messages.message import new_id

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = 5
"""Processes at the same time."""
POISON_STARTS = 5
"""Three attempts and two (G4)."""
LEAST = 0.05
"""Seconds that a message takes at least."""


@dataclass(frozen=True)
class Load:
    """`kills`, `every` seconds apart; `rate` messages a second of up to `longest` seconds.

    `poisons` kill their process by themselves.
    """

    kills: int
    every: float
    rate: float
    longest: float
    poisons: int
    seed: int


@dataclass
class Ledger:
    """What is known about each message besides the broker's answers."""

    confirmed: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    dead: Counter[str] = field(default_factory=Counter)
    starts: Counter[str] = field(default_factory=Counter)
    kills: list[tuple[float, int]] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    """Seconds from a kill until a message that ran in that process was started again."""

    @property
    def lost(self) -> set[str]:
        """Confirmed, and neither handled nor dead-lettered."""
        return self.confirmed - self.done - set(self.dead)

    @property
    def innocents(self) -> dict[str, int]:
        """Dead letters that did not kill a process."""
        return {what: count for what, count in self.dead.items() if not what.startswith("poison")}

    @property
    def most_poison_starts(self) -> float:
        """Stored copies: where a Move is not one step, a crash may leave a second one (G3)."""
        starts = {what: count for what, count in self.starts.items() if what.startswith("poison")}
        return max((count / max(self.dead[what], 1) for what, count in starts.items()), default=0)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost or blamed for another, and no killer was started too often."""
        return not self.lost and not self.innocents and self.most_poison_starts <= POISON_STARTS

    def read(self, log: Path) -> None:
        """Count what the workers wrote."""
        started: dict[str, list[tuple[float, int]]] = {}
        done: dict[str, float] = {}
        for line in whole_lines(log):
            word, moment, what, _, pid = line.split(" ")
            if word == "started":
                started.setdefault(what, []).append((float(moment), int(pid)))
            else:
                done.setdefault(what, float(moment))
        self.done = set(done)
        self.starts = Counter({what: len(runs) for what, runs in started.items()})
        self.recoveries = [
            again - killed
            for killed, victim in self.kills
            for what, runs in started.items()
            if (killed < done.get(what, killed + 1)) and any(pid == victim for _, pid in runs)
            for again in [
                next((moment for moment, pid in runs if moment > killed and pid != victim), None)
            ]
            if again is not None
        ]


async def publish(
    broker: Broker, queue: Queue[str], load: Load, ledger: Ledger, stop: asyncio.Event
) -> None:
    """Publish until asked to stop."""
    draw, number = random.Random(load.seed), 0
    while not stop.is_set():
        number += 1
        words = [f"for-{draw.uniform(LEAST, load.longest):.2f}-{number}"]
        if (
            load.poisons
            and number % round(load.rate * load.kills * load.every / (load.poisons + 1)) == 0
        ):
            words.append(f"poison-{number}")
        for what in words:
            try:
                await broker.publish(queue, what, timeout=5)
            except MqcoreError:
                continue
            ledger.confirmed.add(what)
        await asyncio.sleep(1 / load.rate)


async def settle(broker: Broker, queue: Queue[str], workers: Workers, ledger: Ledger) -> None:
    """Keep workers running until all is handled or dead-lettered, for four minutes at most."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        workers.reap()
        workers.start(WORKERS - len(workers.running))
        await asyncio.sleep(1)
        ledger.read(workers.log)
        letters = await broker.dead_letters(queue).list(10_000)
        ledger.dead = Counter(letter.message.body.decode().strip('"') for letter in letters)
        if not ledger.lost:
            break


async def campaign(url: str, load: Load, folder: Path) -> Ledger:
    """Kill workers on one server."""
    queue: Queue[str] = Queue(f"kills.{new_id()[:12]}", str)
    ledger, stop, draw = Ledger(), asyncio.Event(), random.Random(load.seed)

    async with Broker.connect(url) as broker:
        await broker.declare(queue)
        with Workers(url, queue.name, folder, concurrency=5, prefetch=10) as workers:
            workers.start(WORKERS)
            await asyncio.sleep(3)
            publishing = asyncio.create_task(publish(broker, queue, load, ledger, stop))
            try:
                while len(ledger.kills) < load.kills:
                    await asyncio.sleep(load.every)
                    workers.reap()
                    workers.start(WORKERS - len(workers.running))
                    at_work = workers.at_work()
                    if len(at_work) > WORKERS // 2:  # on a busy machine others take long to start
                        pid = workers.kill_one(draw.choice(at_work))
                        ledger.kills.append((time.time(), pid))
            finally:
                stop.set()
                await publishing
            await settle(broker, queue, workers, ledger)
        await broker.delete(queue)
    return ledger


def summary(ledger: Ledger) -> str:
    """One line of figures."""
    poisons = [what for what in ledger.starts if what.startswith("poison")]
    late = ledger.recoveries or [0.0]
    p95 = quantiles(late, n=20)[-1] if len(late) > 1 else late[0]
    return (
        f"{len(ledger.confirmed)} confirmed, lost {len(ledger.lost)} {sorted(ledger.lost)[:5]}, "
        f"innocents dead-lettered {len(ledger.innocents)} {sorted(ledger.innocents)[:5]}, "
        f"{len(poisons)} poisons started at most {ledger.most_poison_starts:g} times for each of "
        f"{sum(ledger.dead[what] for what in poisons)} copies, "
        f"{len(ledger.recoveries)} recoveries: p50 {median(late):.2f} s, p95 {p95:.2f} s, most "
        f"{max(late):.2f} s"
    )
