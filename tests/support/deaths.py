"""An app whose worker processes die, and a way to run many of them on a real broker.

Each word that a handler writes goes to one log file, appended in one system call, so that several
processes can write it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from support.logs import whole_lines

from mqcore import App, Context, Queue, RetryPolicy, fixed

NAME, LOG = os.environ.get("DEATHS_QUEUE", "deaths"), os.environ.get("DEATHS_LOG", os.devnull)
LEASE = 5.0
SUPPORT = Path(__file__).parents[1]

deaths = Queue(NAME, str, retry=RetryPolicy(max_attempts=3, backoff=fixed(0)))
app = App("deaths")


def write(*words: object) -> None:
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, (" ".join(map(str, words)) + "\n").encode())
    os.close(log)


@app.consumer(
    deaths,
    concurrency=int(os.environ.get("DEATHS_CONCURRENCY", "10")),
    prefetch=int(os.environ.get("DEATHS_PREFETCH", "50")),
    lease=LEASE,
)
async def die_or_do(what: str, ctx: Context) -> None:
    """`poison` kills the process, `sleep` outlives every test, `for-0.5-…` takes half a second.

    All else takes some milliseconds.
    """
    write("started", time.time(), what, ctx.attempt, os.getpid())
    if what.startswith("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    takes = float(what.split("-")[1]) if what.startswith("for-") else 0.01
    await asyncio.sleep(3600 if what == "sleep" else takes)
    write("done", time.time(), what, ctx.attempt, os.getpid())


class Workers:
    """Worker processes of this app on one broker, and their log; the block ends them all."""

    def __init__(self, url: str, queue: str, folder: Path, **settings: int) -> None:
        self.log = folder / "log"
        self.log.touch()
        self._errors = folder / "stderr"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MQCORE_")},
            "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")]),
            "MQCORE_URL": url,
            "DEATHS_QUEUE": queue,
            "DEATHS_LOG": str(self.log),
            **{f"DEATHS_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, number: int = 1) -> None:
        """Start so many more."""
        with self._errors.open("ab") as errors:
            for _ in range(number):
                command = [sys.executable, "-m", "mqcore", "worker", "support.deaths:app"]
                self.running.append(subprocess.Popen(command, env=self._environment, stderr=errors))

    def kill(self) -> None:
        """End all of them with `kill -9`, at one moment."""
        for process in self.running:
            process.kill()
        for process in self.running:
            process.wait(10)
        self.running.clear()

    def kill_one(self, number: int) -> int:
        """End one with `kill -9`; its process id."""
        process = self.running.pop(number)
        process.kill()
        process.wait(10)
        return process.pid

    def at_work(self) -> list[int]:
        """Return the places of those that have started a message."""
        pids = {int(line.rsplit(" ", 1)[1]) for line in whole_lines(self.log)}
        return [place for place, process in enumerate(self.running) if process.pid in pids]

    def reap(self) -> int:
        """Forget those that died by themselves; how many."""
        dead = [process for process in self.running if process.poll() is not None]
        self.running = [process for process in self.running if process not in dead]
        return len(dead)

    def lines(self, word: str) -> list[tuple[float, str, int]]:
        """Time, payload and attempt of each line that begins with this word."""
        rows = [line.split(" ") for line in whole_lines(self.log)]
        return [(float(row[1]), row[2], int(row[3])) for row in rows if row[0] == word]

    def did(self) -> set[str]:
        """What was handled to its end."""
        return {what for _, what, _ in self.lines("done")}

    def output(self) -> str:
        """What the processes said on standard error, for the failure's text."""
        return self._errors.read_text()[-3000:] if self._errors.exists() else ""
