"""Thousands of dead letters, which AMQP cannot browse: complete, exact, and in two reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.waiting import eventually

from mqcore import Broker, Queue, Settings
from mqcore.spi import STORED, Death, Message, Outgoing, Reason
from mqcore_rabbitmq import browse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(180)
MANY = 2_000


@pytest.fixture(params=[None, "machine"], ids=["classic", "quorum"])
async def broker(request: pytest.FixtureRequest, rabbitmq_url: str) -> AsyncIterator[Broker]:
    async with Broker.connect(
        rabbitmq_url, settings=Settings(), durability=request.param
    ) as broker:
        yield broker


@pytest.fixture
async def other(
    request: pytest.FixtureRequest, rabbitmq_url: str, broker: Broker
) -> AsyncIterator[Broker]:
    """A second process, as far as the broker can tell."""
    async with Broker.connect(rabbitmq_url, settings=Settings()) as other:
        yield other


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each read has held."""
    counts: list[int] = []
    plain = browse.QueueReader.read

    async def counted(self: browse.QueueReader, queue: str, count: int, most: int = 0) -> bool:
        before = len(self.messages)
        more = await plain(self, queue, count, most)
        counts.append(len(self.messages) - before)
        return more

    monkeypatch.setattr(browse.QueueReader, "read", counted)
    return counts


async def filled(broker: Broker, name: str, count: int) -> list[str]:
    """Put dead letters in the dead-letter queue of a queue."""
    await broker.declare(Queue(name, bytes))
    death = Death(
        reason=Reason.REJECTED, queue=name, attempts=1, first_at=1.7e9, last_at=1.7e9, error="no"
    )
    ids = [f"m{number}" for number in range(count)]
    for start in range(0, count, 500):
        letters = [Message(id=it, body=b"body", death=death) for it in ids[start : start + 500]]
        batch = [Outgoing(f"{name}.dlq", letter) for letter in letters]
        assert await broker._session.connection.backend.publish(batch, timeout=60) == [
            STORED
        ] * len(batch)
    return ids


async def come_to(broker: Broker, ready: dict[str, int]) -> None:
    """Wait until the queues hold so many: messages return some moments after a read."""

    async def holds() -> bool:
        return {counts.name: counts.ready for counts in await broker.counts(*ready)} == ready

    await eventually(holds, 20)


async def test_a_list_reads_the_queue_twice_however_long_it_is(
    broker: Broker, name: str, read: list[int]
) -> None:
    ids = await filled(broker, name, MANY)
    read.clear()
    letters = await broker.dead_letters(name).list(limit=MANY + 1)
    assert [letter.id for letter in letters] == ids
    assert sum(read) <= 2 * MANY + 200
    await come_to(broker, {f"{name}.dlq": MANY})


async def test_silence_is_not_the_end(
    broker: Broker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the broker pauses, the reader asks what is left, as often as necessary."""
    ids = await filled(broker, name, MANY)
    monkeypatch.setattr(browse, "_SILENCE", 0.0)
    assert [letter.id for letter in await broker.dead_letters(name).list(limit=MANY + 1)] == ids
    done = await broker.dead_letters(name).redrive(ids=[ids[0], ids[-1], ids[MANY // 2]])
    assert (sorted(done.moved), dict(done.left)) == (sorted([ids[0], ids[-1], ids[MANY // 2]]), {})


async def test_a_redrive_of_some_is_exact_beside_others_who_look(
    broker: Broker, other: Broker, name: str
) -> None:
    ids = await filled(broker, name, MANY)
    some = [ids[0], ids[777], ids[-1]]
    listed, done, seen = await asyncio.gather(
        other.dead_letters(name).list(limit=MANY),
        broker.dead_letters(name).redrive(ids=some),
        other.dead_letters(name).list(limit=MANY),
    )
    assert (sorted(done.moved), dict(done.left)) == (sorted(some), {})
    assert len({letter.id for letter in listed}) >= MANY - len(some)
    assert len({letter.id for letter in seen}) >= MANY - len(some)
    await come_to(broker, {name: len(some), f"{name}.dlq": MANY - len(some)})


async def test_two_redrives_at_once_move_each_letter_once(
    broker: Broker, other: Broker, name: str
) -> None:
    ids = await filled(broker, name, MANY)
    results = await asyncio.gather(
        broker.dead_letters(name).redrive(), other.dead_letters(name).redrive()
    )
    moved: list[Any] = [id for done in results for id in done.moved]
    assert sorted(moved) == sorted(ids)
    assert [dict(done.left) for done in results] == [{}, {}]
    await come_to(broker, {name: MANY, f"{name}.dlq": 0})


async def test_letters_without_an_id_are_redriven(broker: Broker, name: str) -> None:
    """A plain client's get a new id at each delivery."""
    await filled(broker, name, 0)
    async with broker._session.connection.backend._open.topology.rpc.channel() as channel:  # type: ignore[attr-defined]  # RabbitMQ's
        for body in (b"a", b"b", b"b"):
            channel.publish("", f"{name}.dlq", browse.Properties(), body)
        await channel.request(browse.spec.Queue.Declare(queue=f"{name}.dlq", passive=True))
    done = await broker.dead_letters(name).redrive(to=name)
    assert (len(done.moved), dict(done.left)) == (3, {})
    assert sorted(entry.message.body for entry in await broker.peek(name)) == [b"a", b"b", b"b"]
