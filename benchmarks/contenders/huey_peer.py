"""huey with its SqliteHuey, in the same folder, with its defaults: worker threads that poll."""

import threading
import time
from pathlib import Path
from typing import Any

from common import PAYLOAD, THREADS, Job, run
from huey import SqliteHuey
from huey.consumer import Consumer


def _task(job: Job) -> tuple[SqliteHuey, Any, threading.Event]:
    """Return huey, a task that counts, and an event for the last one."""
    folder = Path(job.url.removeprefix("sqlite://")).parent
    huey = SqliteHuey(job.queue, filename=str(folder / "huey.db"))
    ended = threading.Event()

    @huey.task()
    def handle(payload: dict[str, Any]) -> None:
        if "at" in payload:
            job.latencies.append(time.perf_counter() - payload["at"])
        if job.count_one():
            ended.set()

    return huey, handle, ended


def publish(job: Job) -> None:
    """Call the task, which stores it; huey has no other way."""
    _, handle, _ = _task(job)
    handle(PAYLOAD)
    job.start()
    for _ in range(job.count):
        handle(PAYLOAD)
    job.stop()


def drain(job: Job) -> None:
    """Run its consumer."""
    huey, handle, ended = _task(job)
    for _ in range(job.count):
        handle(PAYLOAD)
    consumer = Consumer(huey, workers=THREADS, periodic=False)
    job.start()
    consumer.start()
    ended.wait()


def latency(job: Job) -> None:
    """From call to task, one at a time on an idle system."""
    huey, handle, _ = _task(job)
    Consumer(huey, workers=THREADS, periodic=False).start()
    time.sleep(1)
    job.start()
    for number in range(job.count):
        handle({**PAYLOAD, "at": time.perf_counter()})
        while job.handled <= number:
            time.sleep(0.001)
        time.sleep(0.005)
    job.stop()


SCENARIOS = {
    "one by one": publish,
    "bulk": publish,
    "drain, blocking": drain,
    "latency": latency,
}

if __name__ == "__main__":
    run(SCENARIOS)
