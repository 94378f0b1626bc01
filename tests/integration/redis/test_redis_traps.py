"""A server that starts, and a cluster that is rearranged: away for a moment, without a loss."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import redis as plain_redis
from redis.exceptions import BusyLoadingError
from support.waiting import eventually

from mqcore import Broker, Queue
from mqcore.contract.brokers.server import free_port
from mqcore.messages.message import new_id
from mqcore.spi import DONE, STORED, Ack, ConfigurationError, ErrorKind, QueueSpec, Stored
from mqcore_redis import RedisBackend, RedisOptions

from .conftest import a_queue, opened, outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Private

pytestmark = pytest.mark.timeout(90)
SLOTS = 16384
SLOW_START = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
"""A millisecond for each key."""


async def test_a_server_that_still_loads_its_data_is_waited_for(
    private: Callable[..., Private],
) -> None:
    """LOADING means: later.

    Who connects now is told so, who was connected comes back by himself.
    """
    server = private(*SLOW_START)
    queue, told = Queue(f"t.{new_id()[:12]}", str), set()
    newcomer = RedisBackend(server.url, RedisOptions())
    async with Broker.connect(server.url) as broker:
        await broker.publish(queue, "before")
        with server.client() as client:
            client.mset({f"other:{number}": "" for number in range(2000)})
            client.save()
        server.stop()
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        while not starting.done():
            try:
                await newcomer.open(lambda _: None)
            except BusyLoadingError as error:
                told.add(newcomer.classify(error))
            except (plain_redis.RedisError, OSError):
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.02)
        await starting
        await newcomer.close()
        assert told == {ErrorKind.TRANSIENT}
        await broker.publish(queue, "after", timeout=20)
        async with broker.consume(queue, prefetch=2) as consumer:
            got = [await consumer.get(timeout=10) for _ in range(2)]
        assert [delivery and delivery.value for delivery in got] == ["before", "after"]


@pytest.fixture
def pair(private: Callable[..., Private]) -> Iterator[list[plain_redis.Redis]]:
    """Two masters that share the slots."""
    buses = [free_port() for _ in range(2)]
    nodes = [private("--cluster-enabled", "yes", "--cluster-port", str(bus)) for bus in buses]
    clients = [
        plain_redis.Redis(port=node.port, socket_timeout=5, decode_responses=True) for node in nodes
    ]
    for client, first, last in zip(
        clients, (0, SLOTS // 2), (SLOTS // 2 - 1, SLOTS - 1), strict=True
    ):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
    clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port, buses[1])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not all(
        "cluster_state:ok" in _info(client) for client in clients
    ):
        time.sleep(0.05)
    yield clients
    for client in clients:
        client.close()


def _info(client: plain_redis.Redis) -> str:
    return str(client.execute_command("CLUSTER", "INFO"))


def _rehome(old: plain_redis.Redis, new: plain_redis.Redis, slot: int) -> None:
    """Move a slot with all its keys to another master, as a resharding does."""
    names = [str(client.execute_command("CLUSTER", "MYID")) for client in (old, new)]
    port = new.connection_pool.connection_kwargs["port"]
    new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
    old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
    while keys := old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
        old.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)
    for client in (new, old):
        client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[1])


async def test_a_queue_that_moves_to_another_node_loses_nobody(
    pair: list[plain_redis.Redis],
) -> None:
    """MOVED is followed: messages, leases and waiting consumers go with the slot."""
    port = pair[0].connection_pool.connection_kwargs["port"]
    async with opened(f"redis+cluster://127.0.0.1:{port}") as backend:
        queue = await a_queue(backend)
        assert (
            await backend.publish([outgoing(queue, name) for name in "ab"], timeout=5)
            == [STORED] * 2
        )
        consumer = await backend.subscribe(queue, prefetch=10, lease=30)
        (first,) = await consumer.receive(1, 5)
        slot = int(str(pair[0].execute_command("CLUSTER", "KEYSLOT", f"{{{queue}}}")))
        old, new = pair if slot < SLOTS // 2 else reversed(pair)
        await asyncio.to_thread(_rehome, old, new, slot)
        (outcome,) = await backend.publish([outgoing(queue, "c")], timeout=10)
        assert isinstance(outcome, Stored)
        (again,) = await backend.publish([outgoing(queue, "a")], timeout=10)
        assert again == Stored(duplicate=True)
        assert await consumer.settle([Ack(first.receipt)], timeout=10) == [DONE]
        rest = await consumer.receive(10, 10)
        assert [it.message.id for it in rest] == ["b", "c"]
        assert await consumer.settle([Ack(it.receipt) for it in rest], timeout=10) == [DONE] * 2
        waiting = asyncio.create_task(consumer.receive(1, 20))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(_rehome, new, old, slot)
        await eventually(lambda: _stored(backend, queue), 10)
        assert [it.message.id for it in await waiting] == ["d"]


async def test_an_overflow_into_another_slot_is_refused_before_it_is_needed(
    pair: list[plain_redis.Redis],
) -> None:
    """One script moves an evicted message, and no script reaches two slots (CROSSSLOT)."""
    port = pair[0].connection_pool.connection_kwargs["port"]
    async with opened(f"redis+cluster://127.0.0.1:{port}") as backend:
        name = f"t.{new_id()[:12]}"
        bounded = QueueSpec(
            name=name, max_length=1, overflow="dead_letter", dead_letter="graveyard"
        )
        with pytest.raises(ConfigurationError, match="another slot"):
            await backend.declare([bounded])
        await backend.declare([replace(bounded, dead_letter=f"{name}.dlq")])


async def _stored(backend: RedisBackend, queue: str) -> bool:
    (outcome,) = await backend.publish([outgoing(queue, "d")], timeout=5)
    return isinstance(outcome, Stored)
