"""A server under test, and what a test may do to it: kill, start, silence.

A provider (`docker`, `local`, `url`) implements it. What they share is here: every wait is bounded,
and an error contains the last lines of the server's log.
"""

from __future__ import annotations

import atexit
import random
import socket
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.contract.brokers.catalogue import Product

__all__ = ["BrokerUnavailable", "Server", "free_port"]

_STARTS_WITHIN = 60.0
"""Seconds. RabbitMQ boots in 3 to 5 s, on a busy machine in more."""
_ENDS_WITHIN = 10.0
_QUESTION = 2.0
_BETWEEN = 0.05
_QUESTIONS, _SILENT = 20, 0.2
"""How often a silenced server is asked whether it still answers, and the seconds per question."""
_LINES = 15
_PORTS = range(20000, 30000)
"""Below the range for outgoing connections: while a server is down, its port must stay free."""
_CHANCE = random.SystemRandom()
"""Its own generator: parallel test runs may have set the common one to the same seed."""


class BrokerUnavailable(Exception):
    """A broker is not available: which one, why, and the last lines of its log."""


class Server(ABC):
    """A running server. `url` stays the same over a restart; `version` is what it reports.

    Methods block, and return when the action is done. They raise `BrokerUnavailable` when the
    server does not come (back) in time.
    """

    provider: ClassVar[Literal["docker", "local", "url"]]
    controllable: ClassVar[bool] = True
    """Whether it may be killed; a server that was given by its URL may not."""

    def __init__(self, name: str, product: Product, host: str, port: int) -> None:
        """Start nothing yet."""
        self.name, self.product, self.host, self.port = name, product, host, port
        self.url = product.url(host, port)
        self.version = ""
        self.started_in = 0.0
        """Seconds until it first accepted connections."""
        self._paused = False

    def __repr__(self) -> str:
        return f"<{self.title} as {self.name}, {self.provider}>"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port at which the server itself listens."""
        return self.host, self.port

    @property
    def title(self) -> str:
        """Product and version."""
        return f"{self.product.name} {self.version}".rstrip()

    def open(self) -> None:
        """Create and start it, and wait until it accepts connections.

        It is stopped when this process ends, at the latest.
        """
        began = time.monotonic()
        atexit.register(self.stop)
        try:
            self._make()
            self._wait("its start")
        except BaseException:
            self.stop()
            raise
        self.started_in = time.monotonic() - began

    def start(self) -> None:
        """Start it again after `kill`, with its data, and wait until it accepts connections."""
        self._start()
        self._wait("its restart")

    def kill(self) -> None:
        """Kill it (signal 9), as in a crash; its data stays."""
        self.resume()
        self._kill()
        deadline = time.monotonic() + _ENDS_WITHIN

        while time.monotonic() < deadline:
            try:
                socket.create_connection(self.address, timeout=_QUESTION).close()
            except OSError:
                return
            time.sleep(_BETWEEN)

        raise BrokerUnavailable(
            f"{self.name} ({self.provider}) accepts connections {_ENDS_WITHIN:g} s after it was "
            "killed"
        )

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Silence it: connections stay open, its machine accepts new ones, nothing is answered.

        Returns when it is silent: a process that was asked to stop may run for some milliseconds.
        """
        if not self._paused:
            self._pause()
            self._paused = True
            for _ in range(_QUESTIONS):
                try:
                    self.product.ask(*self.address, _SILENT)
                except OSError:
                    return

    def resume(self) -> None:
        """Let it answer again."""
        if self._paused:
            self._resume()
            self._paused = False

    def run(self, *words: str) -> str:
        """Run a tool of the server, such as `rabbitmqctl` or `redis-cli`; return its output.

        Raises `BrokerUnavailable` with the output when the tool fails.
        """
        code, output = self._run_tool(words)
        if code:
            raise BrokerUnavailable(f"{self.name}: {words[0]} ended with {code}: {output.strip()}")
        return output

    def stop(self) -> None:
        """End it, and remove its data. May be called in any state, and repeatedly."""
        atexit.unregister(self.stop)
        with suppress(Exception):  # a server that cannot be resumed is ended anyway
            self.resume()
        self._stop()

    @abstractmethod
    def log(self, lines: int = _LINES) -> str:
        """Return the last lines of its log."""

    @abstractmethod
    def _make(self) -> None: ...

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _kill(self) -> None: ...

    @abstractmethod
    def _pause(self) -> None: ...

    @abstractmethod
    def _resume(self) -> None: ...

    @abstractmethod
    def _run_tool(self, words: Sequence[str]) -> tuple[int, str]: ...

    @abstractmethod
    def _stop(self) -> None: ...

    def _ended(self) -> str:
        """Return how it has ended; empty while it runs."""
        return ""

    def _wait(self, after: str) -> None:
        """Return when it accepts connections and reports its version."""
        deadline = time.monotonic() + _STARTS_WITHIN
        why: object = "it did not answer"
        while time.monotonic() < deadline:
            if ended := self._ended():
                raise BrokerUnavailable(
                    f"{self.name} ({self.provider}) {ended} after {after}\n{self.log()}"
                )
            try:
                identity = self.product.ask(*self.address, _QUESTION)
            except OSError as error:
                why = error
                time.sleep(_BETWEEN)
                continue
            if identity.product != self.product.name:
                raise BrokerUnavailable(
                    f"{self.name}: {identity.product} {identity.version} uses port {self.port}"
                )
            self.version = identity.version
            return

        raise BrokerUnavailable(
            f"{self.name} ({self.provider}) did not accept connections within "
            f"{_STARTS_WITHIN:g} s of {after}: {why}\n{self.log()}"
        )


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is not in use, outside of the range for outgoing connections."""
    for port in _CHANCE.sample(_PORTS, 200):
        with socket.socket() as trial, suppress(OSError):
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
            return port
    raise BrokerUnavailable(f"no free port between {_PORTS.start} and {_PORTS.stop}")
