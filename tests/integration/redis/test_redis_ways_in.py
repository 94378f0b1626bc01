"""The other ways to a server: TLS, a local socket, Sentinel, a cluster."""

from __future__ import annotations

import asyncio
import gc
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import redis as plain_redis
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from support.waiting import eventually

from mqcore import Broker, ConfigurationError, Queue
from mqcore.contract.brokers.server import free_port
from mqcore.contract.store.cases import store_cases
from mqcore.contract.store.harness import store_of
from mqcore.contract.store.run import run_store_case
from mqcore.spi import DONE, STORED, Ack, Capability, Durability, ErrorKind, Move, Outgoing
from mqcore_redis import RedisBackend, RedisOptions

from .conftest import Private, a_queue, opened, outgoing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def serves(url: str, **options: object) -> None:
    """Send one message through."""
    async with opened(url, **options) as backend:
        queue = await a_queue(backend)
        consumer = await backend.subscribe(queue, prefetch=1, lease=30)
        waiting = asyncio.create_task(consumer.receive(1, 10))
        await asyncio.sleep(0.05)
        assert await backend.publish([outgoing(queue)], timeout=5) == [STORED]
        (delivery,) = await waiting
        assert await consumer.settle([Ack(delivery.receipt)], timeout=5) == [DONE]
        assert await backend.delete(queue)


async def test_a_local_socket(private: Callable[..., Private]) -> None:
    server = private("--unixsocket", "s.sock")
    await serves(f"unix://{server.folder}/s.sock")
    await serves(f"unix://{server.folder}/s.sock", prefix="other")


async def test_a_database_of_its_own(private: Callable[..., Private]) -> None:
    server = private()
    async with Broker.connect(f"redis://127.0.0.1:{server.port}/3") as broker:
        await broker.publish(Queue("orders"), b"x")
    with server.client() as client:
        assert set(client.info("keyspace")) == {"db3"}


async def test_a_database_of_its_own_on_a_local_socket(private: Callable[..., Private]) -> None:
    server = private("--unixsocket", "s.sock")
    async with Broker.connect(f"unix://{server.folder}/s.sock?db=3") as broker:
        await broker.publish(Queue("orders"), b"x")
        assert await broker.unwrap(Redis).get("none") is None
    with server.client() as client:
        assert set(client.info("keyspace")) == {"db3"}


async def test_nobody_there_is_told_at_once(tmp_path: Path) -> None:
    for url in (f"redis://127.0.0.1:{free_port()}", f"unix://{tmp_path}/none.sock"):
        backend = RedisBackend(url, RedisOptions())
        began = time.monotonic()
        with pytest.raises(Exception, match=r"(?i)connect|no such file") as caught:
            await backend.open(lambda _: None)
        assert backend.classify(caught.value) is ErrorKind.TRANSIENT
        assert time.monotonic() - began < 2
        await backend.close()


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, another CA, a certificate for localhost, and one that is over."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*words: str) -> None:
        subprocess.run([program, *words], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other"):
        run(
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
            "-subj",
            f"/CN={name}",
        )
    (folder / "names.txt").write_text("subjectAltName=DNS:localhost\n")
    for name, days in (("good", "2"), ("over", "-1")):
        run(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            "/CN=localhost",
        )
        signed = (
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
        )
        run(*signed, "-out", f"{name}.pem", "-days", days, "-extfile", "names.txt")
    return folder


@pytest.fixture
def tls(private: Callable[..., Private], certificates: Path) -> Callable[[str], int]:
    """Start a server with one of the certificates; its port."""

    def start(name: str) -> int:
        port = free_port()
        files = (
            "--tls-cert-file",
            f"{certificates}/{name}.pem",
            "--tls-key-file",
            f"{certificates}/{name}.key",
        )
        private(
            "--tls-port",
            str(port),
            *files,
            "--tls-ca-cert-file",
            f"{certificates}/ca.pem",
            "--tls-auth-clients",
            "no",
        )
        return port

    return start


async def test_tls_with_a_private_ca(tls: Callable[[str], int], certificates: Path) -> None:
    port = tls("good")
    await serves(f"rediss://localhost:{port}", cafile=certificates / "ca.pem")
    await serves(
        f"rediss://127.0.0.1:{port}", cafile=certificates / "ca.pem", server_name="localhost"
    )


@pytest.mark.parametrize(
    ("certificate", "host", "ca"),
    [
        ("good", "localhost", "other"),
        ("good", "localhost", None),
        ("good", "127.0.0.1", "ca"),
        ("over", "localhost", "ca"),
    ],
    ids=["another-ca", "no-ca", "wrong-host", "expired"],
)
async def test_a_certificate_that_proves_nothing_is_denied(
    tls: Callable[[str], int], certificates: Path, certificate: str, host: str, ca: str | None
) -> None:
    options = RedisOptions(cafile=certificates / f"{ca}.pem" if ca else None)
    backend = RedisBackend(f"rediss://:canary-password@{host}:{tls(certificate)}", options)
    with pytest.raises(plain_redis.RedisError, match="certificate") as caught:
        await backend.open(lambda _: None)
    assert backend.classify(caught.value) is ErrorKind.DENIED
    assert "canary" not in str(caught.value)
    assert ("cafile" in str(caught.value)) == (ca != "ca")


async def test_tls_to_a_plain_port_says_so(private: Callable[..., Private]) -> None:
    backend = RedisBackend(
        f"rediss://127.0.0.1:{private().port}", RedisOptions(connect_timeout=0.5)
    )
    with pytest.raises(plain_redis.TimeoutError, match="does this port speak TLS") as caught:
        await backend.open(lambda _: None)
    assert backend.classify(caught.value) is ErrorKind.TRANSIENT


def test_a_silent_tls_peer_neither_holds_up_a_close_nor_leaves_a_transport_to_its_loop(
    private: Callable[..., Private], certificates: Path, recwarn: pytest.WarningsRecorder
) -> None:
    port = free_port()
    files = (
        "--tls-cert-file",
        f"{certificates}/good.pem",
        "--tls-key-file",
        f"{certificates}/good.key",
    )
    others = ("--tls-auth-clients", "no", "--tls-ca-cert-file", f"{certificates}/ca.pem")
    server = private("--tls-port", str(port), *files, *others)

    async def open_and_close() -> float:
        backend = RedisBackend(
            f"rediss://localhost:{port}", RedisOptions(cafile=certificates / "ca.pem")
        )
        await backend.open(lambda _: None)
        consumer = await backend.subscribe(await a_queue(backend), prefetch=1, lease=30)
        waiting = asyncio.create_task(consumer.receive(1, 60))
        await asyncio.sleep(0.2)
        server.send(signal.SIGSTOP)
        began = time.monotonic()
        await backend.close()
        assert await waiting == []
        return time.monotonic() - began

    assert asyncio.run(open_and_close()) < 2
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


# Sentinel


async def test_sentinel_names_the_master_and_the_next_one(
    private: Callable[..., Private], tmp_path: Path
) -> None:
    old, new = private("--appendonly", "yes"), private("--appendonly", "yes")
    with new.client() as client:
        client.replicaof("127.0.0.1", old.port)
    port = free_port()
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor shop 127.0.0.1 {old.port} 1\n"
        "sentinel down-after-milliseconds shop 500\nsentinel failover-timeout shop 2000\n"
    )
    program = shutil.which("redis-server") or "redis-server"
    sentinel = await asyncio.create_subprocess_exec(
        program, settings, "--sentinel", stdout=subprocess.DEVNULL
    )
    try:
        with plain_redis.Redis(port=port) as client:
            await _until(client, 1)
        lost = asyncio.Event()
        backend = RedisBackend(
            f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/0",
            RedisOptions(master="shop"),
        )
        await backend.open(lambda _: lost.set())
        queue = await a_queue(backend)
        assert await backend.publish([outgoing(queue)], timeout=5) == [STORED]
        with new.client() as client:
            await eventually(lambda: client.exists(f"mq:{{{queue}}}:m"), 15)
        old.send(signal.SIGKILL)
        async with asyncio.timeout(20):
            await lost.wait()
            while True:
                try:
                    await backend.open(lambda _: None)
                except plain_redis.RedisError:
                    await asyncio.sleep(0.1)
                else:
                    break
        (count,) = await backend.count([queue])
        assert count.ready == 1
        await backend.close()
    finally:
        sentinel.kill()
        await sentinel.wait()


async def _until(client: plain_redis.Redis, replicas: int) -> None:
    async with asyncio.timeout(15):
        while True:
            try:
                found = client.sentinel_master("shop")
            except plain_redis.RedisError:
                found = {}
            if found.get("num-slaves") == replicas:
                return
            await asyncio.sleep(0.1)


async def test_a_master_that_sentinel_does_not_know(private: Callable[..., Private]) -> None:
    plain = private()
    backend = RedisBackend(f"redis+sentinel://127.0.0.1:{plain.port}", RedisOptions(master="shop"))
    with pytest.raises(plain_redis.RedisError):
        await backend.open(lambda _: None)


# Cluster


@pytest.fixture(params=[3])
def cluster(private: Callable[..., Private], request: pytest.FixtureRequest) -> list[Private]:
    """Three masters that share the slots, or as many as a test asks for."""
    buses = [free_port() for _ in range(request.param)]
    nodes = [
        private("--cluster-enabled", "yes", "--appendonly", "yes", "--cluster-port", str(bus))
        for bus in buses
    ]
    clients = [node.client() for node in nodes]
    bounds = [16384 * number // len(nodes) for number in range(len(nodes) + 1)]
    for client, first, after in zip(clients, bounds[:-1], bounds[1:], strict=True):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, after - 1)
    for node, bus in zip(nodes[1:], buses[1:], strict=True):
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if all(client.cluster("INFO")["cluster_state"] == "ok" for client in clients):  # type: ignore[no-untyped-call]  # redis-py
            break
        time.sleep(0.05)
    for client in clients:
        client.close()
    return nodes


async def test_a_cluster_serves_queues_of_many_slots(cluster: list[Private]) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster[0].port},127.0.0.1:{cluster[1].port}"
    async with opened(url) as backend:
        told = await backend.open(lambda _: None)
        assert told[Capability.ATOMIC_MOVE].limits == {"across_slots": "publish, then ack"}
        queues = [await a_queue(backend) for _ in range(12)]
        consumers = [await backend.subscribe(queue, prefetch=10, lease=30) for queue in queues]
        waiting = [asyncio.create_task(consumer.receive(10, 10)) for consumer in consumers]
        await asyncio.sleep(0.2)
        outcomes = await backend.publish([outgoing(queue, queue) for queue in queues], timeout=5)
        assert outcomes == [STORED] * 12
        got = await asyncio.gather(*waiting)
        assert [[it.message.id for it in page] for page in got] == [[queue] for queue in queues]
        counts = await backend.count()
        assert {count.name for count in counts if count.role == "work"} == set(queues)
        here, there = queues[0], next(queue for queue in queues[1:])
        for queue, page, consumer in zip(queues, got, consumers, strict=True):
            (delivery,) = page
            target = there if queue == here else f"{queue}.dlq"
            move = Move(delivery.receipt, Outgoing(target, delivery.message.moved(queue)))
            assert await consumer.settle([move], timeout=5) == [DONE]
        (count,) = await backend.count([there])
        assert count.ready == 1


async def test_a_cluster_serves_a_task_store(cluster: list[Private]) -> None:
    make_store = store_of(f"redis+cluster://127.0.0.1:{cluster[0].port}?tag=shop")
    for case in store_cases():
        await run_store_case(case, make_store)


async def test_a_node_of_a_cluster_is_no_server_by_itself(cluster: list[Private]) -> None:
    backend = RedisBackend(cluster[0].url, RedisOptions())
    with pytest.raises(ConfigurationError, match=r"redis\+cluster://"):
        await backend.open(lambda _: None)


async def test_a_user_of_the_documented_rights_gets_into_a_cluster(cluster: list[Private]) -> None:
    for node in cluster:
        with node.client() as client:
            rights = (
                "~mq:* +@read +@write +@scripting +@connection +time +info +config|get "
                "+cluster|slots"
            )
            client.execute_command("ACL", "SETUSER", "app", "on", ">secret", *rights.split())
    await serves(f"redis+cluster://app:secret@127.0.0.1:{cluster[0].port}")


async def test_a_move_across_slots_that_is_tried_again_stores_one_successor(
    cluster: list[Private],
) -> None:
    """A crash between the two steps: the successor is stored, its source is not let go of."""
    async with opened(f"redis+cluster://127.0.0.1:{cluster[2].port}") as backend:
        source, target = await a_queue(backend), await a_queue(backend)
        await backend.publish([outgoing(source, "a")], timeout=5)
        consumer = await backend.subscribe(source, prefetch=1, lease=30)
        (delivery,) = await consumer.receive(1, 5)
        move = Move(delivery.receipt, Outgoing(target, delivery.message.moved(source)))
        assert await backend.publish([move.to], timeout=5) == [STORED]
        assert await consumer.settle([move], timeout=5) == [DONE]
        (count,) = await backend.count([target])
        assert count.ready == 1


async def test_with_a_tag_all_queues_share_a_slot(cluster: list[Private]) -> None:
    async with opened(f"redis+cluster://127.0.0.1:{cluster[0].port}", tag="shop") as backend:
        source, target = (
            await a_queue(backend),
            await a_queue(backend, max_length=1, overflow="dead_letter"),
        )
        assert (
            await backend.publish([outgoing(source), outgoing(target), outgoing(target)], timeout=5)
            == [STORED] * 3
        )
        (count,) = await backend.count([f"{target}.dlq"])
        assert count.ready == 1


@pytest.mark.parametrize("cluster", [1], indirect=True)
async def test_a_cluster_may_have_one_master(cluster: list[Private]) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster[0].port}"
    await serves(url)
    async with opened(url) as backend:
        told = await backend.open(lambda _: None)
    assert told.server.startswith("Redis ")
    assert told.durability is Durability.PROCESS


async def test_a_cluster_that_shows_half_of_itself_is_judged_by_its_weakest_node(
    cluster: list[Private],
) -> None:
    """CONFIG is denied everywhere; INFO of each node tells whether it keeps anything."""
    clients = [node.client() for node in cluster]
    for client in clients:
        rights = "~mq:* +@read +@write +@scripting +@connection +time +info +cluster|slots"
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", *rights.split())
    url = f"redis+cluster://app:secret@127.0.0.1:{cluster[0].port}"
    found = []
    for client in clients:
        client.config_set("appendonly", "no")
        async with opened(url) as backend:
            found.append((await backend.open(lambda _: None)).durability)
        client.config_set("appendonly", "yes")
        client.close()
    assert found == [Durability.MEMORY] * 3


async def test_the_client_of_a_cluster(cluster: list[Private]) -> None:
    async with Broker.connect(f"redis+cluster://127.0.0.1:{cluster[0].port}") as broker:
        client = broker.unwrap(RedisCluster)
        await client.set("theirs", "1")
        assert await client.get("theirs") == b"1"
        with pytest.raises(ConfigurationError, match="RedisCluster"):
            broker.unwrap(Redis)
