"""The transport below pika: what ends before pika has it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from types import SimpleNamespace

from mqcore_rabbitmq.link import _Services, _Stream


def refused() -> None:
    raise AssertionError("there is no connection for pika")


async def test_a_connect_that_is_cancelled_before_it_starts_closes_its_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        services = _Services(asyncio.get_running_loop())
        services.create_streaming_connection(refused, ours, lambda _: None).cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert ours.fileno() == -1


async def test_a_peer_that_ends_in_the_tls_handshake_is_named() -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[object] = loop.create_future()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        _Services(loop).create_streaming_connection(
            refused, ours, done.set_result, ssl.create_default_context(), "broker"
        )
        theirs.shutdown(socket.SHUT_WR)
        error = await done
    assert isinstance(error, ConnectionResetError)
    assert "TLS" in str(error)


async def stream_of(ours: socket.socket) -> tuple[_Stream, asyncio.Transport]:
    ours.settimeout(0)
    transport, stream = await asyncio.get_running_loop().create_connection(_Stream, sock=ours)
    return stream, transport


async def test_an_end_before_pika_has_the_stream_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream, transport = await stream_of(ours)
        assert not stream.eof_received()
        transport.abort()


async def test_the_end_is_reported_although_the_peer_reads_nothing_more() -> None:
    lost: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream, transport = await stream_of(ours)
        stream.pika = SimpleNamespace(eof_received=lambda: False, connection_lost=lost.set_result)
        transport.resume_reading()
        transport.write(bytes(2**24))
        assert transport.get_write_buffer_size()
        theirs.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(5):
            assert await lost is None
