"""A busy Celery worker is killed again and again, on two transports side by side.

    python tests/campaigns/celery_kills.py --kills 60

Both use one private Redis. The worker has two processes, late acknowledgements and tasks of 0.15 s;
twelve tasks are sent between two kills. The lease of mqcore and the visibility timeout of kombu's
own transport are 5 s. A row for each transport says how many of the confirmed tasks were lost, how
many ran twice to their end, and how long an interrupted task took to come back. It ends with 1 when
mqcore has lost one.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import redis
from support import celery_killed

from mqcore.contract.brokers import Brokers

_HERE = Path(__file__).parents[1]
_SENT = 12
_PATIENCE = 120.0
"""Seconds after the last kill within which a task that comes back must have come back."""


@dataclass
class Run:
    """One transport."""

    url: str
    ledger: redis.Redis
    key: str
    confirmed: list[str] = field(default_factory=list)
    cut: dict[str, float] = field(default_factory=dict)
    """Tasks that a kill has interrupted, and when."""
    lost = twice = 0
    recovered: list[float] = field(default_factory=list)
    drained = 0.0

    @property
    def environment(self) -> dict[str, str]:
        """What the programs of `support.celery_killed` read."""
        port = self.ledger.connection_pool.connection_kwargs["port"]
        words = {"KILLED_URL": self.url, "KILLED_KEY": self.key, "KILLED_LEDGER": str(port)}
        return {**os.environ, **words, "PYTHONPATH": str(_HERE)}

    def __call__(self, kills: int) -> None:
        """Send, kill and start again, then wait for the rest and count."""
        sender = subprocess.Popen(
            [sys.executable, celery_killed.__file__],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        worker = self._start(0)
        self._send(sender)
        for number in range(1, kills + 1):
            self._wait_for_starts(3)
            self._kill(worker)
            worker = self._start(number)
            self._send(sender)

        ended = time.monotonic()
        while self._done() < len(self.confirmed) and time.monotonic() - ended < _PATIENCE:
            time.sleep(0.2)
        self.drained = time.monotonic() - ended
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait()
        sender.communicate()
        self._count()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        words = ["worker", "-c", "2", "-l", "ERROR", "-n", f"{self.key}-{number}@here"]
        words += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "support.celery_killed", *words],
            env=self.environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _send(self, sender: subprocess.Popen[str]) -> None:
        """Send tasks; the sender answers a name when its publish was confirmed."""
        assert sender.stdin is not None
        assert sender.stdout is not None
        for _ in range(_SENT):
            sender.stdin.write(f"task-{len(self.confirmed)}\n")
            sender.stdin.flush()
            self.confirmed.append(sender.stdout.readline().strip())

    def _wait_for_starts(self, count: int) -> None:
        before, since = self._started(), time.monotonic()
        while self._started() < before + count and time.monotonic() - since < _PATIENCE:
            time.sleep(0.05)

    def _kill(self, worker: subprocess.Popen[bytes]) -> None:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        started = {name.decode() for name in self.ledger.smembers(f"{self.key}:started")}
        ended = {name.decode() for name in self.ledger.hkeys(f"{self.key}:done")}
        for name in started - ended:
            self.cut.setdefault(name, time.time())

    def _started(self) -> int:
        return int(self.ledger.scard(f"{self.key}:started"))

    def _done(self) -> int:
        return int(self.ledger.hlen(f"{self.key}:done"))

    def _count(self) -> None:
        runs = {
            name.decode(): int(n) for name, n in self.ledger.hgetall(f"{self.key}:done").items()
        }
        at = {name.decode(): float(n) for name, n in self.ledger.hgetall(f"{self.key}:at").items()}
        self.lost = len(set(self.confirmed) - set(runs))
        self.twice = sum(count > 1 for count in runs.values())
        self.recovered = sorted(at[name] - when for name, when in self.cut.items() if name in at)

    def row(self) -> str:
        """Return the figures."""
        last = len(self.recovered) - 1
        half, most, longest = (
            self.recovered[min(int(last * part + 0.5), last)] if self.recovered else 0.0
            for part in (0.5, 0.95, 1)
        )
        return (
            f"{self.key:8} {len(self.confirmed):9} {self.lost:4} {self.twice:5} {len(self.cut):11} "
            f"{half:7.1f} {most:7.1f} {longest:7.1f} {self.drained:7.0f}"
        )


def main() -> int:
    """Run both, and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    given = parser.parse_args()

    with Brokers() as brokers:
        url = brokers.server("redis-7").url
        port = int(url.partition("://")[2].partition("/")[0].rpartition(":")[2])
        base = f"redis://127.0.0.1:{port}"
        ledger = redis.Redis(port=port, db=3)
        runs = [Run(f"mqcore+{base}/1", ledger, "mqcore"), Run(f"{base}/2", ledger, "kombu")]
        threads = [threading.Thread(target=run, args=(given.kills,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    print("          confirmed lost twice interrupted     p50     p95     max drained (s)")
    for run in runs:
        print(run.row())
    return int(runs[0].lost > 0)


if __name__ == "__main__":
    sys.exit(main())
