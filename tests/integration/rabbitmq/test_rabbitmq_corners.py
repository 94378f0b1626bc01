"""Two things at once: a queue deleted while consumed, a close during a settlement."""

from __future__ import annotations

import asyncio

import pytest
from pika import BasicProperties, spec
from support.waiting import eventually

from mqcore import App, Broker, MqcoreError, Queue, Router, Settings, Worker
from mqcore.messages.message import new_id
from mqcore.spi import STALE, STORED, Binding, Message, Move, Outgoing, QueueSpec
from mqcore_rabbitmq import RabbitBackend, RabbitOptions

pytestmark = pytest.mark.timeout(90)
TYPES = pytest.mark.parametrize("query", ["", "?durability=machine"], ids=["classic", "quorum"])


@pytest.fixture
def name() -> str:
    return f"t.{new_id()[:12]}"


def out(queue: str, name: str) -> Outgoing:
    return Outgoing(queue, Message(id=name, body=b"x"))


class Consumer:
    """A worker of another process, as far as its connection goes."""

    def __init__(self, queue: str) -> None:
        self.queue, self.app, self.seen = Queue(queue, int), App("consumer"), set[int]()
        self.app.consumer(self.queue)(self.handle)

    async def handle(self, number: int) -> None:
        self.seen.add(number)

    async def sees_all(self, broker: Broker, numbers: range) -> None:
        """Publish these with all priorities, each until it is stored, and wait for them."""
        for number in numbers:
            async with asyncio.timeout(20):
                while True:
                    try:
                        await broker.publish(self.queue, number, priority=number % 11)
                    except MqcoreError:
                        await asyncio.sleep(0.05)
                    else:
                        break
        await eventually(lambda: self.seen >= set(numbers), 30)


@TYPES
async def test_a_queue_that_is_deleted_under_a_consumer_is_his_again(
    rabbitmq_url: str, name: str, query: str
) -> None:
    url, consumer = f"{rabbitmq_url}{query}", Consumer(name)
    async with consumer.app.connect(url, settings=Settings()) as his, Worker(consumer.app, his):
        async with Broker.connect(url, settings=Settings()) as operator:
            await consumer.sees_all(operator, range(11))
            await operator.delete(name)
            await eventually(lambda: operator_sees(operator, name), 20)
            await consumer.sees_all(operator, range(11, 33))
        async with Broker.connect(url, settings=Settings()) as other:  # and later instances know it
            assert name in {counts.name for counts in await other.counts()}
            await consumer.sees_all(other, range(33, 44))
        await his.delete(name)


async def operator_sees(broker: Broker, name: str) -> bool:
    return name in {counts.name for counts in await broker.counts()}


async def test_a_band_outlives_its_queue_and_sends_to_no_ended_consumer(
    rabbitmq_url: str, name: str
) -> None:
    """An operator deletes one of eleven queues; the consumers of the others must end too."""
    url, consumer = f"{rabbitmq_url}?durability=machine", Consumer(name)
    async with (
        consumer.app.connect(url, settings=Settings()) as broker,
        Worker(consumer.app, broker),
    ):
        await consumer.sees_all(broker, range(11))
        plain = RabbitBackend(rabbitmq_url, RabbitOptions())
        await plain.open(lambda _: None)
        await plain._open.topology.rpc.run(spec.Queue.Delete(queue=name))
        await plain.close()
        await consumer.sees_all(broker, range(11, 44))
    async with Broker.connect(url, settings=Settings()) as operator:
        assert await operator.delete(name, if_empty=True)


async def test_a_temporary_queue_that_comes_back_keeps_its_new_binding(
    rabbitmq_url: str, name: str
) -> None:
    """With quorum queues mqcore routes: who finds a queue gone ends the binding of that owner."""
    url, router = f"{rabbitmq_url}?durability=machine", f"{name}.news"
    kept, passing = Queue(f"{name}.kept", str), Queue(name, str, temporary=True)
    async with Broker.connect(url, settings=Settings()) as sender:
        await sender.declare(news := Router(router, str).bind(kept, "#"))
        for text in ("first", "second"):
            async with Broker.connect(url, settings=Settings()) as owner:
                await owner.declare(Router(router, str).bind(passing, "#"))
                receipt = await sender.publish(news, text, key="a")
                assert set(receipt.queues) == {kept.name, name}
                async with owner.consume(passing) as consumer:
                    received = await asyncio.wait_for(anext(consumer), 60)
                    assert received.value == text
                    await received.ack()

        receipt = await sender.publish(news, "nobody", key="a")
        assert receipt.queues == (kept.name,)
        assert [it.queue for it in await sender.bindings(router)] == [kept.name]
        await sender.delete(kept)


@pytest.mark.parametrize("durability", ["process", "machine"])
async def test_a_temporary_queue_that_its_owner_deletes_leaves_no_binding(
    rabbitmq_url: str, name: str, durability: str
) -> None:
    url = f"{rabbitmq_url}?durability={durability}"
    async with Broker.connect(url, settings=Settings()) as broker:
        passing, news = Queue(name, str, temporary=True), Router(f"{name}.news", str)
        await broker.declare(news.bind(passing, "#"))
        (binding,) = await broker.bindings(news.name)
        await broker.delete(passing)
        assert await broker.bindings(news.name) == []
        await broker.unbind(binding)  # as often as one likes


async def test_headers_of_any_type_break_nothing_while_a_message_moves(
    backend: RabbitBackend, name: str
) -> None:
    """A Move compares with what arrives meanwhile, which may be a plain client's."""
    await backend.declare([QueueSpec(name=name)])
    consumer = await backend.subscribe(name, prefetch=30, lease=30)
    assert await backend.publish([out(name, "a")], timeout=5) == [STORED]
    (a,) = await consumer.receive(10, 5)
    strange = BasicProperties(message_id="a", headers={"mq-hop": ["1"], "mq-lineage": {"x": 1}})
    moving = asyncio.create_task(
        consumer.settle([Move(a.receipt, out(f"{name}.none", "a"))], timeout=5)
    )
    async with backend._open.topology.rpc.channel() as channel:
        while not moving.done():
            channel.publish("", name, strange, b"x")
            await asyncio.sleep(0)
    await moving
    assert await consumer.receive(30, 5)  # and the connection has outlived it
    await consumer.close()
    await backend.delete(name)


async def test_a_close_beside_a_move_tells_no_untruth(backend: RabbitBackend, name: str) -> None:
    await backend.declare([QueueSpec(name=name), QueueSpec(name=f"{name}.to")])
    for turn in range(12):
        assert await backend.publish([out(name, f"m{turn}")], timeout=5) == [STORED]
        consumer = await backend.subscribe(name, prefetch=5, lease=30)
        (delivery,) = await consumer.receive(5, 5)
        move = Move(delivery.receipt, Outgoing(f"{name}.to", delivery.message.moved(name)))
        settling = asyncio.create_task(consumer.settle([move], timeout=5))
        for _ in range(turn):
            await asyncio.sleep(0)
        await consumer.close()
        (settled,) = await settling
        source = 1 if settled == STALE else 0

        async def is_read(source: int = source) -> bool:
            (counts,) = await backend.count([name])
            return counts.ready == source

        await eventually(is_read, 5)
        await backend.purge(name)
    for queue in (name, f"{name}.to"):
        await backend.delete(queue)


async def test_a_cancelled_take_keeps_nothing(backend: RabbitBackend, name: str) -> None:
    await backend.declare([QueueSpec(name=name)])
    await backend.publish([out(name, word) for word in "abc"], timeout=5)
    (first, *_) = await backend.browse(name, 10)
    for turn in range(40):
        taking = asyncio.create_task(backend.take(name, [first.key], 30))
        for _ in range(turn * 2):
            await asyncio.sleep(0.0002)
        taking.cancel()
        (taken,) = await asyncio.gather(taking, return_exceptions=True)
        if isinstance(taken, list) and taken:
            break

        async def all_there() -> bool:
            (counts,) = await backend.count([name])
            return counts.ready == 3

        await eventually(all_there, 5)
    await backend.delete(name)


async def test_a_cancelled_subscribe_leaves_no_channel(backend: RabbitBackend, name: str) -> None:
    await backend.declare([QueueSpec(name=name)])
    channels = backend._open.consuming._connection._channels  # type: ignore[union-attr]  # it is open; pika has no other count
    await (await backend.subscribe(name, prefetch=1, lease=30)).close()
    before = len(channels)
    for turn in range(30):
        subscribing = asyncio.create_task(backend.subscribe(name, prefetch=1, lease=30))
        for _ in range(turn):
            await asyncio.sleep(0.0001)
        subscribing.cancel()
        (made,) = await asyncio.gather(subscribing, return_exceptions=True)
        if not isinstance(made, BaseException):
            await made.close()
    await eventually(lambda: len(channels) <= before, 5)
    await backend.delete(name)


async def test_an_instance_that_is_alone_does_not_make_the_registry_long(
    backend: RabbitBackend, name: str
) -> None:
    await backend.declare([QueueSpec(name=name)])
    binding = Binding(router=f"{name}.events", kind="topic", queue=name, pattern="a.*")
    longest = 0
    for _ in range(120):
        await backend.bind([binding])
        await backend.unbind([binding])
        counts = await backend._open.topology.rpc.counts(["mq.registry"])
        longest = max(longest, counts["mq.registry"].message_count)
    assert longest < 220  # of 240 writes, and what other tests have left
    assert await backend.bindings(binding.router) == []
    await backend.delete(name)
