"""The application of `tests/campaigns/celery_kills.py`, and its sender when it is run."""

from __future__ import annotations

import os
import sys
import time

import redis
from celery import Celery

URL, KEY = os.environ.get("KILLED_URL", "memory://"), os.environ.get("KILLED_KEY", "")
ledger = redis.Redis(port=int(os.environ.get("KILLED_LEDGER", "6379")), db=3)

app = Celery("killed", broker=URL)
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"lease" if URL.startswith("mqcore") else "visibility_timeout": 5},
    task_acks_late=True,
    task_default_queue=KEY,
    task_ignore_result=True,
    task_reject_on_worker_lost=True,
)


@app.task
def work(name: str) -> None:
    """Take a moment, and write down that it began and ended."""
    ledger.sadd(f"{KEY}:started", name)
    time.sleep(0.15)
    ledger.hset(f"{KEY}:at", name, str(time.time()))
    ledger.hincrby(f"{KEY}:done", name)


if __name__ == "__main__":
    for line in sys.stdin:
        app.send_task("support.celery_killed.work", [line.strip()], queue=KEY)
        sys.stdout.write(line)  # its publish was confirmed
        sys.stdout.flush()
