"""The providers' servers, by plain clients: a kill keeps data, a pause is silent, none is left."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
import redis

from mqcore.contract import all_cases
from mqcore.contract.brokers import Brokers, BrokerUnavailable, Server, ServerHarness
from mqcore.contract.brokers.local import LocalServer

pytestmark = pytest.mark.timeout(120)

PLACES = [(name, provider) for name in ("redis", "rabbitmq") for provider in ("docker", "local")]


@pytest.fixture(params=PLACES, ids="-".join)
def server(
    request: pytest.FixtureRequest, broker_server: Callable[..., Server]
) -> Iterator[Server]:
    name, provider = request.param
    found = broker_server(name, provider=provider)
    yield found
    found.resume()


def write(server: Server) -> None:
    """Store something, and check that it is confirmed."""
    if server.product.scheme == "redis":
        with redis.Redis.from_url(server.url) as client:
            client.set("written", "before")
        return
    with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("written", durable=True)
        kept = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
        channel.basic_publish("", "written", b"before", kept, mandatory=True)


def read(server: Server) -> bytes | None:
    """Delete what was stored."""
    if server.product.scheme == "redis":
        with redis.Redis.from_url(server.url) as client:
            found: bytes | None = client.getdel("written")
            return found
    with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
        _, _, body = connection.channel().basic_get("written", auto_ack=True)
        return body


def answers(server: Server, within: float = 1.0) -> bool:
    try:
        return server.product.ask(server.host, server.port, within).product == server.product.name
    except OSError:
        return False


def test_what_was_confirmed_survives_a_restart_and_so_does_the_url(server: Server) -> None:
    url = server.url
    write(server)
    server.restart()
    assert server.url == url
    assert read(server) == b"before"


def test_a_killed_server_refuses_and_a_started_one_answers(server: Server) -> None:
    server.kill()
    try:
        with pytest.raises(ConnectionError):
            socket.create_connection((server.host, server.port), timeout=5)
    finally:
        server.start()
    assert answers(server, 10)


def test_a_paused_server_accepts_connections_and_is_silent(server: Server) -> None:
    with socket.create_connection((server.host, server.port)) as before:
        server.pause()
        server.pause()  # twice is once
        with socket.create_connection((server.host, server.port), timeout=5) as silent:
            silent.settimeout(0.5)
            silent.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                silent.recv(1)
        server.resume()
        assert before.fileno() >= 0
    assert answers(server, 10)


def test_the_servers_tools_can_be_run(server: Server) -> None:
    ping = ["redis-cli", "-p", "6379" if server.provider == "docker" else str(server.port), "ping"]
    words = ping if server.product.scheme == "redis" else ["rabbitmqctl", "list_vhosts", "--quiet"]
    assert server.run(*words).split()[-1] in {"PONG", "/"}
    with pytest.raises(BrokerUnavailable, match="ended with"):
        server.run(words[0], "--no-such-option")


def test_a_paused_server_can_be_killed(server: Server) -> None:
    server.pause()
    server.restart()
    assert answers(server, 10)


def test_only_this_machine_reaches_it(server: Server) -> None:
    assert server.host == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        # Sends nothing, but finds out the address of outgoing packets.
        found.connect(("192.0.2.1", 9))
        own = found.getsockname()[0]
    if own == "127.0.0.1":
        pytest.skip("this machine has no other address")
    with pytest.raises(ConnectionError):
        socket.create_connection((own, server.port), timeout=5)


def test_a_name_is_started_once_and_a_product_uses_what_runs() -> None:
    with Brokers("local") as brokers:
        try:
            one = brokers.server("redis")
        except BrokerUnavailable as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(error))
        assert brokers.server("redis") is one
        assert brokers.server(f"redis-{one.version.partition('.')[0]}") is one
        assert brokers.servers == [one]
        with pytest.raises(BrokerUnavailable, match=r"it is Redis \d.*, not redis-[78]"):
            brokers.server("redis-8" if one.version.startswith("7") else "redis-7")
    assert not answers(one)


def test_a_local_server_leaves_no_process_and_no_file() -> None:
    with Brokers("local") as brokers:
        try:
            server = brokers.server("rabbitmq")
        except BrokerUnavailable as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(error))
        assert isinstance(server, LocalServer)
        folder, pids = (
            server._processes.folder,
            [process.pid for process in server._processes.running],
        )
        assert folder is not None
        assert folder.is_dir()
    assert not folder.exists()
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()
    assert not answers(server)


def test_a_server_that_does_not_start_is_an_error_with_its_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mqcore.contract.brokers.local.REDIS_SETTINGS", ("--no-such-setting", "1"))
    with Brokers("local") as brokers:
        with pytest.raises(BrokerUnavailable) as caught:
            brokers.server("redis")
        if "not installed" in str(caught.value):
            pytest.skip(str(caught.value))
        assert "ended with 1 after its start" in str(caught.value)
        assert "no-such-setting" in str(caught.value)


async def test_the_harness_has_the_hooks_that_its_server_allows(server: Server) -> None:
    option = "tag=contract" if server.product.scheme == "redis" else "durability=machine"
    harness = ServerHarness(server, option)
    assert harness.url == f"{server.url}?{option}"
    assert harness.server_version() == f"{server.product.name} {server.version}"
    assert [hook for case in all_cases() for hook in case.hooks if not harness.has(hook)] == []
    silence = harness.cut()
    assert silence is not None
    async with silence:
        assert not answers(server, 0.5)
    await harness.restart()
    assert answers(server)


def test_a_server_given_by_url_is_used_and_not_controlled(server: Server) -> None:
    with Brokers("url", [f"{server.product.slug}={server.url}"]) as brokers:
        given = brokers.server(server.product.slug)
        assert (given.url, given.version, given.controllable) == (server.url, server.version, False)
        for touch in (
            given.kill,
            given.start,
            given.pause,
            given.restart,
            lambda: given.run("redis-cli", "ping"),
        ):
            with pytest.raises(TypeError, match="so it cannot be killed"):
                touch()
        assert {hook for hook in ("restart", "cut", "kill") if ServerHarness(given).has(hook)} == {
            "kill"
        }
    assert answers(server)


def test_a_tool_beside_the_server_is_run(server: Server) -> None:
    if server.product.scheme == "redis":
        asked, answer = (
            ("redis-cli", "-p", str(server.port if server.provider == "local" else 6379), "ping"),
            "PONG",
        )
    else:
        asked, answer = ("rabbitmqctl", "list_vhosts"), "/"
    assert answer in server.run(*asked)
    with pytest.raises(BrokerUnavailable, match=f"{asked[0]} ended with"):
        server.run(asked[0], "--no-such-option")
