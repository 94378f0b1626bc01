"""Corners: two copies of one id, messages not handed out, consumers that end, late answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import pytest
import redis as plain_redis

from mqcore import Broker, Queue, Router, Settings
from mqcore.broker import session_of
from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    ConnectionLost,
    Move,
    Outgoing,
    QueueSpec,
    Release,
    SupportsBind,
    new_id,
)
from mqcore_redis import RedisBackend, RedisOptions

from .conftest import a_queue, opened, outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore_redis.scripts import Call
    from mqcore_redis.subscription import RedisSubscription

    from .conftest import Private


async def test_two_copies_of_one_id_are_both_dead_lettered(redis_url: str) -> None:
    """The window of the first publish had passed at the second, and both copies can be moved."""
    async with opened(redis_url, dedup_size=1) as backend:
        queue = await a_queue(backend)
        for name in ("a", "x", "y", "a"):
            assert await backend.publish([outgoing(queue, name)], timeout=5) == [STORED]
    async with opened(redis_url) as backend:
        consumer = await backend.subscribe(queue, prefetch=10, lease=30)
        for delivery in await consumer.receive(10, 2):
            letter = Outgoing(f"{queue}.dlq", delivery.message.moved(queue))
            assert await consumer.settle([Move(delivery.receipt, letter)], timeout=5) == [DONE]
        letters = await backend.browse(f"{queue}.dlq", 10)
        assert Counter(it.message.id for it in letters) == Counter("aaxy")


async def test_after_a_cancelled_receive_the_next_ones_ask_the_server_again(redis_url: str) -> None:
    async with opened(redis_url) as backend:
        queue = await a_queue(backend)
        await backend.publish([outgoing(queue, name) for name in "abc"], timeout=5)
        consumer = await backend.subscribe(queue, prefetch=10, lease=30)
        receiving = asyncio.create_task(consumer.receive(1, 5))
        await asyncio.sleep(0)
        receiving.cancel()
        await asyncio.wait([receiving])
        await backend.count([queue])  # answers come in their order: the claim has been answered
        got = [[it.message.id for it in await consumer.receive(1, 0)] for _ in range(3)]
        assert got == [["a"], ["b"], ["c"]]


async def test_what_a_cancelled_receive_claimed_is_for_others_at_once(redis_url: str) -> None:
    """A worker that drains asks no more, and closes after its grace: no message waits for that."""
    async with opened(redis_url) as backend, opened(redis_url) as elsewhere:
        queue = await a_queue(backend)
        other = await elsewhere.subscribe(queue, prefetch=10, lease=30)
        for turn in range(12):
            drains = await backend.subscribe(queue, prefetch=10, lease=30)
            await backend.publish(
                [outgoing(queue, f"{turn}-{letter}") for letter in "ab"], timeout=5
            )
            receiving = asyncio.create_task(drains.receive(2, 60))
            for _ in range(turn):
                await asyncio.sleep(0)
            receiving.cancel()
            (got,) = await asyncio.gather(receiving, return_exceptions=True)
            if isinstance(got, list):
                assert await drains.settle([Ack(it.receipt) for it in got], timeout=5) == [DONE] * 2
            else:
                found = [*await other.receive(1, 10), *await other.receive(1, 10)]
                marks = [(it.message.id, it.redelivered, it.takeovers) for it in found]
                assert marks == [(f"{turn}-a", False, False), (f"{turn}-b", False, False)]
                assert (
                    await other.settle([Ack(it.receipt) for it in found], timeout=5) == [DONE] * 2
                )
            await drains.close()


async def test_what_nobody_saw_goes_back_with_the_takeovers_that_it_had(redis_url: str) -> None:
    async with opened(redis_url) as backend:
        queue = await a_queue(backend)
        await backend.publish([outgoing(queue, name) for name in "ab"], timeout=5)
        killed = await backend.subscribe(queue, prefetch=1, lease=30)
        assert len(await killed.receive(1, 2)) == 1
        await killed.close()
        unseeing = await backend.subscribe(queue, prefetch=10, lease=30)
        receiving = asyncio.create_task(unseeing.receive(2, 5))
        await asyncio.sleep(0)
        receiving.cancel()
        await asyncio.wait([receiving])
        await unseeing.close()
        consumer = await backend.subscribe(queue, prefetch=10, lease=30)
        got = await consumer.receive(2, 2)
        assert [(it.message.id, it.takeovers, it.redelivered) for it in got] == [
            ("a", 1, True),
            ("b", 0, False),
        ]


async def test_a_release_gives_a_suspect_back_as_a_suspect(redis_url: str) -> None:
    """A worker that stops before it has moved the suspect to the quarantine: the next one knows."""
    async with opened(redis_url) as backend:
        queue = await a_queue(backend)
        await backend.publish([outgoing(queue, name) for name in "ab"], timeout=5)
        killed = await backend.subscribe(queue, prefetch=1, lease=30)
        assert len(await killed.receive(1, 2)) == 1
        await killed.close()
        consumer = await backend.subscribe(queue, prefetch=10, lease=30)
        marks = []
        for _ in range(3):
            got = await consumer.receive(2, 2)
            marks.append([(it.message.id, it.redelivered, it.takeovers) for it in got])
            assert (
                await consumer.settle([Release(it.receipt) for it in got], timeout=5) == [DONE] * 2
            )
        later = [("a", True, True), ("b", True, False)]
        assert marks == [[("a", True, True), ("b", False, False)], later, later]


async def test_a_delayed_entry_that_is_taken_and_released_is_still_in_time(redis_url: str) -> None:
    async with opened(redis_url) as backend, opened(redis_url) as other:
        queue, loop = await a_queue(backend), asyncio.get_running_loop()
        idle = await other.subscribe(queue, prefetch=1, lease=30)
        late = []
        for _ in range(8):
            await backend.publish([outgoing(queue, delay=0.35)], timeout=5)
            due = loop.time() + 0.35
            (entry,) = await backend.browse(queue, 1)
            (taken,) = await backend.take(queue, [entry.key], 30)
            consumer = await backend.subscribe(queue, prefetch=1, lease=30)
            waiting = asyncio.create_task(idle.receive(1, 10))
            await asyncio.sleep(0.1)  # it has looked, and found nothing
            assert await consumer.settle([Release(taken.receipt)], timeout=5) == [DONE]
            await consumer.close()
            (delivery,) = await waiting
            late.append(loop.time() - due)
            assert await idle.settle([Ack(delivery.receipt)], timeout=5) == [DONE]
        assert sorted(late)[5] < 0.1


async def test_who_goes_after_it_was_woken_wakes_the_next(redis_url: str) -> None:
    """A delay woke one of two idle consumers, which set its timer and is closed before it rings."""
    async with opened(redis_url) as backend, opened(redis_url) as publisher:
        queue, loop = await a_queue(backend), asyncio.get_running_loop()
        late = []
        for _ in range(8):
            one, two = [await backend.subscribe(queue, prefetch=1, lease=30) for _ in "ab"]
            first, second = [
                asyncio.create_task(consumer.receive(1, 10)) for consumer in (one, two)
            ]
            await asyncio.sleep(0.05)
            await publisher.publish([outgoing(queue, delay=0.2)], timeout=5)
            due = loop.time() + 0.2
            await asyncio.sleep(0.05)
            await one.close()
            assert await first == []
            (delivery,) = await second
            late.append(loop.time() - due)
            assert await two.settle([Ack(delivery.receipt)], timeout=5) == [DONE]
            await two.close()
        assert sorted(late)[5] < 0.15


async def test_a_full_consumer_learns_of_a_loss_at_once(redis_url: str) -> None:
    lost = asyncio.Event()
    backend = RedisBackend(redis_url, RedisOptions())
    await backend.open(lambda _: lost.set())
    try:
        queue = await a_queue(backend)
        await backend.publish([outgoing(queue)], timeout=5)
        consumer = await backend.subscribe(queue, prefetch=1, lease=30)
        assert len(await consumer.receive(1, 2)) == 1
        waiting = asyncio.create_task(consumer.receive(1, 60))
        await asyncio.sleep(0)
        with plain_redis.Redis.from_url(redis_url) as client:
            for found in client.client_list():
                if int(found["id"]) != client.client_id() and found["name"] == "":
                    client.client_kill_filter(_id=found["id"])
        async with asyncio.timeout(5):
            await lost.wait()
            with pytest.raises(ConnectionLost):
                await waiting
    finally:
        await backend.close()


async def test_a_close_that_is_cancelled_leaves_no_connection(
    private: Callable[..., Private],
) -> None:
    server = private()
    backend = RedisBackend(server.url, RedisOptions())
    await backend.open(lambda _: None)
    queue = await a_queue(backend)
    await backend.publish([outgoing(queue)], timeout=5)
    consumer = await backend.subscribe(queue, prefetch=1, lease=30)
    assert len(await consumer.receive(1, 2)) == 1
    for turns in (1, 2):
        closing = asyncio.create_task(backend.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
    with server.client() as client:
        async with asyncio.timeout(5):
            while len(client.client_list()) > 1:  # noqa: ASYNC110 - the server is what is looked at
                await asyncio.sleep(0.01)


async def test_nothing_of_a_temporary_queue_stays_for_ever(private: Callable[..., Private]) -> None:
    server = private()
    async with opened(server.url) as backend:
        name = f"t.{new_id()[:12]}"
        await backend.declare([QueueSpec(name=name, role="temporary")])
        await backend.publish([outgoing(name), outgoing(name, delay=60)], timeout=5)
        consumer = await backend.subscribe(name, prefetch=1, lease=30)
        (delivery,) = await consumer.receive(1, 2)
        assert await consumer.settle([Release(delivery.receipt)], timeout=5) == [DONE]
        with server.client() as client:
            assert {key: client.ttl(key) for key in client.scan_iter() if client.ttl(key) < 0} == {}


async def test_the_bindings_of_a_temporary_queue_that_expired_are_removed(
    private: Callable[..., Private],
) -> None:
    server, name = private(), f"t.{new_id()[:12]}"
    async with (
        Broker.connect(server.url, settings=Settings()) as broker,
        Broker.connect(server.url, settings=Settings()) as owner,
    ):
        lasting, passing = Queue("lasting", str), Queue(name, str, temporary=True)
        await broker.declare(Router("r", str, kind="fanout").bind(lasting))
        await owner.declare(Router("r", str, kind="fanout").bind(passing))
        bare = Router("r", str, kind="fanout")
        assert sorted((await broker.publish(bare, "x")).queues) == sorted([name, "lasting"])
        with server.client() as client:  # its keys expire when its owner has died
            for key in list(client.scan_iter()):
                if client.ttl(key) >= 0 and name.encode() in key:
                    client.delete(key)
        assert (await broker.publish(bare, "y")).queues == ("lasting",)
        backend = session_of(broker).connection.backend
        assert isinstance(backend, SupportsBind)
        assert [binding.queue for binding in await backend.bindings("r")] == ["lasting"]


async def test_an_idle_look_at_a_temporary_queue_writes_nothing(
    private: Callable[..., Private],
) -> None:
    """Each write would go to the append-only file, once a second for each waiting requester."""
    server = private("--appendonly", "yes")
    async with opened(server.url) as backend:
        name = f"t.{new_id()[:12]}"
        await backend.declare([QueueSpec(name=name, role="temporary")])
        consumer = await backend.subscribe(name, prefetch=1, lease=30)
        waiting = asyncio.create_task(consumer.receive(1, 60))
        with server.client() as client:
            await asyncio.sleep(0.5)
            before = client.info("persistence")["aof_current_size"]
            await asyncio.sleep(3)
            assert client.info("persistence")["aof_current_size"] == before
        waiting.cancel()


async def test_a_delay_that_falls_due_under_a_count_leaves_nothing_for_ever(
    private: Callable[..., Private],
) -> None:
    server = private()
    async with opened(server.url) as backend:
        name = f"t.{new_id()[:12]}"
        await backend.declare([QueueSpec(name=name, role="temporary")])
        await backend.publish([outgoing(name, delay=0.05)], timeout=5)
        await asyncio.sleep(0.1)
        (count,) = await backend.count([name])
        assert count.ready == 1
        with server.client() as client:
            assert [key for key in client.scan_iter() if client.ttl(key) < 0] == []


async def test_a_queue_that_is_made_anew_while_it_is_deleted_is_counted(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its consumers notice the end and declare again before the deleting process goes on."""
    async with opened(redis_url) as backend, opened(redis_url) as other:
        queue, session = await a_queue(backend), backend._now.session
        ask = session.ask

        async def overtaken(name: str, *args: Any, **more: Any) -> Any:
            answer = await ask(name, *args, **more)
            await other.declare([QueueSpec(name=queue)])
            return answer

        monkeypatch.setattr(session, "ask", overtaken)
        assert await backend.delete(queue)
        assert queue in {count.name for count in await other.count()}


async def test_a_queue_that_is_deleted_while_it_is_declared_is_counted(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(redis_url) as backend, opened(redis_url) as other:
        queue, session = await a_queue(backend), backend._now.session
        run = session.run

        async def overtaken(name: str, *args: Any) -> Any:
            assert await other.delete(queue)
            return await run(name, *args)

        monkeypatch.setattr(session, "run", overtaken)
        await backend.declare([QueueSpec(name=queue)])
        assert queue in {count.name for count in await other.count()}


async def test_nothing_is_claimed_after_a_close_that_came_while_the_server_was_asked(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full consumer asks whether its ended leases were renewed; it is closed meanwhile."""
    async with opened(redis_url) as backend, opened(redis_url) as other:
        queue, asked = await a_queue(backend), asyncio.Event()
        consumer = await backend.subscribe(queue, prefetch=1, lease=0.2)
        await backend.publish([outgoing(queue)], timeout=5)
        assert len(await consumer.receive(1, 2)) == 1
        batches = backend._now.batches
        renew = batches.renew

        async def told(*args: Any) -> Any:
            asked.set()
            return await renew(*args)

        monkeypatch.setattr(batches, "renew", told)
        waiting = asyncio.create_task(consumer.receive(1, 10))
        await asyncio.wait_for(asked.wait(), 5)
        await consumer.close()
        assert list(await waiting) == []
        (count,) = await other.count([queue])
        assert (count.ready, count.leased) == (1, 0)


async def test_nothing_is_claimed_after_a_close_that_came_while_an_older_claim_was_under_way(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(redis_url) as backend, opened(redis_url) as other:
        queue, begun, answered = await a_queue(backend), asyncio.Event(), asyncio.Event()
        consumer = cast("RedisSubscription", await backend.subscribe(queue, prefetch=1, lease=30))
        link, loop = backend._now.session.main, asyncio.get_running_loop()
        run = link.run

        def slow(calls: Sequence[Call], **_: bool) -> list[asyncio.Future[Any]]:
            monkeypatch.setattr(link, "run", run)
            late = [loop.create_future() for _ in calls]

            async def answer() -> None:
                await answered.wait()
                for future, answer in zip(late, run(calls), strict=True):
                    future.set_result(await answer)

            answering.append(asyncio.create_task(answer()))
            begun.set()
            return late

        answering: list[asyncio.Task[None]] = []
        monkeypatch.setattr(link, "run", slow)
        cancelled = asyncio.create_task(consumer.receive(1, 0))
        await asyncio.wait_for(begun.wait(), 5)
        cancelled.cancel()
        waiting = asyncio.create_task(consumer.receive(1, 10))
        await asyncio.wait([cancelled])
        closing = asyncio.create_task(consumer.close())
        await other.publish([outgoing(queue)], timeout=5)
        answered.set()
        await closing
        assert list(await waiting) == []
        (count,) = await other.count([queue])
        assert (count.ready, count.leased) == (1, 0)
