"""A server in its own container, by testcontainers (`pip install 'mqcore[brokers]'`).

The container's port is bound to a fixed port of the host, so that the URL stays valid over a
restart. It is bound to 127.0.0.1 only, unless the Docker engine is on another machine. Where
testcontainers' reaper (Ryuk) runs, it removes what a killed test run leaves behind.
"""

from __future__ import annotations

import socket
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mqcore.contract.brokers.server import BrokerUnavailable, Server, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.contract.brokers.catalogue import Kind

__all__ = ["DockerServer"]

_HERE = ("localhost", "127.0.0.1")
_TRIES = 3
_AGAIN = 0.2
"""Seconds until a failed pause is tried again.

An engine on a busy machine may fail to freeze a container, and thaws it then.
"""
_NO_REAPER = ". This is the reaper's image; TESTCONTAINERS_RYUK_DISABLED=true disables it"
_ANYWHERE = "0.0.0.0"  # noqa: S104 - the engine is on another machine, which only its network reaches


class DockerServer(Server):
    """A server in a container."""

    provider: ClassVar[Literal["docker"]] = "docker"

    def __init__(self, kind: Kind) -> None:
        """Start nothing yet; the port is chosen at the start."""
        super().__init__(kind.name, kind.product, "127.0.0.1", 0)
        self._image = kind.image
        self._container: Any = None

    def log(self, lines: int = 15) -> str:
        """Return the last lines of the container's output."""
        try:
            return str(self._wrapped.logs(tail=lines).decode(errors="replace"))
        except Exception as error:  # noqa: BLE001 - the log is only part of another message
            return f"(its log cannot be read: {error})"

    @property
    def _wrapped(self) -> Any:
        return self._container.get_wrapped_container()

    def _make(self) -> None:
        for trial in range(_TRIES):
            try:
                self._run()
            except Exception as error:
                _close_sockets(error)
                self._stop()
                if trial + 1 == _TRIES or "port is already allocated" not in str(error):
                    hint = _NO_REAPER if "ryuk" in str(error) else ""
                    raise BrokerUnavailable(
                        f"{self._image}: {type(error).__name__}: {error}{hint}"
                    ) from error
            else:
                return

    def _run(self) -> None:
        try:
            from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - an extra, and slow to import
        except ImportError as error:
            raise BrokerUnavailable(
                "testcontainers is not installed: pip install 'mqcore[brokers]'"
            ) from error

        self._container = DockerContainer(self._image)
        host = self._container.get_docker_client().host()
        self.host = "127.0.0.1" if host in _HERE else host
        self.port = free_port()
        self.url = self.product.url(self.host, self.port)
        bound = ("127.0.0.1" if host in _HERE else _ANYWHERE, self.port)
        self._container.ports[str(self.product.port)] = bound
        self._container.with_envs(**self.product.environment)
        if self.product.command:
            self._container.with_command(list(self.product.command))
        self._container.start()

    def _start(self) -> None:
        self._wrapped.start()

    def _kill(self) -> None:
        self._wrapped.kill()
        self._wrapped.wait(timeout=30)

    def _pause(self) -> None:
        for left in reversed(range(_TRIES)):
            try:
                self._wrapped.pause()
            except Exception as error:
                if not left or "freeze" not in str(error):
                    raise
                time.sleep(_AGAIN)
            else:
                return

    def _resume(self) -> None:
        self._wrapped.unpause()

    def _run_tool(self, words: Sequence[str]) -> tuple[int, str]:
        code, output = self._wrapped.exec_run(list(words))
        return int(code), output.decode(errors="replace")

    def _stop(self) -> None:
        if self._container is not None:
            with suppress(Exception):  # the engine may have stopped, and the container with it
                self._container.stop()
            self._container = None

    def _ended(self) -> str:
        self._wrapped.reload()
        state = self._wrapped.attrs["State"]
        return "" if state["Running"] else f"ended with {state['ExitCode']}"


def _close_sockets(error: BaseException | None) -> None:
    """Close the socket that docker-py leaves in a frame of its error when it cannot connect.

    Garbage collection would report it, as an error of whatever runs at that moment.
    """
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            for value in frame.f_locals.values():
                if isinstance(value, socket.socket):
                    value.close()
        error = error.__context__
