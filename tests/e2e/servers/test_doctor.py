"""What `mqcore doctor` reports about real servers: the right words, no password, no long wait."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import redis as plain_redis

from mqcore.contract.brokers.server import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mqcore.contract.brokers import Server

CANARY = "canary-password"


def doctor(url: str) -> tuple[int, dict[str, object], str]:
    """Run the command as a user would: exit code, its JSON, and its text."""
    command = [sys.executable, "-m", "mqcore", "doctor", url]
    for_people = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    for_programs = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    told = for_people.stdout + for_people.stderr
    assert CANARY not in told + for_programs.stdout + for_programs.stderr
    assert "Traceback" not in told
    return for_people.returncode, json.loads(for_programs.stdout), told


@pytest.fixture
def redis_server(broker_server: Callable[[str], Server]) -> Server:
    return broker_server("redis")


@pytest.fixture
def configured(redis_server: Server) -> Iterator[plain_redis.Redis]:
    """Redis, whose configuration a test may change."""
    with plain_redis.Redis(port=redis_server.port) as client:
        before = {
            name: client.config_get(name)[name]
            for name in ("appendonly", "maxmemory", "maxmemory-policy", "requirepass")
        }
        yield client
        for name, value in before.items():
            client.config_set(name, value)


def test_a_healthy_redis(redis_server: Server) -> None:
    code, data, told = doctor(redis_server.url)
    assert (code, data["ok"], data["durability"]) == (0, True, "machine"), told
    assert "Redis" in str(data["server"])
    assert "appendfsync" in told


def test_a_redis_that_keeps_nothing(redis_server: Server, configured: plain_redis.Redis) -> None:
    configured.config_set("appendonly", "no")
    _, data, told = doctor(redis_server.url)
    assert data["durability"] == "memory", told
    assert "appendonly" in told


def test_a_redis_that_evicts(redis_server: Server, configured: plain_redis.Redis) -> None:
    configured.config_set("maxmemory", "1gb")
    configured.config_set("maxmemory-policy", "allkeys-lru")
    code, data, told = doctor(redis_server.url)
    assert (code, data["durability"]) == (1, "memory"), told
    assert any("noeviction" in problem for problem in data["problems"])  # type: ignore[attr-defined]  # a list of text


def test_a_wrong_redis_password(redis_server: Server, configured: plain_redis.Redis) -> None:
    configured.config_set("requirepass", "right")
    configured.execute_command("AUTH", "right")  # this connection goes on
    code, data, told = doctor(redis_server.url.replace("://", f"://:{CANARY}@"))
    assert (code, data["connected"]) == (1, False)
    assert "password" in told or "denied" in told, told
    assert "no answer" not in told, "it has tried again until its patience was over"


def test_a_healthy_rabbitmq(broker_server: Callable[[str], Server]) -> None:
    code, data, told = doctor(broker_server("rabbitmq").url)
    assert (code, data["ok"]) == (0, True), told
    assert "RabbitMQ" in str(data["server"])


def test_a_wrong_rabbitmq_password(broker_server: Callable[[str], Server]) -> None:
    url = broker_server("rabbitmq").url.replace("guest:guest", f"guest:{CANARY}")
    code, data, told = doctor(url)
    assert (code, data["connected"]) == (1, False)
    assert "password" in told or "denied" in told, told
    assert "no answer" not in told, "it has tried again until its patience was over"


def test_a_rabbitmq_with_a_memory_alarm(broker_server: Callable[[str], Server]) -> None:
    server = broker_server("rabbitmq")
    server.run("rabbitmqctl", "set_vm_memory_high_watermark", "absolute", "1000000")
    try:
        code, data, told = doctor(server.url)
    finally:
        server.run("rabbitmqctl", "set_vm_memory_high_watermark", "absolute", "1073741824")
    assert (code, data["connected"]) == (1, True), told
    assert "alarm" in told


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_closed_port(scheme: str) -> None:
    port = free_port()
    code, data, told = doctor(f"{scheme}://user:{CANARY}@127.0.0.1:{port}/")
    assert (code, data["connected"]) == (1, False)
    assert str(port) in told
    assert "nothing listens: the connection was refused" in told, told
