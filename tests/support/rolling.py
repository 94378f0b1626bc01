"""The app of the rolling restarts: each start, end and event is a line of a shared log."""

from __future__ import annotations

import asyncio
import os
import time

from mqcore import App, Context, Queue, Reject, RetryPolicy, fixed
from mqcore.events import Event
from mqcore.middleware import Middleware

LOG = os.environ.get("ROLLING_LOG", os.devnull)
EVENTS = {
    "consumer.started",
    "lease.lost",
    "message.quarantined",
    "settle.failed",
    "settle.stale",
}

rolling = Queue(
    os.environ.get("ROLLING_QUEUE", "rolling"), str, retry=RetryPolicy(backoff=fixed(0))
)


def write(*words: object) -> None:
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(
        log, (" ".join(map(str, (round(time.time(), 3), os.getpid(), *words))) + "\n").encode()
    )
    os.close(log)


class Watch(Middleware):
    def on_event(self, event: Event) -> None:
        if event.name in EVENTS:
            error = str(event.fields.get("error", ""))[:80].replace(" ", "_")
            write("event", event.name, event.message_id or "-", error or "-")


app = App("rolling", middleware=[Watch()])


@app.consumer(rolling, concurrency=20, prefetch=40, lease=10)
async def handle(what: str, ctx: Context) -> None:
    """`reject-N` is refused, all else takes some milliseconds."""
    write("started", what, ctx.attempt, int(ctx.redelivered))
    await asyncio.sleep(0.02)

    if what.startswith("reject"):
        raise Reject("as asked")

    write("done", what, ctx.attempt, int(ctx.redelivered))
