"""What only this driver has to show: its registry, its bands, its channels, on a real server."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from pika import spec
from pika.exceptions import ChannelClosed, StreamLostError
from support.waiting import eventually

from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    Binding,
    ConnectionLost,
    Durability,
    ErrorKind,
    Failed,
    Message,
    Move,
    Outgoing,
    QueueSpec,
    Release,
    Route,
    TopologyMismatch,
    new_id,
)
from mqcore_rabbitmq import RabbitBackend, RabbitOptions, registry
from mqcore_rabbitmq.browse import QueueReader
from mqcore_rabbitmq.confirms import QUEUES, ConfirmChannels
from mqcore_rabbitmq.ladder import ladder_for
from mqcore_rabbitmq.unsettled import Unsettled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from mqcore.contract.brokers import Server
    from mqcore_rabbitmq.confirms import ConfirmChannel

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
    assert await two.publish([out(name, "low", 0), out(name, "high", 10)], timeout=5) == [
        STORED,
        STORED,
    ]
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


async def test_a_queue_that_another_client_deleted_is_declared_again(
    make: Make, rabbitmq_url: str
) -> None:
    name = f"t.{new_id()[:8]}"
    one, two = await make(), await make()
    await one.declare([QueueSpec(name=name, ttl=5.0)])
    async with two._open.topology.rpc.channel() as channel:
        channel.raw.queue_delete(name)
        await channel.return_all()
    (outcome,) = await one.publish([out(name, "a")], timeout=5)
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.NOT_FOUND
    await two.declare([QueueSpec(name=name, ttl=6.0)])
    assert await one.publish([out(name, "a")], timeout=5) == [STORED]
    await one.delete(name)


async def test_a_long_registry_is_made_shorter_and_says_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_MANY", 10)
    one, names = await make(), [f"t.{new_id()[:8]}" for _ in range(12)]
    for name in names:
        await one.declare([QueueSpec(name=name)])
    await one.delete(names[0])
    for _ in range(2):  # the first read shortens it
        other = await make()
        assert {counts.name for counts in await other.count()} & set(names) == set(names[1:])
    async with one._open.topology.rpc.channel() as channel:
        answer = await channel.request(spec.Queue.Declare(queue="mq.registry", passive=True))
    assert answer.message_count <= 10
    for name in names[1:]:
        await one.delete(name)


async def test_many_may_write_and_read_the_registry_at_once(make: Make) -> None:
    backends = [await make() for _ in range(6)]
    names = [f"t.{new_id()[:8]}" for _ in backends]
    await asyncio.gather(
        *[it.declare([QueueSpec(name=name)]) for it, name in zip(backends, names, strict=True)]
    )
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


async def test_a_deleted_registry_is_declared_again(make: Make) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=f"{name}.before")])
    async with one._open.topology.rpc.channel() as channel:
        await channel.request(spec.Queue.Delete(queue="mq.registry"))
        await channel.request(spec.Exchange.Delete(exchange="mq.registry.news"))
    await one.declare([QueueSpec(name=name)])
    assert name in {counts.name for counts in await (await make()).count()}
    for queue in (name, f"{name}.before"):
        await one.delete(queue)


async def test_a_cancelled_read_of_the_registry_leaves_it_to_others(make: Make) -> None:
    name, one, other = f"t.{new_id()[:8]}", await make(), await make()
    await other.declare([QueueSpec(name=name)])
    for turn in range(8):
        await other.bind([Binding(router=f"{name}.r", kind="topic", queue=name, pattern=f"{turn}")])
        read = asyncio.ensure_future(one.bindings())
        await asyncio.sleep(0.001 * turn)
        read.cancel()
        await asyncio.gather(read, return_exceptions=True)
    async with asyncio.timeout(8):  # less than others wait for the lock
        await other.unbind([Binding(router=f"{name}.r", kind="topic", queue=name, pattern="0")])
    await other.delete(name)


async def test_what_could_not_be_written_down_is_written_before_what_comes_later(
    make: Make,
) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=f"{name}.other")])
    one._open.publishing.blocked = "an alarm"
    await one.declare([QueueSpec(name=name)])
    one._open.publishing.blocked = None
    await one.delete(name)
    await one.delete(f"{name}.other")
    other = await make()
    await other.count()
    assert name not in other._open.topology.registry.picture.queues


async def test_a_registry_of_which_not_all_came_is_read_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, one = [f"t.{new_id()[:8]}" for _ in range(3)], await make()
    for name in names:
        await one.declare([QueueSpec(name=name)])
    whole, calls = QueueReader.read, 0

    async def half(self: QueueReader, queue: str, count: int) -> None:
        nonlocal calls
        calls += 1
        await whole(self, queue, count - 1 if calls <= 4 else count)

    monkeypatch.setattr(QueueReader, "read", half)
    other = await make()
    await other.count()
    assert calls == 3
    assert {counts.name for counts in await other.count()} >= set(names)
    for name in names:
        await one.delete(name)


async def test_reads_of_one_queue_take_turns_and_a_cancelled_one_returns_all(make: Make) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])
    await one.publish([out(name, f"m{number}") for number in range(50)], timeout=5)
    assert [
        len(page) for page in await asyncio.gather(*[one.browse(name, 50) for _ in range(4)])
    ] == [50] * 4
    for turn in range(6):
        read = asyncio.ensure_future(one.browse(name, 50))
        await asyncio.sleep(0.004 * turn)
        read.cancel()
        await asyncio.gather(read, return_exceptions=True)
    async with asyncio.timeout(20):
        assert len(await came(one, name, 50)) == 50
    await one.delete(name)


async def test_who_waits_with_a_full_hand_is_served_once_there_is_room(make: Make) -> None:
    name, one = f"t.{new_id()[:8]}.quarantine", await make()
    await one.declare([QueueSpec(name=name, role="quarantine")])
    await one.publish([out(name, "first"), out(name, "second")], timeout=5)
    consumer = await one.subscribe(name, prefetch=1, lease=30)
    (first,) = await consumer.receive(1, 5)
    waiting = asyncio.ensure_future(consumer.receive(1, 30))
    await asyncio.sleep(0.1)
    await consumer.settle([Ack(first.receipt)], timeout=5)
    async with asyncio.timeout(15):
        assert [it.message.id for it in await waiting] == ["second"]
    await consumer.close()
    await one.delete(name)


async def test_a_message_that_amqp_cannot_carry_fails_alone(make: Make) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])
    batch = [out(name, "a"), out(name, "b", correlation_id="x" * 300), out(name, "c")]
    first, second, third = await one.publish(batch, timeout=5)
    assert (first, third) == (STORED, STORED)
    assert isinstance(second, Failed)
    assert second.kind is ErrorKind.PERMANENT
    assert await one.publish([out(name, "d")], timeout=5) == [STORED]
    (lost,) = await one.publish([out(f"{name}.none", "e")], timeout=5)
    assert isinstance(lost, Failed)
    await one.delete(name)


async def test_a_ladder_that_was_deleted_is_declared_again(make: Make) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])
    soon = [Outgoing(name, Message(id=key, body=b""), 0.1) for key in "abc"]
    assert await one.publish(soon[:1], timeout=10) == [STORED]
    await came(one, name, 1)
    ladder = ladder_for(one._open.server, 5)
    async with one._open.topology.rpc.channel() as channel:
        await channel.request(spec.Queue.Delete(queue=f"{ladder}.01"))
    (lost,) = await one.publish(soon[1:2], timeout=10)
    assert isinstance(lost, Failed)
    assert await one.publish(soon[2:], timeout=10) == [STORED]
    assert await came(one, name, 1) == ["c"]
    await one.delete(name)


@pytest.mark.parametrize("trouble", ["channel", "registry"])
async def test_a_part_that_cannot_be_sent_does_not_hide_that_the_rest_was_stored(
    make: Make, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])
    confirm_channels, known = one._open.confirm_channels, one._open.topology.registry
    confirms = confirm_channels.channel
    lost = ConnectionLost("the channel is closed")

    async def no_ladder(kind: str) -> ConfirmChannel:
        if kind != QUEUES:
            raise lost
        return await confirms(kind)

    async def no_answer() -> None:
        raise lost

    if trouble == "channel":
        monkeypatch.setattr(confirm_channels, "channel", no_ladder)
    else:
        monkeypatch.setattr(known, "refresh", no_answer)
    to = name if trouble == "channel" else Route("a.router", "key")
    first, second = await one.publish(
        [out(name, "a"), Outgoing(to, Message(id="b", body=b""), 0.1)], timeout=10
    )
    assert first == STORED
    assert isinstance(second, Failed)
    assert second.kind is ErrorKind.TRANSIENT
    monkeypatch.undo()
    await one.delete(name)


async def test_a_consumer_finds_the_bands_of_a_queue_that_others_declared_again(
    make: Make,
) -> None:
    name, other = f"t.{new_id()[:8]}", await make(durability="machine")
    one = await make()
    await one.declare([QueueSpec(name=name)])
    await other.delete(name)
    await other.declare([QueueSpec(name=name)])
    await other.publish([out(name, "high", 10), out(name, "low", 0)], timeout=5)
    assert sorted(await came(one, name, 2)) == ["high", "low"]
    await other.delete(name)


async def test_headers_that_brokers_act_upon_are_the_users_own(make: Make) -> None:
    """As text, CC and BCC close the channel and make all that is under way on it unknown."""
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])
    headers = {"CC": "somebody", "BCC": "else", "plain": "text"}
    assert await one.publish([out(name, "a", headers=headers), out(name, "b")], timeout=5) == [
        STORED,
        STORED,
    ]
    consumer = await one.subscribe(name, prefetch=1, lease=30)
    (delivery,) = await consumer.receive(1, 5.0)
    assert dict(delivery.message.headers) == headers
    await one.delete(name)


async def test_headers_named_cc_route_as_well(make: Make) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])
    await one.bind(
        [Binding(router=f"{name}.r", kind="headers", queue=name, headers=(("CC", "x"),))]
    )
    outcomes = await one.publish(
        [
            out(Route(f"{name}.r"), "a", headers={"CC": "x"}),
            out(Route(f"{name}.r"), "b", headers={"CC": "y"}),
        ],
        timeout=5,
    )
    assert outcomes[0] == STORED
    assert isinstance(outcomes[1], Failed)
    assert await came(one, name, 1) == ["a"]
    await one.delete(name)


async def test_a_missing_router_harms_no_other_message(make: Make) -> None:
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
        seen[delivery.message.id] = (delivery.redelivered, delivery.takeovers)
        await consumer.settle([Ack(delivery.receipt)], timeout=5)
    assert seen == {"b": (False, False), "a": (True, False)}
    await one.delete(name)


@pytest.mark.timeout(60)
async def test_a_silent_broker_is_noticed_without_a_request(
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


async def test_a_suspect_that_is_released_comes_back_a_suspect(make: Make) -> None:
    """A takeover still counts after a release by a consumer that did not start the message (G4)."""
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])
    await one.publish([out(name, "a")], timeout=5)
    dying = await make()
    consumer = await dying.subscribe(name, prefetch=1, lease=30)
    (first,) = await consumer.receive(1, 5.0)
    assert (first.redelivered, first.takeovers) == (False, 0)
    await dying.close()
    for _ in range(2):
        consumer = await one.subscribe(name, prefetch=1, lease=30)
        (again,) = await consumer.receive(1, 5.0)
        assert (again.redelivered, again.takeovers) == (True, 1)
        await consumer.settle([Release(again.receipt)], timeout=5)
        await consumer.close()
    await one.delete(name)


async def test_a_successor_waits_until_the_broker_has_read_the_acknowledgement_of_its_source(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies of the successor loses what was only written: two copies (G3)."""
    name, backend, proven, prove = (
        f"t.{new_id()[:8]}",
        await make(),
        asyncio.Event(),
        Unsettled.prove,
    )

    async def prove_later(unsettled: Unsettled) -> None:
        await proven.wait()
        await prove(unsettled)

    monkeypatch.setattr(Unsettled, "prove", prove_later)
    await backend.declare([QueueSpec(name=name)])
    await backend.publish([out(name, "a")], timeout=5)
    consumer = await backend.subscribe(name, prefetch=5, lease=30)
    (source,) = await consumer.receive(1, 5.0)
    move = Move(source.receipt, Outgoing(name, source.message.moved(name)))
    assert await consumer.settle([move], timeout=5) == [DONE], "the answer does not wait for that"
    assert await consumer.receive(1, 0.5) == []
    proven.set()
    (successor,) = await consumer.receive(1, 5.0)
    assert (successor.message.hop, successor.redelivered) == (1, False)
    await backend.delete(name)


async def test_a_registry_with_other_settings_is_an_error_and_without_permission_there_is_none(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    monkeypatch.setattr(registry, "NEWS", name)
    rpc = one._open.topology.rpc
    await rpc.run(spec.Exchange.Declare(exchange=name, type="direct"))
    with pytest.raises(TopologyMismatch, match=rf"'mq\.registry' .* '{name}', .*Delete it"):
        await one.declare([QueueSpec(name=f"{name}.q")])
    monkeypatch.setattr(registry, "NEWS", f"amq.{name}")  # the broker refuses such names
    await one.declare([QueueSpec(name=f"{name}.q")])
    assert await one.publish([out(f"{name}.q", "a")], timeout=5) == [STORED]
    await rpc.run(spec.Exchange.Delete(exchange=name), spec.Queue.Delete(queue=f"{name}.q"))


@pytest.mark.parametrize("ends_well", [True, False])
async def test_a_connection_that_breaks_while_it_opens_is_reported_by_the_exception_alone(
    rabbitmq_url: str,
    monkeypatch: pytest.MonkeyPatch,
    ends_well: bool,  # noqa: FBT001 - a variant
) -> None:
    lost, backend = list[Exception](), RabbitBackend(rabbitmq_url, RabbitOptions())

    async def cut(confirm_channels: ConfirmChannels) -> str | None:
        confirm_channels._link._connection._terminate_stream(StreamLostError("cut"))  # type: ignore[union-attr]  # it is open
        await asyncio.wait([confirm_channels._link._gone])  # type: ignore[list-item]  # as above
        if not ends_well:
            raise StreamLostError("nobody there")
        return None

    monkeypatch.setattr(ConfirmChannels, "alarm", cut)
    with pytest.raises(StreamLostError):
        await backend.open(lost.append)
    assert lost == []
    await backend.close()


async def test_no_reader_misses_news_while_the_registry_is_shortened(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_MANY", 3)
    one, other, names = await make(), await make(), [f"t.{new_id()[:8]}" for _ in range(12)]
    for turn, name in enumerate(names):
        await one.declare([QueueSpec(name=name)])
        assert {counts.name for counts in await other.count()} >= set(names[: turn + 1])
    counts = await one._open.topology.rpc.counts(["mq.registry"])
    assert counts["mq.registry"].message_count <= 5
    for name in names:
        await one.delete(name)


async def test_the_registry_is_read_for_news_of_others_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = registry.Registry._read, list[str]()

    async def counted(self: registry.Registry) -> None:
        reads.append(self._news)
        await read(self)

    one, other, names = await make(), await make(), [f"t.{new_id()[:8]}" for _ in range(3)]
    await one.count()
    await other.count()
    monkeypatch.setattr(registry.Registry, "_read", counted)
    for name in names:
        await one.declare([QueueSpec(name=name)])
    await one.count()
    assert reads == []
    await other.count()
    await other.count()
    assert reads == [other._open.topology.registry._news]
    for name in names:
        await one.delete(name)


async def test_a_source_is_gone_when_the_move_is_done_though_the_connection_breaks_at_once(
    make: Make,
) -> None:
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name), QueueSpec(name=f"{name}.to")])
    for turn in range(5):
        await one.publish([out(name, f"{turn}")], timeout=5)
        dying = await make()
        consumer = await dying.subscribe(name, prefetch=1, lease=30)
        (held,) = await consumer.receive(1, 5.0)
        move = Move(held.receipt, Outgoing(f"{name}.to", held.message.moved(name)))
        assert await consumer.settle([move], timeout=5) == [DONE]
        connection = dying._open.consuming._connection
        assert connection is not None
        connection._unsent.clear()  # a dead process writes nothing
        connection._terminate_stream(StreamLostError("cut"))
    assert sorted(await came(one, f"{name}.to", 5)) == ["0", "1", "2", "3", "4"]
    consumer = await one.subscribe(name, prefetch=1, lease=30)
    assert await consumer.receive(1, 0.5) == []
    await one.delete(name)
    await one.delete(f"{name}.to")


async def test_what_is_sent_behind_the_close_of_a_channel_does_not_close_the_connection(
    rabbitmq_url: str,
) -> None:
    """The broker closes the connection for a frame of an unknown channel (504)."""
    lost = list[Exception]()
    backend = RabbitBackend(rabbitmq_url, RabbitOptions())
    await backend.open(lost.append)
    link = backend._open.consuming

    for turn in range(40):
        channel = await link.channel()
        channel.abandon()
        for _ in range(turn):
            await asyncio.sleep(0)
        channel.send(spec.Basic.Nack(delivery_tag=0, multiple=True, requeue=True))
        with pytest.raises((ConnectionLost, ChannelClosed)):
            await channel.request(spec.Basic.Qos(prefetch_count=0))

    await (await link.channel()).close()
    assert lost == []
    await backend.close()


async def test_a_publish_beside_the_close_of_its_channel_takes_another(make: Make) -> None:
    """A channel that was given up is closed some time later, and is not written to meanwhile."""
    name, one = f"t.{new_id()[:8]}", await make()
    await one.declare([QueueSpec(name=name)])

    for turn in range(20):
        confirms = await one._open.sender._confirm_channels.channel(QUEUES)
        confirms.channel.abandon()
        for _ in range(turn):
            await asyncio.sleep(0)
        assert await one.publish([out(name, f"{turn}")], timeout=5) == [STORED]

    assert sorted(await came(one, name, 20)) == sorted(f"{turn}" for turn in range(20))
    await one.delete(name)
