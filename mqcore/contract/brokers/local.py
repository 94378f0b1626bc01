"""A private instance of a server that is installed on this machine.

It uses free ports, 127.0.0.1 only, and a temporary folder for data; it shares nothing with an
instance of the system. Redis and Valkey are one process. RabbitMQ gets its own node name, cookie
and port mapper (epmd), runs as the user of the tests, and ignores the configuration in /etc.
PostgreSQL refuses to run as root, so root's tests run it as a user without rights. Each process
leads its own process group, so that signals reach its children.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from mqcore.contract.brokers.catalogue import (
    POSTGRESQL_SETTINGS,
    RABBITMQ_SETTINGS,
    REDIS_SETTINGS,
)
from mqcore.contract.brokers.processes import Command, Processes, program
from mqcore.contract.brokers.server import BrokerUnavailable, Server, free_port

if TYPE_CHECKING:
    from mqcore.contract.brokers.catalogue import Product

__all__ = ["LocalServer"]

_HERE = "127.0.0.1"
_UNPRIVILEGED = 65534
_TOOL = 30.0
"""Seconds that a tool of the server may take. RabbitMQ's start a virtual machine each."""
_RABBITMQ_ITSELF = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's command in /usr/sbin requires a certain user; the script behind it does not."""


class LocalServer(Server):
    """A private instance of an installed server."""

    provider: ClassVar[Literal["local"]] = "local"

    def __init__(self, name: str, product: Product) -> None:
        """Start nothing yet."""
        super().__init__(name, product, _HERE, free_port())
        self._processes = Processes()

    def log(self, lines: int = 15) -> str:
        """Return the last lines of its output."""
        return self._processes.log(lines)

    def _make(self) -> None:
        path = program(self.product.program)
        folder = self._processes.make_folder(f"mqcore-{self.product.slug}-")
        if self.product.slug == "rabbitmq":
            self._processes.commands = _rabbitmq(path, folder, self.port)
        elif self.product.slug == "postgresql":
            self._processes.commands = [_postgresql(path, folder, self.port)]
        else:
            self._processes.commands = [_redis(path, folder, self.port)]
        self._start()

    def _start(self) -> None:
        self._processes.start()

    def _kill(self) -> None:
        self._processes.end()

    def _pause(self) -> None:
        self._processes.pause()

    def _resume(self) -> None:
        self._processes.send(signal.SIGCONT)

    def _run_tool(self, words: Sequence[str]) -> tuple[int, str]:
        # Debian's commands in /usr/sbin require a certain user.
        beside = _RABBITMQ_ITSELF.with_name(words[0])
        path = str(beside) if beside.is_file() else program(words[0])
        environment = {**os.environ, **self._processes.commands[-1].environment}
        done = subprocess.run(  # noqa: S603 - a tool of the servers of the catalogue, named by a test
            [path, *words[1:]],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TOOL,
            check=False,
        )

        return done.returncode, done.stdout + done.stderr

    def _stop(self) -> None:
        self._processes.stop()  # its data is deleted, so an orderly end is not needed

    def _ended(self) -> str:
        return self._processes.ended()


def _redis(path: str, folder: Path, port: int) -> Command:
    return Command(
        [path, "--bind", _HERE, "--port", str(port), "--dir", str(folder), *REDIS_SETTINGS]
    )


def _rabbitmq(path: str, folder: Path, port: int) -> list[Command]:
    """Return epmd, which stays our child, and the server.

    The variables are those of rabbitmq.com/docs/configure#supported-environment-variables.
    """
    script = str(_RABBITMQ_ITSELF) if _RABBITMQ_ITSELF.is_file() else path
    mapper, cluster = str(free_port()), str(free_port())
    erlang = {"HOME": str(folder), "ERL_EPMD_ADDRESS": _HERE, "ERL_EPMD_PORT": mapper}
    # A missing file, so that the configuration of the system is not read.
    none = str(folder / "none")
    variables = {
        "NODENAME": f"mqcore{port}@localhost",
        "NODE_IP_ADDRESS": _HERE,
        "NODE_PORT": str(port),
        "DIST_PORT": cluster,
        "MNESIA_BASE": str(folder / "data"),
        "LOG_BASE": str(folder / "log"),
        "LOGS": "-",
        "CONF_ENV_FILE": none,
        "CONFIG_FILE": none,
        "ADVANCED_CONFIG_FILE": none,
        "ENABLED_PLUGINS_FILE": none,
        "SERVER_ADDITIONAL_ERL_ARGS": (
            f"{RABBITMQ_SETTINGS} -kernel inet_dist_use_interface {{127,0,0,1}}"
        ),
    }

    return [
        Command([program("epmd"), "-port", mapper, "-address", _HERE], erlang),
        Command(
            [script], {**erlang, **{f"RABBITMQ_{name}": value for name, value in variables.items()}}
        ),
    ]


def _postgresql(path: str, folder: Path, port: int) -> Command:
    """Make a database, and return the server. Every user of this machine may connect to it."""
    data, as_other = folder / "data", list[str]()
    if os.geteuid() == 0:
        number = str(_UNPRIVILEGED)
        as_other = [program("setpriv"), "--reuid", number, "--regid", number, "--clear-groups"]
        os.chown(folder, _UNPRIVILEGED, _UNPRIVILEGED)

    make = [str(Path(path).with_name("initdb")), "-D", str(data), "-U", "postgres"]
    options = ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
    made = subprocess.run(  # noqa: S603 - the server's own tool
        [*as_other, *make, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_TOOL,
        check=False,
    )
    if made.returncode:
        raise BrokerUnavailable(f"initdb ended with {made.returncode}: {made.stderr.strip()}")

    listening = ("-c", f"listen_addresses={_HERE}", "-c", "unix_socket_directories=")
    words = [path, "-D", str(data), "-p", str(port), *listening, *POSTGRESQL_SETTINGS]
    client = {"PGHOST": _HERE, "PGPORT": str(port), "PGUSER": "postgres"}
    return Command([*as_other, *words], client)
