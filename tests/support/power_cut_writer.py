"""A process that publishes and consumes until it is ended: `python … URL LOG`.

The body of a message is its id. The log has a line for each thing that is known: `published ID` and
`settled ID` after the confirm, `settling ID` before the acknowledgement is sent.
"""

import asyncio
import os
import random
import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.sql_backend import backend_of

from mqcore.spi import DONE, STORED, Ack, Message, Outgoing, QueueSpec


class Writer:
    """One connection, its log, and what it publishes."""

    def __init__(self, url: str, log: str) -> None:
        self.backend = backend_of(url)
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, word: str, names: list[str]) -> None:
        os.write(self.log, "".join(f"{word} {name}\n" for name in names).encode())

    async def publish(self) -> None:
        numbers = count()
        while True:
            names = [f"{next(numbers)}" for _ in range(random.choice((1, 1, 5, 40)))]
            batch = [Outgoing("jobs", Message(id=name, body=name.encode())) for name in names]
            outcomes = await self.backend.publish(batch, timeout=60)
            assert outcomes == [STORED] * len(batch), outcomes
            self.write("published", names)

    async def consume(self) -> None:
        consumer = await self.backend.subscribe("jobs", prefetch=20, lease=30)
        while True:
            deliveries = await consumer.receive(random.choice((1, 5, 20)), 5)
            names = [delivery.message.id for delivery in deliveries]
            self.write("settling", names)
            acks = [Ack(delivery.receipt) for delivery in deliveries]
            outcomes = await consumer.settle(acks, timeout=60)
            assert set(outcomes) <= {DONE}, outcomes
            self.write("settled", names)

    async def run(self) -> None:
        await self.backend.open(lambda error: sys.exit(f"lost: {error}"))
        await self.backend.declare([QueueSpec(name="jobs")])
        await asyncio.gather(self.publish(), self.consume())


if __name__ == "__main__":
    asyncio.run(Writer(sys.argv[1], sys.argv[2]).run())
