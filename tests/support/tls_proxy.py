"""Between a client and a real broker: a certificate authority, and a proxy that speaks TLS.

A `TlsProxy` listens on a port of this machine, with TLS or without, and forwards everything to the
broker. It counts connections: a client that is refused must not connect again and again.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

TLS = {"redis": "rediss", "amqp": "amqps"}
KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(*words: str, folder: Path) -> None:
    """Run a command of OpenSSL; skip where there is none."""
    try:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=30)  # noqa: S607 - wherever it is
    except FileNotFoundError:
        pytest.skip("OpenSSL's command is not installed")


@dataclass(frozen=True)
class Authority:
    """A private certificate authority: its own certificate is `ca`."""

    folder: Path
    ca: Path

    @classmethod
    def make(cls, folder: Path, name: str) -> Self:
        """Make one."""
        words = [
            "req",
            "-x509",
            *KEY,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
            "-subj",
            f"/CN={name}",
        ]
        extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"]
        openssl(*words, *(word for one in extensions for word in ("-addext", one)), folder=folder)
        return cls(folder, folder / f"{name}.pem")

    def certificate(
        self, name: str, *, host: str = "IP:127.0.0.1,DNS:localhost", days: int = 2
    ) -> ssl.SSLContext:
        """Return the TLS context of a server for `host`, valid for `days`; -1 is expired."""
        (self.folder / f"{name}.ext").write_text(
            f"subjectAltName={host}\nauthorityKeyIdentifier=keyid\n"
        )
        openssl(
            "req",
            *KEY,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            "/CN=broker",
            folder=self.folder,
        )
        signing = [
            "-CA",
            self.ca.name,
            "-CAkey",
            f"{self.ca.stem}.key",
            "-CAcreateserial",
            "-extfile",
            f"{name}.ext",
        ]
        files = ["-in", f"{name}.csr", "-out", f"{name}.pem", "-days", str(days)]
        openssl("x509", "-req", *signing, *files, folder=self.folder)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context


class TlsProxy:
    """A proxy to a broker.

    `connections` counts the connections that were made. `context` is the TLS of the next ones, or
    None.
    """

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        self._parts = urlsplit(url)
        self.context = context
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)

    def url(
        self,
        *,
        login: str | None = None,
        host: str = "127.0.0.1",
        path: str | None = None,
        query: str = "",
    ) -> str:
        """Return the broker's URL through this proxy, with other parts where given."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        own, at, _ = self._parts.netloc.rpartition("@")
        login = f"{own}{at}" if login is None else f"{login}@"
        scheme = self._parts.scheme if self.context is None else TLS[self._parts.scheme]
        path = self._parts.path if path is None else path
        return f"{scheme}://{login}{host}:{port}{path}{query and '?'}{query}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.context is not None:
                await writer.start_tls(self.context)
            host, port = self._parts.hostname, self._parts.port
            inside, outside = await asyncio.open_connection(host, port)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pump(reader, outside))
                    both.create_task(_pump(inside, writer))
            finally:
                outside.close()
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # a handshake that failed, or an end of either side: the client's to say
        finally:
            self._tasks.discard(task)
            writer.close()

    async def cut(self) -> None:
        """Break every connection; new ones may be made."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    async def close(self) -> None:
        """Accept no more connections."""
        assert self._server is not None
        self._server.close()
        await self.cut()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    raise ConnectionError("it has ended")
