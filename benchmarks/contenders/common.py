"""What all contenders share: the payload, the stopwatch, and the way a result is reported.

Each contender is a script that runs one scenario in a process of its own and prints one line of
JSON:

    python benchmarks/contenders/kombu_peer.py SCENARIO URL QUEUE COUNT
"""

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

PAYLOAD = {"user": 12345, "text": "x" * 170}
BODY = json.dumps(PAYLOAD, separators=(",", ":")).encode()
PREFETCH = 200
THREADS = 8
"""Threads of every contender that runs blocking handlers."""
WINDOW = 500
"""Messages that are on their way at once where a contender publishes in bulk."""


class Job:
    """One scenario of one contender: where it runs, how many messages, and its stopwatch."""

    def __init__(self, url: str, queue: str, count: int) -> None:
        self.url, self.queue, self.count = url, queue, count
        self.seconds = self.cpu = 0.0
        self.latencies: list[float] = []
        self.handled = 0
        self._began = self._cpu = 0.0

    def start(self) -> None:
        """Start the stopwatch; what was before is set-up."""
        self._cpu, self._began = _cpu(), time.perf_counter()

    def stop(self) -> None:
        """Stop the stopwatch, once."""
        if not self.seconds:
            self.seconds, self.cpu = time.perf_counter() - self._began, _cpu() - self._cpu

    def count_one(self) -> bool:
        """Note one handled message; True when it was the last, which stops the stopwatch."""
        self.handled += 1
        if self.handled == self.count:
            self.stop()
        return self.handled >= self.count

    def report(self) -> str:
        """Return the result as one line of JSON."""
        figures = {
            "seconds": self.seconds,
            "cpu": self.cpu,
            "memory": _memory(),
            "latencies": self.latencies,
        }
        return json.dumps(figures)


Scenario = Callable[[Job], Awaitable[None] | None]


def run(scenarios: Mapping[str, Scenario]) -> None:
    """Run the scenario that the command line names, and print its result."""
    name, url, queue, count = sys.argv[1:]
    job = Job(url, queue, int(count))
    work = scenarios[name]

    async def wait(measuring: Awaitable[None]) -> None:
        await measuring
        end(job)

    if (measuring := work(job)) is not None:
        asyncio.run(wait(measuring))
    end(job)


def end(job: Job) -> None:
    """Print the result and end this process immediately.

    Threads, pools and consumers of some peers do not end by themselves.
    """
    print(job.report(), flush=True)
    os._exit(0)


def _cpu() -> float:
    """Seconds of CPU of this process and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _memory() -> float:
    """The most MiB that this process has had; `ru_maxrss` counts what its parent had, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(peak.split()[1]) / 1024
