"""ProcessServer with a small server that writes what it is sent into its folder and returns it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqcore.contract.brokers import BrokerUnavailable, ProcessServer

SERVER = """
import pathlib, signal, socketserver, sys

kept = pathlib.Path(sys.argv[2]) / "kept"

def end(*_):
    with kept.open("a") as file:
        file.write("terminated\\n")
    raise SystemExit

class Conversation(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            if line == b"version\\n":
                self.wfile.write(b"7.5\\n")
                continue
            with kept.open("a") as file:
                file.write(line.decode())
            self.wfile.write(kept.read_text().replace("\\n", " ").encode() + b"\\n")

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

signal.signal(signal.SIGTERM, end)
Server(("127.0.0.1", int(sys.argv[1])), Conversation).serve_forever()
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    return [sys.executable, "-S", str(script), "{port}", "{folder}"]


@pytest.fixture
def server(command: list[str]) -> Iterator[ProcessServer]:
    with ProcessServer(command, ready=version, url="kept://127.0.0.1:{port}/x") as started:
        yield started


def version(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=2) as conversation:
        return told(conversation, "version")


def told(conversation: socket.socket, line: str) -> str:
    """Say a line; return the answer, empty where the connection is closed."""
    conversation.settimeout(5)
    conversation.sendall(f"{line}\n".encode())
    return conversation.makefile().readline().strip()


def connect(server: ProcessServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def has_ended(conversation: socket.socket) -> bool:
    try:
        return conversation.recv(1) == b""
    except ConnectionError:
        return True


def wait_until_gone(pid: int, folder: Path) -> None:
    deadline = time.monotonic() + 20
    while (alive(pid) or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)
    assert not folder.exists()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_serves_at_its_port_and_says_what_it_is(server: ProcessServer) -> None:
    assert server.url == f"kept://127.0.0.1:{server.port}/x"
    assert server.version == "7.5"
    with connect(server) as conversation:
        assert told(conversation, "one") == "one"


def test_its_data_and_its_port_outlive_a_crash(server: ProcessServer) -> None:
    with connect(server) as conversation:
        told(conversation, "one")
        server.restart()
        assert has_ended(conversation)
    with connect(server) as conversation:
        assert told(conversation, "two") == "one two"


def test_an_orderly_restart_lets_it_end_by_itself(server: ProcessServer) -> None:
    server.restart(orderly=True)
    with connect(server) as conversation:
        assert told(conversation, "after") == "terminated after"


def test_a_cut_breaks_every_connection_and_takes_new_ones(server: ProcessServer) -> None:
    with connect(server) as one, connect(server) as two:
        told(one, "1")
        told(two, "2")
        server.cut()
        for broken in (one, two):
            with pytest.raises(ConnectionError):
                broken.recv(1)
    with connect(server) as conversation:
        assert told(conversation, "3") == "1 2 3"


def test_a_paused_server_says_nothing_until_it_resumes(server: ProcessServer) -> None:
    with connect(server) as conversation:
        told(conversation, "1")
        server.pause()
        conversation.sendall(b"2\n")
        conversation.settimeout(0.5)
        with pytest.raises(TimeoutError):
            conversation.recv(1)
        server.resume()
        conversation.settimeout(10)
        assert conversation.recv(100) == b"1 2 \n"


def test_a_paused_server_can_be_restarted_and_closed(server: ProcessServer) -> None:
    server.pause()
    server.restart()
    with connect(server) as conversation:
        assert told(conversation, "1") == "1"
    server.pause()
    server.close()
    server.close()


def test_a_port_may_be_chosen(command: list[str], server: ProcessServer) -> None:
    chosen = server.port
    server.close()
    with ProcessServer(command, chosen, version) as again, connect(again) as conversation:
        assert (again.port, told(conversation, "1")) == (chosen, "1")


def test_without_ready_it_is_asked_for_a_connection(command: list[str]) -> None:
    with ProcessServer(command) as server, connect(server) as conversation:
        assert told(conversation, "1") == "1"


def test_close_leaves_no_process_and_no_folder(server: ProcessServer) -> None:
    folder, (process,) = server._processes.folder, server._processes.running
    guard = server._processes._guard
    assert folder is not None
    assert guard is not None
    server.close()
    assert not folder.exists()
    assert not alive(process.pid)
    assert not alive(guard.pid)
    with pytest.raises(ConnectionError):
        connect(server)


def test_a_server_that_ends_at_once_shows_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text("raise SystemExit('the disk is missing')")
    with pytest.raises(
        BrokerUnavailable, match="ended with 1 after its start\nthe disk is missing"
    ):
        ProcessServer([sys.executable, "-S", str(script)]).open()


def test_a_server_that_is_never_ready_is_given_up(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqcore.contract.brokers.server._STARTS_WITHIN", 1.0)
    with pytest.raises(BrokerUnavailable, match=r"within 1 s of its start: .* returned False"):
        ProcessServer(command, ready=lambda _: False).open()


def test_a_command_that_is_not_installed_is_named() -> None:
    with pytest.raises(BrokerUnavailable, match="no-such-server is not installed"):
        ProcessServer(["no-such-server"]).open()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_test_run_that_is_ended_leaves_nothing_behind(
    command: list[str], tmp_path: Path, number: int
) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "import time\n"
        "def test_it(process_server):\n"
        f"    server = process_server({command!r})\n"
        "    processes = server._processes\n"
        "    print('STARTED', processes.running[0].pid, processes.folder, flush=True)\n"
        "    time.sleep(50)\n"
    )
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        str(test),
    ]
    run = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env={**os.environ, "CI": "false"}
    )
    with run:
        assert run.stdout is not None
        started = next(line for line in run.stdout if "STARTED" in line)
        pid, folder = started.split()[-2:]
        run.send_signal(number)
        run.communicate(timeout=30)
    wait_until_gone(int(pid), Path(folder))


def test_its_storage_is_searched_at_its_own_port(command: list[str]) -> None:
    def stored(port: int, body: bytes) -> dict[str, int]:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as conversation:
            return {"kept": told(conversation, "look").split().count(body.decode())}

    with (
        ProcessServer(command, ready=version, stored=stored) as server,
        connect(server) as conversation,
    ):
        told(conversation, "one")
        told(conversation, "one")
        assert server.product.stored is not None
        assert server.product.stored(server, b"one") == {"kept": 2}


@pytest.mark.parametrize(("ci", "ending"), [("false", "2 skipped"), ("true", "2 errors")])
def test_a_server_that_is_not_installed_skips_its_tests_and_fails_under_ci(
    tmp_path: Path, ci: str, ending: str
) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "import pytest\n"
        "@pytest.fixture(scope='module')\n"
        "def server(process_server):\n"
        "    return process_server(['no-such-server'])\n"
        "def test_one(server): ...\n"
        "def test_two(server): ...\n"
    )
    words = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(
        words,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "CI": ci},
        check=False,
        timeout=50,
    )
    assert ending in done.stdout
    assert "no-such-server is not installed" in done.stdout
