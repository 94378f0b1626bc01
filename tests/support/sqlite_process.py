"""A process that publishes or consumes on one database file: `python … publish|consume URL LOG N`.

A consumer writes the id of each message into its log before it acknowledges it, and ends when
nothing has come for a second.
"""

import asyncio
import sys
from pathlib import Path

from mqcore.spi import DONE, STORED, Ack, Message, Outgoing
from mqcore_sql import SqliteBackend, SqliteOptions

BATCH = 10


async def publish(backend: SqliteBackend, log: Path, number: int) -> None:
    for first in range(0, number, BATCH):
        ids = [f"{log.stem}-{index}" for index in range(first, min(first + BATCH, number))]
        batch = [Outgoing("jobs", Message(id=name, body=b"x")) for name in ids]
        outcomes = await backend.publish(batch, timeout=30)
        assert outcomes == [STORED] * len(batch), outcomes


async def consume(backend: SqliteBackend, log: Path) -> None:
    consumer = await backend.subscribe("jobs", prefetch=BATCH, lease=3)
    with log.open("a") as lines:
        while deliveries := await consumer.receive(BATCH, 5):
            lines.writelines(f"{delivery.message.id}\n" for delivery in deliveries)
            lines.flush()
            acks = [Ack(delivery.receipt) for delivery in deliveries]
            outcomes = await consumer.settle(acks, timeout=30)
            assert set(outcomes) <= {DONE}, outcomes


async def main(role: str, url: str, log: Path, number: int) -> None:
    backend = SqliteBackend(url, SqliteOptions())
    await backend.open(lambda error: sys.exit(f"lost: {error}"))
    if role == "publish":
        await publish(backend, log, number)
    else:
        await consume(backend, log)
    await backend.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
