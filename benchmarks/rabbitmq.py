"""Publish and drain on RabbitMQ at the seam, beside plain pika, in the same run.

    python benchmarks/rabbitmq.py amqp://guest:guest@127.0.0.1:5672/ [messages]

Plain pika publishes without ids and without asking what became of a message, and drains with one
acknowledgement each 200: what no safe queue can beat. Figures are medians of interleaved rounds
inside one run; compare ratios, not absolute figures of two machines. CPU is the client's, in
milliseconds for a thousand messages.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import pika

from mqcore.spi import STORED, Ack, Message, Move, Outgoing, QueueSpec, new_id
from mqcore_rabbitmq import RabbitBackend, RabbitOptions
from mqcore_rabbitmq.options import parameters

BODY = b"x" * 200
ROUNDS = 3
Timed = tuple[float, float]


def options(url: str) -> RabbitOptions:
    """Read the one option that matters here."""
    return RabbitOptions.model_validate(
        {"durability": "machine"} if "durability=machine" in url else {}
    )


class Plain:
    """Plain pika, blocking, on one durable queue."""

    def __init__(self, url: str, queue: str, *, quorum: bool) -> None:
        self.queue = queue
        self.connection = pika.BlockingConnection(
            parameters(url.partition("?")[0], RabbitOptions())[0]
        )
        self.channel = self.connection.channel()
        kind = {"x-queue-type": "quorum" if quorum else "classic"}
        self.channel.queue_declare(queue, durable=True, arguments=kind)

    def publish(self, count: int) -> None:
        """Send, unconfirmed, and make sure that the broker has read it all."""
        properties = pika.BasicProperties(delivery_mode=2)
        for _ in range(count):
            self.channel.basic_publish("", self.queue, BODY, properties)
        self.channel.queue_declare(self.queue, passive=True)

    def drain(self, count: int) -> None:
        """Consume, with an acknowledgement each 200."""
        self.channel.basic_qos(prefetch_count=1000)
        for number, (method, _, _) in enumerate(self.channel.consume(self.queue), 1):
            if number % 200 == 0 or number == count:
                self.channel.basic_ack(method.delivery_tag, multiple=True)
            if number == count:
                break
        self.channel.cancel()

    def close(self) -> None:
        """Leave nothing behind."""
        self.channel.queue_delete(self.queue)
        self.connection.close()


class Ours:
    """The driver, at the seam."""

    def __init__(self, backend: RabbitBackend, queue: str) -> None:
        self.backend, self.queue = backend, queue

    def out(self) -> Outgoing:
        """Make a message."""
        return Outgoing(self.queue, Message(id=new_id(), body=BODY, published_at=time.time()))

    async def one_by_one(self, count: int) -> None:
        """Publish, and wait for each confirm."""
        for _ in range(count):
            assert await self.backend.publish([self.out()], timeout=10) == [STORED]

    async def many(self, count: int) -> None:
        """Publish batches of 500, two at once."""

        async def batches(number: int) -> None:
            for _ in range(number):
                outcomes = await self.backend.publish([self.out() for _ in range(500)], timeout=30)
                assert outcomes == [STORED] * 500

        half = count // 1000
        await asyncio.gather(batches(half), batches(half))

    async def drain(self, count: int, prefetch: int) -> None:
        """Receive and acknowledge."""
        consumer = await self.backend.subscribe(self.queue, prefetch=prefetch, lease=30)
        left = count
        while left > 0:
            got = await consumer.receive(200, 5.0)
            assert got, f"{left} did not come"
            await consumer.settle([Ack(it.receipt) for it in got], timeout=10)
            left -= len(got)
        await consumer.close()

    async def move(self, count: int) -> None:
        """Move to the queue's own end, 100 at a time."""
        consumer = await self.backend.subscribe(self.queue, prefetch=100, lease=30)
        left = count
        while left > 0:
            got = await consumer.receive(100, 5.0)
            moves = [
                Move(it.receipt, Outgoing(f"{self.queue}.dlq", it.message.moved(self.queue)))
                for it in got
            ]
            await consumer.settle(moves, timeout=10)
            left -= len(got)
        await consumer.close()


async def timed(work: Callable[[], Awaitable[object] | None]) -> Timed:
    """Return seconds and seconds of this process's CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    if (waiting := work()) is not None:
        await waiting
    return time.perf_counter() - began, time.process_time() - cpu


async def rounds(url: str, count: int) -> dict[str, list[tuple[int, Timed]]]:
    """Run every way in each round, one after the other."""
    chosen = options(url)
    backend = RabbitBackend(url.partition("?")[0], chosen)
    await backend.open(lambda error: print("lost:", error))
    ours = Ours(backend, f"bench.{new_id()[:8]}")
    specs = [QueueSpec(name=ours.queue), QueueSpec(name=f"{ours.queue}.dlq", role="dead_letter")]
    await backend.declare(specs)
    plain = Plain(url, f"bench.plain.{new_id()[:8]}", quorum=chosen.quorum)
    few = max(count // 10, 1)
    ways: list[tuple[str, int, Callable[[], Awaitable[object] | None]]] = [
        ("plain pika: publish, unconfirmed", count, lambda: plain.publish(count)),
        ("plain pika: drain, prefetch 1000", count, lambda: plain.drain(count)),
        ("publish one by one", few, lambda: ours.one_by_one(few)),
        ("drain, prefetch 100", few, lambda: ours.drain(few, 100)),
        ("publish many, 500 a batch", count, lambda: ours.many(count)),
        ("drain, prefetch 1000", count, lambda: ours.drain(count, 1000)),
        ("(publish many again)", count, lambda: ours.many(count)),
        ("drain, prefetch 100, all", count, lambda: ours.drain(count, 100)),
        ("(publish few again)", few, lambda: ours.one_by_one(few)),
        ("move, 100 a batch", few, lambda: ours.move(few)),
    ]
    found: dict[str, list[tuple[int, Timed]]] = {}
    for _ in range(ROUNDS):
        for name, number, work in ways:
            found.setdefault(name, []).append((number, await timed(work)))
    for spec in specs:
        await backend.delete(spec.name)
    await backend.close()
    plain.close()
    return found


def main() -> None:
    """Print a line for each way."""
    url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@127.0.0.1:5672/"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000  # noqa: PLR2004 - the second argument
    for name, runs in asyncio.run(rounds(url, count // 1000 * 1000)).items():
        rate = statistics.median(number / took for number, (took, _) in runs)
        cpu = statistics.median(1e6 * spent / number for number, (_, spent) in runs)
        print(f"{name:36} {rate:10,.0f} /s {cpu:8.0f} ms CPU per 1,000")


if __name__ == "__main__":
    main()
