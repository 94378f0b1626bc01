"""`ProcessServer`: any server that one command starts, for brokers outside of the catalogue."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self
from urllib.parse import urlsplit

from mqcore.contract.brokers.catalogue import Product
from mqcore.contract.brokers.probe import Identity
from mqcore.contract.brokers.processes import Command, Processes, program
from mqcore.contract.brokers.proxy import Proxy
from mqcore.contract.brokers.server import BrokerUnavailable, Server, free_port

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ProcessServer"]

_HERE = "127.0.0.1"


class ProcessServer(Server):
    """A server that runs as a child process until it is closed, with its own port and data.

        command = ["acmed", "--port", "{port}", "--data", "{folder}"]
        with ProcessServer(command, url="acme://127.0.0.1:{port}") as server:
            ...  # clients connect to server.url
            server.restart()

    In `command`, `{port}` and `{folder}` stand for the port to listen at and the folder for its
    data, which survives `restart` and is removed by `close`. Clients connect to `port`, or to
    `url`, a template with `{port}` in it. A proxy listens there and hands everything on to the
    server, so `cut` can break connections.

    `ready` is called with the server's own port until it neither raises `OSError` nor returns
    False. If it returns text, that is the server's version. By default the server is ready when it
    accepts a TCP connection. A server that listens before it serves needs a question to which only
    a working one has the answer.

    `stored` is called with that port and a message's body, and counts the messages with this body
    in the server's storage, by place: hook 10 of `Harness`, which shows that nothing of a settled
    message is left.

    Every wait has an end: 60 s for a start, 10 s for an end. `BrokerUnavailable` contains what
    was awaited and the last lines of the server's output. When the test run is interrupted or
    killed, the server and its folder go too.
    """

    provider: ClassVar[Literal["local"]] = "local"

    def __init__(
        self,
        command: Sequence[str],
        port: int = 0,
        ready: Callable[[int], object] | None = None,
        *,
        url: str = "tcp://127.0.0.1:{port}",
        stored: Callable[[int, bytes], Mapping[str, int]] | None = None,
    ) -> None:
        """Start nothing yet. Port 0 is a free one."""
        name = Path(command[0]).name
        self._command = tuple(command)
        self._asks = ready or _connect
        self._processes = Processes()
        self._proxy: Proxy | None = None
        self._inner = free_port()

        scheme = urlsplit(url).scheme
        product = Product(name, name, scheme, port, "", command[0], self._identity)
        if stored is not None:
            product = replace(product, stored=lambda _, body: stored(self._inner, body))
        super().__init__(name, product, _HERE, port or free_port())
        self.url = url.replace("{port}", str(self.port))

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _at: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port at which the server itself listens, behind the proxy."""
        return self.host, self._inner

    def log(self, lines: int = 15) -> str:
        """Return the last lines of its output."""
        return self._processes.log(lines)

    def restart(self, *, orderly: bool = False) -> None:
        """End the server and start it again with its data.

        It is ended by signal 9, as in a crash, or with `orderly` by SIGTERM. Returns when it is
        ready. Raises `BrokerUnavailable` when it does not end or does not come back in time.
        """
        if orderly:
            self.resume()
            if not self._processes.end(signal.SIGTERM):
                raise BrokerUnavailable(f"{self.name} does not end at SIGTERM\n{self.log()}")
        super().restart()

    def pause(self) -> None:
        """Stop the process: connections stay open and nothing is answered until `resume`."""
        if not self._paused:
            self._pause()
            self._paused = True

    def cut(self) -> None:
        """Reset every connection that was made to `port`, on both sides.

        New connections are accepted.
        """
        if self._proxy is not None:
            self._proxy.cut()

    def close(self) -> None:
        """End the server and remove its data. May be called in any state, and repeatedly."""
        self.stop()

    def _identity(self, _host: str, port: int, _timeout: float) -> Identity:
        """Call the author's `ready` and return an `Identity`, as for the catalogue's servers."""
        answer = self._asks(port)
        if answer is False:
            raise ConnectionError(f"{self._asks!r} returned False")
        return Identity(self.product.name, answer if isinstance(answer, str) else "")

    def _make(self) -> None:
        path = program(self.product.program)
        folder = self._processes.make_folder(f"mqcore-{self.name}-")
        values = {"{port}": str(self._inner), "{folder}": str(folder)}
        self._processes.commands = [
            Command([path, *(_filled(word, values) for word in self._command[1:])])
        ]
        self._start()
        self._proxy = Proxy(*self.address, at=self.port)

    def _start(self) -> None:
        self._processes.start()

    def _kill(self) -> None:
        self._processes.end()

    def _pause(self) -> None:
        self._processes.pause()

    def _resume(self) -> None:
        self._processes.send(signal.SIGCONT)

    def _run_tool(self, words: Sequence[str]) -> tuple[int, str]:
        raise BrokerUnavailable(
            f"{self.name}: the tools of this server are not known; run {words[0]!r} yourself"
        )

    def _stop(self) -> None:
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy = None
        self._processes.stop()

    def _ended(self) -> str:
        return self._processes.ended()


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _connect(port: int) -> None:
    socket.create_connection((_HERE, port), timeout=2.0).close()
