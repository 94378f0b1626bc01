"""A private instance of a server that is installed on this machine: free ports, 127.0.0.1 only, data in a temporary folder.

It has nothing in common with an instance that the system runs. Redis and Valkey are one process. RabbitMQ gets a node name, a
cookie and a port mapper (epmd) of its own, is run as whoever runs the tests, and without the configuration in /etc. Each process
leads a group of its own, so that signals reach what it has started.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar, Literal

from mqcore.contract.brokers.catalogue import RABBITMQ_SETTINGS, REDIS_SETTINGS
from mqcore.contract.brokers.server import BrokerUnavailable, Server, free_port

if TYPE_CHECKING:
    from mqcore.contract.brokers.catalogue import Product

__all__ = ["LocalServer"]

_HERE = "127.0.0.1"
_ENDS_WITHIN = 10.0
_TOOL = 30.0
"""Seconds that a tool of the server may take; RabbitMQ's start a virtual machine of their own."""
_MORE_PLACES = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/opt/homebrew/sbin", "/usr/local/opt/rabbitmq/sbin")
"""Where servers stand that an ordinary user's PATH may not have."""
_RABBITMQ_ITSELF = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's command in /usr/sbin insists on a user of its own; the script behind it does not."""


@dataclass(frozen=True)
class _Command:
    """A process to start: its words, and what it needs in its environment beside ours."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class LocalServer(Server):
    """A private instance of an installed server."""

    provider: ClassVar[Literal["local"]] = "local"

    def __init__(self, name: str, product: Product) -> None:
        """Not started."""
        super().__init__(name, product, _HERE, free_port())
        self._folder: Path | None = None
        self._log: IO[bytes] | None = None
        self._commands: list[_Command] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def log(self, lines: int = 15) -> str:
        """Return the last lines of its output."""
        if self._folder is None:
            return ""
        text = (self._folder / "output.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _make(self) -> None:
        program = _program(self.product.program)
        self._folder = Path(tempfile.mkdtemp(prefix=f"mqcore-{self.product.slug}-"))
        self._log = (self._folder / "output.log").open("ab")
        if self.product.slug == "rabbitmq":
            self._commands = _rabbitmq(program, self._folder, self.port)
        else:
            self._commands = [_redis(program, self._folder, self.port)]
        self._start()

    def _start(self) -> None:
        for command in self._commands:
            process = subprocess.Popen(  # noqa: S603 - the servers of the catalogue, by their full paths
                command.words,
                env={**os.environ, **command.environment},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._processes.append(process)

    def _kill(self) -> None:
        for process in reversed(self._processes):
            self._signal(process, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_ENDS_WITHIN)
        self._processes.clear()

    def _pause(self) -> None:
        for process in self._processes:
            self._signal(process, signal.SIGSTOP)

    def _resume(self) -> None:
        for process in self._processes:
            self._signal(process, signal.SIGCONT)

    def _run_tool(self, words: Sequence[str]) -> tuple[int, str]:
        beside = _RABBITMQ_ITSELF.with_name(words[0])  # Debian's commands in /usr/sbin insist on a user of their own
        program = str(beside) if beside.is_file() else _program(words[0])
        environment = {**os.environ, **self._commands[-1].environment}
        done = subprocess.run(  # noqa: S603 - a tool of the servers of the catalogue, named by a test
            [program, *words[1:]], env=environment, capture_output=True, text=True, timeout=_TOOL, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def _stop(self) -> None:
        self._kill()  # its data goes too: there is nothing to end in good order
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _ended(self) -> str:
        codes = [process.poll() for process in self._processes]
        return next((f"ended with {code}" for code in codes if code is not None), "")

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Reach the process and what it has started; a process that has been waited for is let alone, its id may be another's."""
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def _program(name: str) -> str:
    """Return the path of an installed program; raises `BrokerUnavailable`."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_MORE_PLACES))
    found = shutil.which(name, path=path)
    if found is None:
        raise BrokerUnavailable(f"{name} is not installed")
    return found


def _redis(program: str, folder: Path, port: int) -> _Command:
    return _Command([program, "--bind", _HERE, "--port", str(port), "--dir", str(folder), *REDIS_SETTINGS])


def _rabbitmq(program: str, folder: Path, port: int) -> list[_Command]:
    """Return epmd, which stays our child, and the server.

    The variables are those of rabbitmq.com/docs/configure#supported-environment-variables.
    """
    script = str(_RABBITMQ_ITSELF) if _RABBITMQ_ITSELF.is_file() else program
    mapper, cluster = str(free_port()), str(free_port())
    erlang = {"HOME": str(folder), "ERL_EPMD_ADDRESS": _HERE, "ERL_EPMD_PORT": mapper}
    none = str(folder / "none")  # a file that is not there: nothing of the system's own configuration
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
        "SERVER_ADDITIONAL_ERL_ARGS": f"{RABBITMQ_SETTINGS} -kernel inet_dist_use_interface {{127,0,0,1}}",
    }
    return [
        _Command([_program("epmd"), "-port", mapper, "-address", _HERE], erlang),
        _Command([script], {**erlang, **{f"RABBITMQ_{name}": value for name, value in variables.items()}}),
    ]
