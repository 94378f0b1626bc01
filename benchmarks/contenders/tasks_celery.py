"""Tasks of Celery with Redis as broker and result backend, and two processes as workers."""

import os

from celery import Celery, chord
from contenders.task_client import serve

URL = os.environ["BENCH_REDIS"]
app = Celery("tasks_celery", broker=URL, backend=URL)
app.conf.worker_prefetch_multiplier = 50


@app.task(name="add")
def add(x: int, y: int) -> int:
    """Add."""
    return x + y


@app.task(name="total")
def total(numbers: list[int]) -> int:
    """Add many."""
    return sum(numbers)


def work() -> None:
    """Run a worker until it is terminated."""
    app.worker_main(["worker", "--pool=prefork", "--concurrency=2", "--loglevel=ERROR"])


def send_and_read(count: int) -> int:
    """Send tasks, then read their results."""
    results = [add.delay(number, 1) for number in range(count)]
    return sum(result.get(timeout=120) for result in results)


def run_chord(size: int) -> int:
    """Run a chord."""
    found = chord((add.s(number, 1) for number in range(size)), total.s()).delay()
    return int(found.get(timeout=120))


if __name__ == "__main__":
    serve(work, send_and_read, run_chord)
