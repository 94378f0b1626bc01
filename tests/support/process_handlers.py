"""An application whose handlers run in processes of their own; imported there by its name."""

import ctypes
import os
import sys
import time
from typing import Any

from pydantic import BaseModel

from mqcore import App, Queue, Reject, Retry, RetryPolicy, fixed

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
    if word == "retry" and ctx.attempt == 1:
        raise Retry(delay=5)
    if word == "publish":
        ctx.publish("jobs", "more")
    return f"{rest} by {os.getpid()} attempt {ctx.attempt} of {ctx.id}"


@app.consumer(points, process=True, concurrency=2, retry=TWICE)
def double(point: Point) -> Point:
    """Answer with twice as much."""
    return Point(x=point.x * 2)
