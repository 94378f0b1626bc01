"""Private Redis servers, for tests that configure, fill, demote or stop their server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import redis as plain_redis

from mqcore.contract.brokers.server import free_port
from mqcore.spi import Message, Outgoing, QueueSpec, new_id
from mqcore_redis import RedisBackend, RedisOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

PATIENCE = 30.0


class Private:
    """One server process in a folder of its own."""

    def __init__(
        self, program: str, folder: Path, words: tuple[str, ...], port: int | None = None
    ) -> None:
        self.port = port or free_port()
        self.folder = folder
        self._words = [program, *words, "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> plain_redis.Redis:
        return plain_redis.Redis(port=self.port, socket_timeout=5)

    def start(self, *, plain: bool = True) -> None:
        """Start it; with `plain` wait until it answers at its port, which one with TLS does not."""
        words = [*self._words, *(("--port", str(self.port)) if plain else ())]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while plain and time.monotonic() < deadline:
            with self.client() as client:
                try:
                    client.ping()
                except plain_redis.AuthenticationError:
                    return
                except plain_redis.RedisError:
                    time.sleep(0.02)
                else:
                    return
        assert not plain, (
            f"redis-server at port {self.port} did not answer, exit code {self.process.poll()}"
        )

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.send(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Callable[..., Private]]:
    """A function that starts a server with these words on its command line."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    servers: list[Private] = []

    def start(*words: str, plain: bool = True) -> Private:
        folder = tmp_path / f"server-{len(servers)}"
        folder.mkdir()
        servers.append(Private(program, folder, words))
        servers[-1].start(plain=plain)
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@asynccontextmanager
async def opened(url: str, **options: object) -> AsyncIterator[RedisBackend]:
    """An open driver whose connection must not break."""
    lost: list[Exception] = []
    backend = RedisBackend(url, RedisOptions.model_validate(options))
    await backend.open(lost.append)
    try:
        yield backend
        assert not lost
    finally:
        await backend.close()


async def a_queue(backend: RedisBackend, **settings: object) -> str:
    """Declare a work queue and its dead-letter queue."""
    name = f"t.{new_id()[:12]}"
    spec = QueueSpec(name=name, dead_letter=f"{name}.dlq", **settings)  # type: ignore[arg-type]  # fields of the spec
    await backend.declare([spec, QueueSpec(name=f"{name}.dlq", role="dead_letter")])
    return name


def outgoing(
    queue: str, name: str | None = None, body: bytes = b"body", delay: float = 0.0
) -> Outgoing:
    return Outgoing(queue, Message(id=name or new_id(), body=body), delay)
