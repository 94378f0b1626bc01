"""PostgreSQL on a disk whose power is cut: its data is there, and a copy of it is recovered."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psycopg
from support.power_cuts import Database

from mqcore.contract.brokers.processes import Command, Processes, program
from mqcore.contract.brokers.server import BrokerUnavailable, free_port

__all__ = ["PostgresqlOnDisk"]

_UNPRIVILEGED = 65534
_HERE = "127.0.0.1"
_PATIENCE = 60.0
_SETTINGS = {
    "listen_addresses": _HERE,
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    "min_wal_size": "32MB",
    "max_wal_size": "64MB",
    "checkpoint_timeout": "30s",  # cuts meet checkpoints as well
}


class PostgresqlOnDisk(Database):
    """A private server. It does not run as root, and the disk needs root."""

    megabytes = 512

    def __init__(self, synchronous_commit: str = "on") -> None:
        self._settings = {**_SETTINGS, "synchronous_commit": synchronous_commit}
        number = str(_UNPRIVILEGED)
        self._as_other = [
            *(program("setpriv"), "--reuid", number, "--regid", number, "--clear-groups")
        ]
        self._server = Processes()

    def start(self, folder: Path) -> str:
        """Make a cluster, and start its server."""
        os.chown(folder, _UNPRIVILEGED, _UNPRIVILEGED)
        folder.parent.chmod(0o755)  # a temporary folder is its owner's alone
        initdb = str(Path(program("postgres")).resolve().with_name("initdb"))
        make = [initdb, "-D", str(folder / "data"), "-U", "postgres", "--auth=trust"]
        done = subprocess.run(
            [*self._as_other, *make, "--encoding=UTF8", "--no-locale"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        if done.returncode:
            raise BrokerUnavailable(f"initdb ended with {done.returncode}: {done.stderr.strip()}")
        url, self._server = self._run(folder)
        return url

    def pause(self) -> None:
        """Stop the server's processes."""
        self._server.pause()

    def resume(self) -> None:
        """Let them go on."""
        self._server.send(signal.SIGCONT)

    def stop(self) -> None:
        """Kill them."""
        self._server.stop()

    def bodies(self, folder: Path) -> set[str]:
        """Let another server recover the copy."""
        (folder / "data" / "postmaster.pid").unlink()  # the process of that number still runs
        url, server = self._run(folder)
        try:
            with psycopg.connect(url) as session:
                if session.execute("SELECT to_regclass('mq_messages')").fetchone() == (None,):
                    return set()
                rows = session.execute("SELECT body FROM mq_messages").fetchall()
                return {bytes(body).decode() for (body,) in rows}
        finally:
            server.stop()

    def _run(self, folder: Path) -> tuple[str, Processes]:
        """Start a server for the cluster in this folder, and wait until it answers."""
        server, port = Processes(), free_port()
        output = server.make_folder("mqcore-postgresql-")
        os.chown(output, _UNPRIVILEGED, _UNPRIVILEGED)
        settings = [word for pair in self._settings.items() for word in ("-c", "=".join(pair))]
        words = [program("postgres"), "-D", str(folder / "data"), "-p", str(port), *settings]
        server.commands = [Command([*self._as_other, *words])]
        server.start()

        url, deadline = f"postgresql://postgres@{_HERE}:{port}/postgres", time.monotonic()
        deadline += _PATIENCE
        while True:
            try:
                psycopg.connect(url).close()
            except psycopg.OperationalError:
                if server.ended() or time.monotonic() > deadline:
                    text = server.log(20)
                    server.stop()
                    raise BrokerUnavailable(f"PostgreSQL does not start: {text}") from None
                time.sleep(0.05)
            else:
                return url, server
