"""The proxy between an instance and its server passes all bytes; a kill resets both sides."""

from __future__ import annotations

import gc
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from mqcore.contract.brokers.proxy import Proxy


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        found.settimeout(10)
        yield found


@pytest.fixture
def proxy(server: socket.socket) -> Iterator[Proxy]:
    found = Proxy(*server.getsockname())
    yield found
    found.kill()


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (more := connection.recv(size - len(found))):
        found += more
    return found


def test_what_goes_in_comes_out_on_either_side(server: socket.socket, proxy: Proxy) -> None:
    with connected(proxy) as client:
        client.sendall(b"hello")
        there, _ = server.accept()
        with there:
            assert read(there, 5) == b"hello"
            there.sendall(b"world")
            assert read(client, 5) == b"world"


def test_more_than_a_side_can_take_waits_and_arrives(server: socket.socket, proxy: Proxy) -> None:
    much = bytes(range(256)) * 4000
    with connected(proxy) as client:
        client.sendall(much)
        there, _ = server.accept()
        with there:
            there.settimeout(10)
            assert read(there, len(much)) == much


def test_an_orderly_end_is_one_on_the_other_side(server: socket.socket, proxy: Proxy) -> None:
    with connected(proxy) as client:
        client.sendall(b"bye")
    there, _ = server.accept()
    with there:
        there.settimeout(10)
        assert read(there, 100) == b"bye"


def test_a_kill_resets_both_sides_and_accepts_no_more(server: socket.socket, proxy: Proxy) -> None:
    with connected(proxy) as client:
        client.sendall(b"hello")
        there, _ = server.accept()
        with there:
            there.settimeout(10)
            assert read(there, 5) == b"hello"
            proxy.kill()
            proxy.kill()  # twice is once
            with pytest.raises(ConnectionResetError):
                there.recv(1)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connected(proxy)


def test_a_refusing_server_resets_the_client(server: socket.socket, proxy: Proxy) -> None:
    server.close()
    with (
        pytest.raises(ConnectionResetError),
        connected(proxy) as client,
    ):  # while it connects, or soon after
        client.recv(1)


def test_a_kill_resets_connections_that_are_being_accepted(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: left.append(told.exc_value))

    def come(proxy: Proxy) -> None:
        for _ in range(3):
            with suppress(OSError):
                connected(proxy).close()

    for number in range(60):
        proxy = Proxy(*server.getsockname())
        coming = threading.Thread(target=come, args=(proxy,))
        coming.start()
        coming.join(number * 0.00002)  # the kill meets it at one point or another of its way in
        proxy.kill()
        coming.join()
    gc.collect()
    assert left == []


def test_a_muted_proxy_holds_back_the_server_only(server: socket.socket, proxy: Proxy) -> None:
    with connected(proxy) as client:
        client.sendall(b"ready")
        there, _ = server.accept()
        with there:
            assert read(there, 5) == b"ready"

            proxy.mute()
            client.sendall(b"hello")
            assert read(there, 5) == b"hello"
            there.sendall(b"world")
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(1)

            proxy.unmute()
            client.settimeout(10)
            assert read(client, 5) == b"world"


def test_a_muted_proxy_can_be_killed(server: socket.socket, proxy: Proxy) -> None:
    with connected(proxy) as client:
        client.sendall(b"ready")
        there, _ = server.accept()
        with there:
            assert read(there, 5) == b"ready"
            proxy.mute()
            there.sendall(b"world")
            proxy.kill()
            with pytest.raises(ConnectionError):
                client.recv(1)
            proxy.unmute()
