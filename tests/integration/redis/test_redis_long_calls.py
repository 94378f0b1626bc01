"""One call occupies the server for a few milliseconds; large work comes in parts.

Parts are counted and not timed: a call reads or writes 1 MiB at most, or one message, and lets time
and bounds do a part.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    Binding,
    Delivery,
    Message,
    Outgoing,
    QueueSpec,
    TopologyMismatch,
    new_id,
)

from .conftest import a_queue, opened, outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis as plain_redis

    from mqcore_redis import RedisBackend

    from .conftest import Private

LARGE = b"x" * 1_000_000


class Calls:
    """How many scripts were run inside of `counted`."""

    number = 0


@contextmanager
def counted(client: plain_redis.Redis) -> Iterator[Calls]:
    calls = Calls()
    client.config_resetstat()
    yield calls
    calls.number = client.info("commandstats")["cmdstat_evalsha"]["calls"]


async def large_ones(
    backend: RedisBackend, queue: str, count: int, ttl: float | None = None
) -> list[str]:
    """Publish as many messages of nearly 1 MiB; their names."""
    names = [f"{number:03}" for number in range(count)]
    batch = [Outgoing(queue, Message(id=name, body=LARGE), ttl=ttl) for name in names]
    assert await backend.publish(batch, timeout=30) == [STORED] * count
    return names


async def test_a_sweep_leases_what_is_large_in_parts_and_leaves_nothing(
    private: Callable[..., Private],
) -> None:
    server = private()
    async with opened(server.url) as backend:
        queue = await a_queue(backend)
        names = await large_ones(backend, queue, 20, ttl=0.01)
        await asyncio.sleep(0.05)
        with server.client() as client, counted(client) as calls:
            swept = await backend.sweep(queue, 500, 30)
        assert [it.message.id for it in swept] == names
        assert calls.number >= 20


async def test_a_sweep_finds_what_stands_behind_many_that_are_leased(redis_url: str) -> None:
    """Those are their owners' to bury; each call passes over a thousand of them and no more."""
    async with opened(redis_url) as backend:
        queue = await a_queue(backend)
        for part in range(5):
            batch = [
                Outgoing(queue, Message(id=f"{part}-{number}", body=b""), ttl=1.5)
                for number in range(500)
            ]
            assert await backend.publish(batch, timeout=10) == [STORED] * 500
        consumer = await backend.subscribe(queue, prefetch=2500, lease=60)
        held: list[Delivery] = []
        while len(held) < 2500:
            held += await consumer.receive(2500, 5)
        behind = [
            Outgoing(queue, Message(id=f"behind-{number}", body=b""), ttl=1.5)
            for number in range(3)
        ]
        assert await backend.publish(behind, timeout=5) == [STORED] * 3
        await asyncio.sleep(1.6)
        assert [it.message.id for it in await backend.sweep(queue, 2, 60)] == [
            "behind-0",
            "behind-1",
        ]
        assert [it.message.id for it in await backend.sweep(queue, 500, 60)] == ["behind-2"]
        assert list(await backend.sweep(queue, 500, 60)) == []


async def test_chosen_entries_are_taken_in_parts(private: Callable[..., Private]) -> None:
    server = private()
    async with opened(server.url) as backend:
        queue = await a_queue(backend)
        names = await large_ones(backend, queue, 20)
        keys = [entry.key for entry in await backend.browse(queue, 20)]
        with server.client() as client, counted(client) as calls:
            taken = await backend.take(queue, [*reversed(keys), "r/1/no-such-entry", *keys], 30)
        assert [it.message.id for it in taken] == names[::-1]
        assert calls.number >= 20
        assert list(await backend.take(queue, keys, 30)) == []


async def test_what_plain_clients_have_pushed_comes_in_in_parts(
    private: Callable[..., Private],
) -> None:
    server = private()
    async with opened(server.url) as backend:
        queue = await a_queue(backend)
        bodies = [b"%03d" % number + LARGE for number in range(20)]
        consumer = await backend.subscribe(queue, prefetch=100, lease=30)
        with server.client() as client:
            for body in bodies:
                client.rpush(f"mq:{{{queue}}}:in", body)
            got = [*await consumer.receive(100, 5)]
            assert client.llen(f"mq:{{{queue}}}:in") >= 20 - 2
        while len(got) < len(bodies):
            got += await consumer.receive(100, 5)
        assert [it.message.body[:3] for it in got] == [body[:3] for body in bodies]


async def a_bounded_queue(backend: RedisBackend, bound: int) -> tuple[str, str]:
    queue = f"t.{new_id()[:12]}"
    spec = QueueSpec(
        name=queue, max_length=bound, overflow="dead_letter", dead_letter=f"{queue}.dlq"
    )
    await backend.declare([spec, QueueSpec(name=f"{queue}.dlq", role="dead_letter")])
    return queue, f"{queue}.dlq"


async def test_what_was_moved_in_beyond_the_bound_goes_by_and_by(redis_url: str) -> None:
    async with opened(redis_url) as backend:
        queue, letters = await a_bounded_queue(backend, 10)
        redriven = [
            Outgoing(queue, Message(id=f"{number:04}", body=b"", hop=1)) for number in range(4000)
        ]
        assert await backend.publish(redriven, timeout=20) == [STORED] * 4000
        seen = []
        for turn in range(5):
            assert await backend.publish([outgoing(queue, f"new-{turn}")], timeout=5) == [STORED]
            seen.append([count.ready for count in await backend.count([queue, letters])])
        assert seen[0] == [3001, 1000]
        assert seen[-1] == [10, 3995]
        assert [entry.message.id for entry in await backend.browse(letters, 2)] == ["0000", "0001"]


async def test_large_ones_beyond_the_bound_go_to_the_dead_letters_in_parts(redis_url: str) -> None:
    async with opened(redis_url) as backend:
        queue, letters = await a_bounded_queue(backend, 10)
        names = [f"{number:03}" for number in range(20)]
        redriven = [Outgoing(queue, Message(id=name, body=LARGE, hop=1)) for name in names]
        assert await backend.publish(redriven, timeout=20) == [STORED] * 20
        ready = []
        for turn in range(20):
            assert await backend.publish([outgoing(queue, f"new-{turn}")], timeout=5) == [STORED]
            (count,) = await backend.count([queue])
            ready.append(count.ready)
        assert ready[:3] == [19, 18, 17]
        assert ready[-1] == 10
        evicted = [entry.message.id for entry in await backend.browse(letters, 100)]
        assert evicted == [*names, *(f"new-{turn}" for turn in range(10))]


@pytest.mark.parametrize("letters", ["kept", "dropped"])
async def test_small_ones_that_drive_out_large_ones_do_not_pass_the_bound(
    redis_url: str, letters: str
) -> None:
    """A call that stores a few bytes evicts as many messages as it stores, in parts of 1 MiB."""
    async with opened(redis_url) as backend:
        queue = f"t.{new_id()[:12]}"
        dead = f"{queue}.dlq" if letters == "kept" else None
        await backend.declare(
            [QueueSpec(name=queue, max_length=20, overflow="dead_letter", dead_letter=dead)]
        )
        await backend.declare([QueueSpec(name=f"{queue}.dlq", role="dead_letter")])
        large = [
            Outgoing(queue, Message(id=f"{number:03}", body=LARGE, priority=number % 3))
            for number in range(20)
        ]
        assert await backend.publish(large, timeout=20) == [STORED] * 20
        for size in (1, 19, 300):
            assert (
                await backend.publish([outgoing(queue) for _ in range(size)], timeout=10)
                == [STORED] * size
            )
            (count,) = await backend.count([queue])
            assert count.ready == 20
        (count,) = await backend.count([f"{queue}.dlq"])
        assert count.ready == (320 if dead else 0)
        if dead:
            gone = [entry.message for entry in await backend.browse(dead, 400)]
            assert [it.priority for it in gone if it.body == LARGE] == [2] * 6 + [1] * 7 + [0] * 7


async def test_letters_of_an_overflow_are_kept_for_their_time_and_no_longer(redis_url: str) -> None:
    """Nobody looks at them: who stores the next ones lets the old ones go."""
    async with opened(redis_url) as backend, opened(redis_url) as looks:
        queue = f"t.{new_id()[:12]}"
        spec = QueueSpec(
            name=queue, max_length=1, overflow="dead_letter", dead_letter=f"{queue}.dlq"
        )
        await backend.declare(
            [spec, QueueSpec(name=f"{queue}.dlq", role="dead_letter", retention=0.5)]
        )
        assert (
            await backend.publish([outgoing(queue) for _ in range(101)], timeout=5)
            == [STORED] * 101
        )
        await asyncio.sleep(0.6)
        assert await backend.publish([outgoing(queue, "last")], timeout=5) == [STORED]
        assert await looks._now.session.command("HLEN", f"mq:{{{queue}}}.dlq:m") == 1


async def test_a_purge_beside_what_is_leased_goes_in_parts_and_leaves_that(
    private: Callable[..., Private],
) -> None:
    server = private()
    async with opened(server.url) as backend:
        queue = await a_queue(backend)
        batch = [
            Outgoing(queue, Message(id=f"{number}", body=b"b"), ttl=60) for number in range(5000)
        ]
        assert await backend.publish(batch, timeout=20) == [STORED] * 5000
        consumer = await backend.subscribe(queue, prefetch=3, lease=30)
        held = await consumer.receive(3, 5)
        later = [outgoing(queue, f"later-{number}", delay=60) for number in range(100)]
        assert await backend.publish(later, timeout=5) == [STORED] * 100
        with server.client() as client:
            client.rpush(f"mq:{{{queue}}}:in", "pushed")
            with counted(client) as calls:
                assert await backend.purge(queue) == 4997 + 100 + 1
            assert calls.number >= 5
            assert client.hlen(f"mq:{{{queue}}}:m") == client.zcard(f"mq:{{{queue}}}:x") == 3
        assert await backend.purge(queue) == 0
        assert await consumer.settle([Ack(it.receipt) for it in held], timeout=5) == [DONE] * 3


async def test_many_claims_are_renewed_and_given_back_in_parts(
    private: Callable[..., Private],
) -> None:
    server = private()
    async with opened(server.url) as backend:
        queue = await a_queue(backend)
        names = [f"{number:04}" for number in range(1200)]
        assert (
            await backend.publish([outgoing(queue, name) for name in names], timeout=20)
            == [STORED] * 1200
        )
        consumer = await backend.subscribe(queue, prefetch=1200, lease=30)
        held: list[Delivery] = []
        while len(held) < len(names):
            held += await consumer.receive(1200, 5)
        receipts = [it.receipt for it in held]
        with server.client() as client, counted(client) as calls:
            assert await backend.renew(queue, [b"t|1|05000000000000001", *receipts], 60) == [
                False,
                *[True] * 1200,
            ]
        assert calls.number == 3
        await consumer.close()
        (count,) = await backend.count([queue])
        assert (count.ready, count.leased) == (1200, 0)


async def test_old_dead_letters_go_in_parts(redis_url: str) -> None:
    async with opened(redis_url) as backend:
        queue = f"t.{new_id()[:12]}"
        await backend.declare([QueueSpec(name=queue, role="dead_letter", retention=1.0)])
        many = [
            Outgoing(queue, Message(id=f"{number}", body=b"", priority=number % 11))
            for number in range(3000)
        ]
        assert await backend.publish(many, timeout=20) == [STORED] * 3000
        await asyncio.sleep(1.1)
        left = [(await backend.count([queue]))[0].ready for _ in range(4)]
        assert left[0] >= 1000
        assert left[-1] == 0


async def test_a_new_binding_is_held_against_those_of_its_router(redis_url: str) -> None:
    name = new_id()[:12]
    here = Binding(router=f'{name}."', kind="direct", queue="q", pattern="a")
    async with opened(redis_url) as backend:
        await backend.bind(
            [here, Binding(router=f"{name}.other", kind="topic", queue="q", pattern="a")]
        )
        with pytest.raises(
            TopologyMismatch,
            match=r"exists with kind='direct', but the code declares kind='fanout'",
        ):
            await backend.bind([here, Binding(router=f'{name}."', kind="fanout", queue="q")])
        await backend.bind(
            [here, Binding(router=f'{name}."', kind="direct", queue="q", pattern="b")]
        )
        assert len(await backend.bindings(f'{name}."')) == 2
