"""A server that forgets scripts, is full, denies rights, is demoted, or falls silent."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
import redis as plain_redis
from redis.exceptions import NoPermissionError, ReadOnlyError
from support.waiting import eventually

from mqcore import App, Broker, Queue, Worker
from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    Binding,
    Capability,
    ConnectionLost,
    Durability,
    ErrorKind,
    Failed,
    Level,
    Move,
    Outgoing,
    QueueSpec,
    Release,
    TopologyMismatch,
    Unknown,
    new_id,
)
from mqcore_redis import RedisBackend, RedisOptions

from .conftest import a_queue, opened, outgoing

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Private

ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")


async def test_forgotten_scripts_are_sent_again_in_the_middle_of_a_batch(redis_url: str) -> None:
    async with opened(redis_url) as backend:
        queue = await a_queue(backend)
        consumer = await backend.subscribe(queue, prefetch=2000, lease=30)
        with plain_redis.Redis.from_url(redis_url) as client:
            for turn in range(5):
                client.script_flush()
                batch = [outgoing(queue, f"{turn}-{number}") for number in range(600)]
                assert await backend.publish(batch, timeout=5) == [STORED] * 600
                client.script_flush()
                got = [*await consumer.receive(600, 2), *await consumer.receive(600, 2)]
                assert [it.message.id for it in got] == [out.message.id for out in batch]
                client.script_flush()
                assert await backend.renew(queue, [it.receipt for it in got], 30) == [True] * 600
                assert (
                    await consumer.settle([Ack(it.receipt) for it in got], timeout=5)
                    == [DONE] * 600
                )


async def test_on_a_full_server_everything_works_but_publishing(
    private: Callable[..., Private],
) -> None:
    server = private(*ALWAYS)
    async with opened(server.url) as backend:
        queue = await a_queue(backend)
        assert (
            await backend.publish([outgoing(queue, name) for name in "abcd"], timeout=5)
            == [STORED] * 4
        )
        consumer = await backend.subscribe(queue, prefetch=10, lease=30)
        a, b, c, d = await consumer.receive(4, 2)
        with server.client() as client:
            client.config_set("maxmemory", "1mb")
        (refused,) = await backend.publish([outgoing(queue)], timeout=5)
        assert isinstance(refused, Failed)
        assert (refused.kind, "memory" in refused.text) == (ErrorKind.FULL, True)
        assert await backend.renew(queue, [a.receipt], 60) == [True]
        move = Move(d.receipt, Outgoing(f"{queue}.dlq", d.message.moved(queue)))
        settled = await consumer.settle(
            [Ack(a.receipt), Release(b.receipt), Release(c.receipt), move], timeout=5
        )
        assert settled == [DONE] * 4
        assert sorted(it.message.id for it in await consumer.receive(4, 2)) == ["b", "c"]
        (count,) = await backend.count([f"{queue}.dlq"])
        assert count.ready == 1


async def test_on_a_full_server_only_what_is_new_cannot_be_declared(
    private: Callable[..., Private],
) -> None:
    """A queue that exists writes nothing: every start and every reconnect of a worker declares."""
    server, new = private(*ALWAYS), f"t.{new_id()[:12]}"
    async with opened(server.url) as backend:
        queue = await a_queue(backend)
        there = [
            QueueSpec(name=queue, dead_letter=f"{queue}.dlq"),
            QueueSpec(name=f"{queue}.dlq", role="dead_letter"),
        ]
        arrow = Binding(router="r", kind="direct", queue=queue, pattern="a")
        await backend.bind([arrow])
        with server.client() as client:
            client.config_set("maxmemory", "1mb")
            before = client.info("persistence")["aof_current_size"]
            await backend.declare(there)
            await backend.bind([arrow])
            assert client.info("persistence")["aof_current_size"] == before
        for declaring in (
            backend.declare([*there, QueueSpec(name=new)]),
            backend.declare([QueueSpec(name=new, role="temporary")]),
            backend.bind([Binding(router="r", kind="direct", queue=queue, pattern="b")]),
        ):
            with pytest.raises(plain_redis.RedisError) as caught:
                await declaring
            assert backend.classify(caught.value) is ErrorKind.FULL
        with pytest.raises(TopologyMismatch):
            await backend.declare([QueueSpec(name=queue, ttl=5.0)])
        assert list(await backend.count([new])) == []
        assert list(await backend.bindings()) == [arrow]


async def test_on_a_full_server_bindings_and_queues_can_be_removed(
    private: Callable[..., Private],
) -> None:
    """And everybody learns of it: the bindings and their version change in one step."""
    server = private(*ALWAYS)
    async with opened(server.url) as backend, opened(server.url) as other:
        one, two = await a_queue(backend), await a_queue(backend)
        arrows = [
            Binding(router="r", kind="direct", queue=queue, pattern="a") for queue in (one, two)
        ]
        await backend.bind(arrows)
        await backend.publish([outgoing(two)], timeout=5)
        assert len(await other.bindings("r")) == 2
        with server.client() as client:
            client.config_set("maxmemory", "1mb")
        await backend.unbind(arrows[:1])
        assert list(await other.bindings("r")) == arrows[1:]
        assert not await backend.delete(two, if_empty=True)
        assert two in {count.name for count in await other.count()}
        assert await backend.delete(two)
        assert list(await other.bindings("r")) == []
        assert two not in {count.name for count in await other.count()}


async def test_a_full_server_is_drained_by_a_fresh_worker_and_by_one_that_was_cut_off(
    private: Callable[..., Private],
) -> None:
    """A claim may be under way when the connections are cut: what it took waits for its lease."""
    server, queue, app = private(*ALWAYS), Queue(f"t.{new_id()[:12]}", str), App("full")
    done: set[str] = set()
    cut = asyncio.Event()

    @app.consumer(queue, concurrency=1, lease=3)
    async def handle(word: str) -> None:
        done.add(word)
        if len(done) == 20 and not cut.is_set():
            cut.set()
            with server.client() as client:
                client.client_kill_filter(_type="normal", skipme=True)

    words = [f"{number:03} {'x' * 500}" for number in range(200)]
    async with Broker.connect(server.url) as broker:
        await broker.publish_many(queue, words)
    with server.client() as client:
        client.config_set("maxmemory", "1mb")
    async with Broker.connect(server.url) as broker, Worker(app, broker):
        await eventually(lambda: len(done) == len(words), within=20)
        assert cut.is_set()
        assert broker.health().connected


async def test_a_demoted_master_is_told_as_a_lost_connection(
    private: Callable[..., Private],
) -> None:
    server, other = private(*ALWAYS), private()
    lost: list[Exception] = []
    backend = RedisBackend(server.url, RedisOptions())
    await backend.open(lost.append)
    try:
        queue = await a_queue(backend)
        with server.client() as client:
            client.replicaof("127.0.0.1", other.port)
        (refused,) = await backend.publish([outgoing(queue)], timeout=5)
        assert isinstance(refused, Failed)
        assert refused.kind is ErrorKind.TRANSIENT
        assert [type(error) for error in lost] == [ReadOnlyError]
        with pytest.raises(ConnectionLost):
            await backend.publish([outgoing(queue)], timeout=5)
        with pytest.raises(ReadOnlyError, match="replica") as caught:
            await backend.open(lost.append)
        assert backend.classify(caught.value) is ErrorKind.TRANSIENT
    finally:
        await backend.close()
    assert len(lost) == 1


async def test_too_few_replicas_refuse_for_now(private: Callable[..., Private]) -> None:
    server = private()
    async with opened(server.url) as backend:
        queue = await a_queue(backend)
        with server.client() as client:
            client.config_set("min-replicas-to-write", 1)
        (refused,) = await backend.publish([outgoing(queue)], timeout=5)
        assert isinstance(refused, Failed)
        assert refused.kind is ErrorKind.TRANSIENT


# A look at the server


async def durability(
    url: str, **options: object
) -> tuple[Durability, dict[str, float | str | bool]]:
    async with opened(url, **options) as backend:
        told = await backend.open(lambda _: None)
    return told.durability, dict(told[Capability.DURABLE].limits)


@pytest.mark.parametrize(
    ("settings", "wanted", "warning"),
    [
        ({"appendonly": "yes", "appendfsync": "always"}, Durability.MACHINE, ""),
        ({"appendonly": "yes", "appendfsync": "everysec"}, Durability.PROCESS, ""),
        ({"appendonly": "yes", "appendfsync": "no"}, Durability.PROCESS, ""),
        (
            {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "yes"},
            Durability.PROCESS,
            "",
        ),
        ({"appendonly": "no"}, Durability.MEMORY, "appendonly"),
        (
            {"appendonly": "yes", "maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"},
            Durability.MEMORY,
            "maxmemory-policy allkeys-lru evicts messages: set noeviction",
        ),
        ({"appendonly": "yes", "maxmemory": "1mb"}, Durability.PROCESS, "80 %"),
    ],
    ids=["always", "everysec", "no-fsync", "rewrite", "no-aof", "eviction", "nearly-full"],
)
async def test_durability_is_what_the_server_is_configured_for(
    private: Callable[..., Private], settings: dict[str, str], wanted: Durability, warning: str
) -> None:
    server = private()
    with server.client() as client:
        for name, value in settings.items():
            client.config_set(name, value)
    found, limits = await durability(server.url)
    assert found is wanted
    assert limits["verified"] is True
    assert warning in str(limits.get("warning", ""))
    assert bool(warning) == ("warning" in limits)


RIGHTS = [
    "on",
    ">canary-password",
    "~mq:*",
    "+@read",
    "+@write",
    "+@scripting",
    "+@connection",
    "+time",
    "+info",
]


@pytest.mark.parametrize(
    ("rights", "options", "wanted"),
    [
        (("+config|get",), {}, Durability.MACHINE),
        ((), {}, Durability.PROCESS),
        ((), {"assume_durability": "machine"}, Durability.MACHINE),
        (("-info",), {}, Durability.MEMORY),
        (("-info",), {"assume_durability": "process"}, Durability.PROCESS),
    ],
    ids=["config", "info", "info-stated", "nothing", "nothing-stated"],
)
async def test_a_denied_look_never_fails_the_connect(
    private: Callable[..., Private],
    rights: tuple[str, ...],
    options: dict[str, str],
    wanted: Durability,
) -> None:
    server = private(*ALWAYS)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", *RIGHTS, *rights)
    url = f"redis://app:canary-password@127.0.0.1:{server.port}"
    found, limits = await durability(url, **options)
    assert found is wanted
    assert limits.get("stated") == options.get("assume_durability")
    assert limits["verified"] is (not options and "-info" not in rights)
    async with opened(url) as backend:
        queue = await a_queue(backend)
        consumer = await backend.subscribe(queue, prefetch=1, lease=30)
        assert await backend.publish([outgoing(queue)], timeout=5) == [STORED]
        (delivery,) = await consumer.receive(1, 2)
        assert await consumer.settle([Ack(delivery.receipt)], timeout=5) == [DONE]


@pytest.mark.parametrize("right", ["-time", "-@scripting", "-evalsha"])
async def test_a_right_that_is_missing_is_named_at_once(
    private: Callable[..., Private], right: str
) -> None:
    server = private()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", *RIGHTS, right)
    backend = RedisBackend(f"redis://app:canary-password@127.0.0.1:{server.port}", RedisOptions())
    with pytest.raises(NoPermissionError, match=r"\+time") as caught:
        await backend.open(lambda _: None)
    assert backend.classify(caught.value) is ErrorKind.DENIED
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is not caught.value


async def test_a_wrong_password_is_denied_without_telling_it(
    private: Callable[..., Private],
) -> None:
    server = private("--requirepass", "right")
    for login in (":canary-password@", "nobody:canary-password@", ""):
        backend = RedisBackend(f"redis://{login}127.0.0.1:{server.port}", RedisOptions())
        with pytest.raises(plain_redis.RedisError) as caught:
            await backend.open(lambda _: None)
        assert backend.classify(caught.value) is ErrorKind.DENIED
        assert "canary" not in str(caught.value)


# The connection


async def test_a_broken_connection_is_told_once_also_when_idle(redis_url: str) -> None:
    lost: list[Exception] = []
    told = asyncio.Event()
    backend = RedisBackend(redis_url, RedisOptions())
    await backend.open(lambda error: (lost.append(error), told.set()))
    try:
        queue = await a_queue(backend)
        consumer = await backend.subscribe(queue, prefetch=1, lease=30)
        waiting = asyncio.create_task(consumer.receive(1, 60))
        with plain_redis.Redis.from_url(redis_url) as client:
            mine = {client.client_id()}
            for found in client.client_list():
                if int(found["id"]) not in mine and found["cmd"] in {"blpop", "evalsha", "sadd"}:
                    client.client_kill_filter(_id=found["id"])
            async with asyncio.timeout(5):
                await told.wait()
                with pytest.raises(Exception, match=r"(?i)closed") as caught:
                    await waiting
        assert backend.classify(caught.value) is ErrorKind.TRANSIENT
    finally:
        await backend.close()
    assert len(lost) == 1


async def test_a_silent_server_is_noticed_within_15_s_though_nobody_asks_anything(
    private: Callable[..., Private],
) -> None:
    server, lost = private(), asyncio.Event()
    backend = RedisBackend(server.url, RedisOptions())
    await backend.open(lambda _: lost.set())
    queue = await a_queue(backend)
    server.send(signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    publishing = asyncio.create_task(backend.publish([outgoing(queue)], timeout=0.5))
    (outcome,) = await publishing
    assert isinstance(outcome, Unknown)
    async with asyncio.timeout(15):
        await lost.wait()
    began = loop.time()
    await backend.close()
    assert loop.time() - began < 2


async def test_what_cancelled_claims_bring_is_lost_to_nobody(redis_url: str) -> None:
    async with opened(redis_url) as backend, opened(redis_url) as other:
        queue = await a_queue(backend)
        names = [f"{number:03}" for number in range(100)]
        await backend.publish([outgoing(queue, name) for name in names], timeout=5)
        seen = []
        for turn in range(100):
            consumer = await backend.subscribe(queue, prefetch=1, lease=600)
            receiving = asyncio.create_task(consumer.receive(1, 5))
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            receiving.cancel()
            (got,) = await asyncio.gather(receiving, return_exceptions=True)
            if isinstance(got, list):
                seen += [it.message.id for it in got]
                await consumer.settle([Ack(it.receipt) for it in got], timeout=5)
            await consumer.close()
        rest = await other.subscribe(queue, prefetch=1000, lease=30)
        left = await rest.receive(1000, 2)
        assert sorted(seen + [it.message.id for it in left]) == names
        assert not any(it.takeovers for it in left)


async def test_a_router_and_levels_are_what_the_docs_say(redis_url: str) -> None:
    async with opened(redis_url) as backend:
        told = await backend.open(lambda _: None)
    assert {told[one].level for one in Capability} == {Level.NATIVE, Level.EMULATED}
