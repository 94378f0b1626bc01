"""A worker with `once=` that is killed at a chosen moment: `python … BROKER DATABASE KIND MOMENT`.

`KIND` is `async` or `blocking` for a handler with a session of DATABASE, `batch` for one that gets
two messages in one, and `ids` for one that writes by itself while the broker records ids. `MOMENT`
is `handler`, `commit` (the id is inserted, and not committed), `settle` (committed, and not
acknowledged), or `never`. It writes the name of the event that ends its message, and ends.
"""

import asyncio
import os
import signal
import sys
from typing import Any

from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from mqcore import App, Queue, Received, Worker
from mqcore_sql import SqlInbox

BROKER, DATABASE, KIND, MOMENT = sys.argv[1:]
INSERT = text("INSERT INTO bookings VALUES (:n)")
engine = create_engine(DATABASE)
async_engine = create_async_engine(DATABASE.replace("sqlite://", "sqlite+aiosqlite://"))
inbox = SqlInbox(async_sessionmaker(async_engine), sessionmaker(engine))
app = App("bank", inbox=None if KIND == "ids" else inbox)
jobs = Queue("jobs", int)
options: Any = {"once": "1h", "name": "book", "lease": 2}
has_written = False


def die_at(moment: str) -> None:
    if moment == MOMENT:
        os.kill(os.getpid(), signal.SIGKILL)


def written() -> None:
    global has_written  # noqa: PLW0603 - one message is handled here
    has_written = True
    die_at("handler")


if KIND == "async":

    @app.consumer(jobs, **options)
    async def book(number: int, ctx: Any) -> None:
        await ctx.session.execute(INSERT, {"n": number})
        written()

elif KIND == "blocking":

    @app.consumer(jobs, **options)
    def book_blocking(number: int, ctx: Any) -> None:
        ctx.session.execute(INSERT, {"n": number})
        written()

elif KIND == "batch":

    @app.consumer(jobs, **options, batch=2, linger=5, concurrency=1)
    async def book_batch(items: list[Received[int]]) -> None:
        for item in items:
            await item.session.execute(INSERT, {"n": item.value})
        written()

else:

    @app.consumer(jobs, **options)
    def book_alone(number: int) -> None:
        with engine.begin() as connection:
            connection.execute(INSERT, {"n": number})
        written()


@event.listens_for(Session, "before_commit")
def committing(_: Session) -> None:
    if has_written:
        die_at("commit")


async def main() -> None:
    ended = asyncio.Event()

    def on_event(found: Any) -> None:
        if found.name in {"message.done", "message.skipped"}:
            die_at("settle")  # it is decided, and sent when this returns
            sys.stdout.write(f"{found.name}\n")
            sys.stdout.flush()
            ended.set()

    async with app.connect(BROKER) as broker:
        broker.events.listen(on_event)
        async with Worker(app, broker):
            await ended.wait()


asyncio.run(main())
