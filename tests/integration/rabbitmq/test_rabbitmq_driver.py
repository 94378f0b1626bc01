"""What only this driver has to show: its registry, its bands, its channels, on a real server."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from pika import spec
from support.waiting import eventually

from mqcore.spi import (
    STORED,
    Ack,
    Binding,
    Durability,
    ErrorKind,
    Failed,
    Message,
    Outgoing,
    QueueSpec,
    Release,
    Route,
    new_id,
)
from mqcore_rabbitmq import RabbitBackend, RabbitOptions, registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from mqcore.contract.brokers import Server

    Make = Callable[..., Awaitable[RabbitBackend]]

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
async def make(rabbitmq_url: str) -> AsyncIterator[Make]:
    """A function that opens another instance."""
    async with AsyncExitStack() as stack:

        async def opened(**options: object) -> RabbitBackend:
            backend = RabbitBackend(rabbitmq_url, RabbitOptions.model_validate(options))
            await backend.open(lambda error: None)
            stack.push_async_callback(backend.close)
            return backend

        yield opened


def out(queue: str | Route, name: str, priority: int = 5, **fields: object) -> Outgoing:
    return Outgoing(queue, Message(id=name, body=b"", priority=priority, **fields))  # type: ignore[arg-type]  # Message's


async def came(backend: RabbitBackend, queue: str, count: int) -> list[str]:
    """Receive and acknowledge."""
    consumer = await backend.subscribe(queue, prefetch=10, lease=30)
    found: list[str] = []
    while len(found) < count and (got := await consumer.receive(10, 5.0)):
        found += [it.message.id for it in got]
        await consumer.settle([Ack(it.receipt) for it in got], timeout=5)
    await consumer.close()
    return found


async def test_an_instance_that_has_declared_nothing_finds_the_bands(make: Make) -> None:
    name = f"t.{new_id()[:8]}"
    one, two, three = [await make(durability="machine") for _ in range(3)]
    await one.declare([QueueSpec(name=name)])
    assert await two.publish([out(name, "low", 0), out(name, "high", 10)], timeout=5) == [STORED, STORED]
    await asyncio.sleep(0.1)
    assert await came(three, name, 2) == ["high", "low"]
    await one.delete(name)


async def test_a_connection_that_asks_for_less_takes_a_quorum_queue_as_it_is(make: Make) -> None:
    name = f"t.{new_id()[:8]}"
    strict, easy = await make(durability="machine"), await make()
    await strict.declare([QueueSpec(name=name, durability=Durability.MACHINE)])
    await easy.declare([QueueSpec(name=name)])
    assert await easy.publish([out(name, "a", 9)], timeout=5) == [STORED]
    assert await came(strict, name, 1) == ["a"]
    await easy.delete(name)


async def test_a_queue_that_was_deleted_without_us_is_declared_anew(make: Make, rabbitmq_url: str) -> None:
    name = f"t.{new_id()[:8]}"
    one, two = await make(), await make()
    await one.declare([QueueSpec(name=name, ttl=5.0)])
    async with two._open.admin.channel() as channel:
        channel.raw.queue_delete(name)
        await channel.give_all_back()
    (outcome,) = await one.publish([out(name, "a")], timeout=5)
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.NOT_FOUND
    await two.declare([QueueSpec(name=name, ttl=6.0)])
    assert await one.publish([out(name, "a")], timeout=5) == [STORED]
    await one.delete(name)


async def test_a_long_registry_is_made_shorter_and_says_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MANY", 10)
    one, names = await make(), [f"t.{new_id()[:8]}" for _ in range(12)]
    for name in names:
        await one.declare([QueueSpec(name=name)])
    await one.delete(names[0])
    for _ in range(2):  # the first look leaves it shorter
        other = await make()
        assert {counts.name for counts in await other.count()} & set(names) == set(names[1:])
    async with one._open.admin.channel() as channel:
        answer = await channel.ask(spec.Queue.Declare(queue="mq.registry", passive=True))
    assert answer.message_count <= 10
    for name in names[1:]:
        await one.delete(name)


async def test_many_may_write_and_read_the_registry_at_once(make: Make) -> None:
    backends = [await make() for _ in range(6)]
    names = [f"t.{new_id()[:8]}" for _ in backends]
    await asyncio.gather(*[it.declare([QueueSpec(name=name)]) for it, name in zip(backends, names, strict=True)])
    for seen in await asyncio.gather(*[it.count() for it in backends]):
        assert {counts.name for counts in seen} >= set(names)
    for name in names:
        await backends[0].delete(name)


async def test_the_registry_of_a_broker_that_is_killed_at_once_is_whole(
    make: Make, broker_server: Callable[[str], Server]
) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])
    await asyncio.to_thread(broker_server("rabbitmq").restart)
    other = await make()
    assert name in {counts.name for counts in await other.count()}
    await other.delete(name)


async def test_headers_that_brokers_act_upon_are_the_users_own(make: Make) -> None:
    """As text, CC and BCC close the channel and make all that is under way on it unknown."""
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])
    headers = {"CC": "somebody", "BCC": "else", "plain": "text"}
    assert await one.publish([out(name, "a", headers=headers), out(name, "b")], timeout=5) == [STORED, STORED]
    consumer = await one.subscribe(name, prefetch=1, lease=30)
    (delivery,) = await consumer.receive(1, 5.0)
    assert dict(delivery.message.headers) == headers
    await one.delete(name)


async def test_headers_named_cc_route_as_well(make: Make) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])
    await one.bind([Binding(router=f"{name}.r", kind="headers", queue=name, headers=(("CC", "x"),))])
    outcomes = await one.publish(
        [out(Route(f"{name}.r"), "a", headers={"CC": "x"}), out(Route(f"{name}.r"), "b", headers={"CC": "y"})],
        timeout=5,
    )
    assert outcomes[0] == STORED
    assert isinstance(outcomes[1], Failed)
    assert await came(one, name, 1) == ["a"]
    await one.delete(name)


async def test_a_missing_router_harms_nobody_beside_it(make: Make) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])
    await one.bind([Binding(router=f"{name}.r", kind="fanout", queue=name)])
    batch = [
        out(Route(f"{name}.r"), "a"),
        out(Route(f"{name}.none"), "b"),
        out(name, "c"),
        out(Route(f"{name}.r"), "d"),
    ]
    a, b, c, d = await one.publish(batch, timeout=5)
    assert (a, c, d) == (STORED, STORED, STORED)
    assert isinstance(b, Failed)
    assert b.kind is ErrorKind.NOT_FOUND
    assert sorted(await came(one, name, 3)) == ["a", "c", "d"]
    await one.delete(name)


async def test_a_full_queue_takes_back_what_is_released(make: Make) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name, max_length=1)])
    assert await one.publish([out(name, "a")], timeout=5) == [STORED]
    consumer = await one.subscribe(name, prefetch=1, lease=30)
    (held,) = await consumer.receive(1, 5.0)
    assert await one.publish([out(name, "b")], timeout=5) == [STORED]
    await consumer.settle([Release(held.receipt)], timeout=5)
    seen = {}
    for _ in range(2):
        (delivery,) = await consumer.receive(1, 5.0)
        seen[delivery.message.id] = (delivery.redelivered, delivery.doubtful)
        await consumer.settle([Ack(delivery.receipt)], timeout=5)
    assert seen == {"b": (False, False), "a": (True, False)}
    await one.delete(name)


@pytest.mark.timeout(60)
async def test_a_silent_broker_is_noticed_while_nobody_asks_it_anything(
    broker_server: Callable[[str], Server],
) -> None:
    server, lost = broker_server("rabbitmq"), list[Exception]()
    backend = RabbitBackend(server.url, RabbitOptions())
    await backend.open(lost.append)
    await asyncio.to_thread(server.pause)
    try:

        async def noticed() -> bool:
            return bool(lost)

        await eventually(noticed, 15.0)
        assert backend.classify(lost[0]) is ErrorKind.TRANSIENT
        async with asyncio.timeout(2.5):
            await backend.close()
    finally:
        await asyncio.to_thread(server.resume)
    assert len(lost) == 1
