"""One process of the outbox campaign: a writer of transactions, or a worker.

    outbox_process.py writer CONFIG NAME    outbox_process.py worker CONFIG NAME

CONFIG is a JSON file: the broker's URL, the outbox, the database, the folder, and the load. What a
writer commits is in the table `written` of the database. What a worker handles is in its log.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from mqcore import App, Broker, Context, MqcoreError, Queue, Settings, Worker

placed = Queue("placed", dict[str, int])


class Rollback(Exception):
    """Ends a transaction that is to leave nothing."""


@contextmanager
def turn(config: dict[str, Any]) -> Iterator[None]:
    """Take turns with mqcore's own processes on an SQLite file."""
    if not config["lock"]:
        yield
        return
    lock = os.open(config["lock"], os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


async def write(config: dict[str, Any], name: str) -> None:
    """Run this writer's share of the transactions, from where an earlier process was killed."""
    log = Path(config["folder"]) / f"{name}.begun"
    begun = len(log.read_bytes()) if log.exists() else 0
    engine = create_engine(config["database"])
    chance = random.Random(f"{name} {begun}")
    options = {"settings": Settings(), "outbox": config["outbox"]}

    async with Broker.connect(config["url"], **options) as broker:
        with log.open("ab", buffering=0) as file:
            for _ in range(begun, config["transactions"]):
                file.write(b".")
                with turn(config), suppress(Rollback, MqcoreError):
                    await transact(broker, engine, chance)
                await asyncio.sleep(0)
    (Path(config["folder"]) / f"{name}.complete").touch()


async def transact(broker: Broker, engine: Any, chance: random.Random) -> None:
    """Write rows and publish their numbers in one transaction; a third is rolled back."""
    with Session(engine) as session, session.begin():
        for place in range(chance.randint(1, 3)):
            receipt = await broker.publish(placed, {"place": place}, session=session)
            session.execute(text("INSERT INTO written (id) VALUES (:id)"), {"id": receipt.id})
        if chance.random() < 1 / 3:
            raise Rollback


async def work(config: dict[str, Any], name: str) -> None:
    """Handle messages until a signal; each run is one line of the log."""
    log = os.open(
        Path(config["folder"]) / f"{name}.handled", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666
    )
    app = App("campaign")

    @app.consumer(placed, concurrency=20)
    async def handle(_: dict[str, int], ctx: Context) -> None:
        os.write(log, f"{ctx.id}\n".encode())

    connecting = app.connect(config["url"], settings=Settings(), outbox=config["outbox"])
    async with connecting as broker:
        await Worker(app, broker).run()


if __name__ == "__main__":
    role, path, own = sys.argv[1:4]
    loaded = json.loads(Path(path).read_text())
    asyncio.run((write if role == "writer" else work)(loaded, own))
