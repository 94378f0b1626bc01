"""An application whose handlers run in processes of their own; imported there by its name."""

import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mqcore import App, Postpone, Profile, Queue, Reject, Retry, RetryPolicy, fixed

app = App("processes")
TWICE = RetryPolicy(2, fixed(0))


class Point(BaseModel):
    x: int


jobs = Queue("jobs", str)
points = Queue("points", Point)


@app.consumer(jobs, process=True, concurrency=1, retry=TWICE, timeout=30)
def work(job: str, ctx: Any) -> str:
    """Do what the job says."""
    word, _, rest = job.partition(" ")
    if word == "exit":
        os._exit(int(rest))
    if word == "segfault":
        ctypes.string_at(0)
    if word == "system-exit":
        sys.exit(3)
    if word == "interrupt":
        raise KeyboardInterrupt
    if word == "hang":
        time.sleep(60)
    if word == "raise":
        raise ValueError(rest)
    if word == "reject":
        raise Reject(rest)
    _ask_for_later(word, rest, ctx.attempt)
    if word == "publish":
        ctx.publish("jobs", "more")
    return f"{rest} by {os.getpid()} attempt {ctx.attempt} of {ctx.id}"


def _ask_for_later(word: str, rest: str, attempt: int) -> None:
    """Raise Retry at the first attempt, or Postpone at the first run of those in a file."""
    if word == "retry" and attempt == 1:
        raise Retry(delay=5)
    if word != "postpone":
        return
    began = Path(rest)
    before = began.read_text() if began.exists() else ""
    began.write_text(f"{before}{attempt}")
    if not before:
        raise Postpone(0.05)


@app.consumer(points, process=True, concurrency=2, retry=TWICE)
def double(point: Point) -> Point:
    """Answer with twice as much."""
    return Point(x=point.x * 2)


returning = Queue("returning", int)


@app.consumer(returning, process=True, concurrency=1, retry=TWICE)
def give(number: int) -> Point:
    """Return a model."""
    return Point(x=number)


mixed_app = App("mixed")
mixed = Queue("mixed", str)
PROFILES = {
    "thread": Profile(mode="thread"),
    "process": Profile(mode="process"),
    "short process": Profile(mode="process", timeout=0.3),
}


def where(job: str) -> list[int]:
    """Return the process and the thread that it runs in."""
    if job == "exit":
        os._exit(3)
    if job == "hang":
        time.sleep(60)
    return [os.getpid(), threading.get_ident()]


def isolated(job: str) -> list[int]:
    """Run in a process of its own."""
    return where(job)


@mixed_app.consumer(
    mixed,
    retry=RetryPolicy(1),
    profile=lambda message: PROFILES.get(message.headers["profile"]),
    modes={"thread": where, "process": isolated},
)
async def anywhere(job: str) -> list[int]:
    """Run in the event loop."""
    return where(job)
