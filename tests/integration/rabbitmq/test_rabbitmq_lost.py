"""A delayed message without a queue or a level is parked and blocks no other (G1, G7)."""

from __future__ import annotations

import asyncio

import pytest
from pika import spec
from support.waiting import eventually

from mqcore import Broker, Queue
from mqcore.messages.message import new_id
from mqcore.spi import STORED, Message, Outgoing, QueueSpec
from mqcore_rabbitmq import RabbitBackend, RabbitOptions

pytestmark = pytest.mark.timeout(90)
LOST = "mq.lost"
LOOKS = 25
"""More than the 20 deliveries after which a quorum queue of 4.0 throws a message away."""
ON_THEIR_WAY = 100


async def remove(backend: RabbitBackend, queue: str) -> None:
    """Delete a queue as an operator would, with a client that knows nothing of mqcore."""
    await backend._open.topology.rpc.run(spec.Queue.Delete(queue=queue))


async def test_what_found_its_queue_gone_is_a_dead_letter_that_can_be_sent_back(
    rabbitmq_url: str,
) -> None:
    gone = Queue(f"gone.{new_id()[:12]}", str)
    async with Broker.connect(rabbitmq_url) as broker:
        await broker.declare(gone)
        receipt = await broker.publish(
            gone, "late", delay=0.5, ttl=3600, headers={"tenant": "north"}
        )
        await broker.delete(gone)
        letters = broker.dead_letters(LOST)

        async def parked() -> bool:
            return any(counts.name == LOST and counts.ready for counts in await broker.counts())

        await eventually(parked, 20)
        for _ in range(LOOKS):
            (letter,) = await letters.list(ids=[receipt.id])
        found = (
            letter.reason,
            letter.queue,
            letter.attempts,
            letter.body,
            letter.headers["tenant"],
        )
        assert found == ("unroutable", gone.name, 0, b"late", "north")
        assert "did not exist when the delay ended" in letter.error
        await broker.declare(gone)
        assert (await letters.redrive(ids=[receipt.id])).moved == (receipt.id,)
        async with broker.consume(gone) as consumer:
            delivery = await consumer.get(timeout=10)
            assert delivery is not None
            assert (delivery.value, delivery.attempt) == ("late", 1)
            await delivery.ack()
        assert await letters.list(ids=[receipt.id]) == []
        assert LOST not in {counts.name for counts in await broker.counts()}  # while it is empty
        await broker.delete(gone)


async def test_a_deleted_level_blocks_no_other_message(backend: RabbitBackend) -> None:
    name = f"t.{new_id()[:12]}"
    await backend.declare([QueueSpec(name=name)])

    def delayed(number: int, delay: float) -> Outgoing:
        return Outgoing(name, Message(id=f"{name}-{number}", body=b"x"), delay)

    assert await backend.publish([delayed(0, 0.1)], timeout=10) == [STORED]
    await remove(
        backend, "mq.delay.high.02" if await has_high(backend) else "mq.delay.02"
    )  # 0.25 s: they go by it
    crossing = [delayed(number, 1.25) for number in range(1, ON_THEIR_WAY)]
    assert await backend.publish(crossing, timeout=10) == [STORED] * len(crossing)
    assert await backend.publish([delayed(ON_THEIR_WAY, 1.0)], timeout=10) == [STORED]
    consumer = await backend.subscribe(name, prefetch=ON_THEIR_WAY, lease=30)
    came: list[str] = []
    async with asyncio.timeout(10):
        while f"{name}-{ON_THEIR_WAY}" not in came:
            came += [it.message.id for it in await consumer.receive(ON_THEIR_WAY, 1)]
    assert set(came) == {f"{name}-0", f"{name}-{ON_THEIR_WAY}"}

    async def all_parked() -> bool:
        (counts,) = await backend.count([LOST])
        return counts.ready >= len(crossing)

    await eventually(all_parked, 20)
    other = RabbitBackend(
        f"{backend.url}", RabbitOptions()
    )  # the next instance declares the ladder again
    await other.open(lambda _: None)
    assert await other.publish([delayed(ON_THEIR_WAY + 1, 1.25)], timeout=10) == [STORED]
    async with asyncio.timeout(10):
        while f"{name}-{ON_THEIR_WAY + 1}" not in came:
            came += [it.message.id for it in await consumer.receive(ON_THEIR_WAY, 1)]
    await other.close()
    await consumer.close()
    await backend.purge(LOST)
    await backend.delete(name)


async def has_high(backend: RabbitBackend) -> bool:
    return bool(await backend._open.topology.rpc.counts(["mq.delay.high.02"]))


async def test_the_longest_name_can_be_delayed_to_and_has_a_quarantine(rabbitmq_url: str) -> None:
    longest = Queue(
        new_id().ljust(196, "q"), str
    )  # with `.dlq` the 200 characters that a name may have
    async with Broker.connect(rabbitmq_url) as broker:
        await broker.declare(longest)
        await broker.publish(longest, "late", delay=0.1)
        async with broker.consume(longest) as consumer:
            delivery = await consumer.get(timeout=10)
            assert delivery is not None
            await delivery.ack()
        await broker.delete(longest)
