"""Asks a server for product and version through a plain socket.

No client library is used, so the answer does not depend on the driver under test. Redis and Valkey
get two inline commands. RabbitMQ gets the protocol header and answers with `Connection.Start` (AMQP
0-9-1, 4.2.2), whose server properties contain product and version. It sends that only when it has
booted. PostgreSQL gets a startup message. It answers with its parameters, or asks for a password
first, when it takes sessions; then its version stays unknown.
"""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass

__all__ = ["Identity", "ask_postgresql", "ask_rabbitmq", "ask_redis"]

_ENOUGH = 65536
_VERSION = re.compile(rb"^(valkey|redis)_version:(\S+)", re.MULTILINE)
_PARAMETER = re.compile(rb"server_version\x00(\d[\w.]*)")
_STARTUP = b"user\x00postgres\x00database\x00postgres\x00\x00"
_PROTOCOL = 196608
"""Version 3.0 of PostgreSQL's protocol, as its startup message writes it."""
_HEAD = 9
"""Bytes of an answer that say whether the session is accepted. They come in one packet."""
_ACCEPTED = b"\0\0\0\0"
_READY = b"Z\x00\x00\x00\x05I"
_PROPERTY = re.compile(rb"\x07versionS\x00\x00\x00(.)")


@dataclass(frozen=True)
class Identity:
    """The product and version that a server reports."""

    product: str
    version: str

    @property
    def major(self) -> int:
        """The first number of the version."""
        return int(self.version.partition(".")[0])


def ask_redis(host: str, port: int, timeout: float) -> Identity:
    """Return the identity of a Redis or Valkey server.

    Raises `OSError` when it does not serve yet, or does not answer in time.
    """
    with socket.create_connection((host, port), timeout=timeout) as conversation:
        conversation.settimeout(timeout)
        conversation.sendall(b"PING\r\n")
        answer = conversation.recv(256)
        # -LOADING while it reads its data, -NOAUTH when it requires a password.
        if not answer.startswith(b"+PONG"):
            raise ConnectionError(
                f"the answer to PING was {answer.decode(errors='replace').strip()[:80]!r}"
            )
        conversation.sendall(b"INFO server\r\nPING\r\n")
        answer = _read(conversation, until=b"+PONG\r\n")

    found = {name: version.decode() for name, version in _VERSION.findall(answer)}
    if not found:
        raise ConnectionError("the answer to INFO has no version")
    if b"valkey" in found:  # it reports a redis_version too, for old clients
        return Identity("Valkey", found[b"valkey"])

    return Identity("Redis", found[b"redis"])


def ask_rabbitmq(host: str, port: int, timeout: float) -> Identity:
    """Return the identity of a RabbitMQ server.

    Raises `OSError` when it does not serve yet, or does not answer in time.
    """
    with socket.create_connection((host, port), timeout=timeout) as conversation:
        conversation.settimeout(timeout)
        conversation.sendall(b"AMQP\x00\x00\x09\x01")
        answer = _read(conversation, until=b"\xce")
    found = _PROPERTY.search(answer)
    if found is None or b"RabbitMQ" not in answer:
        raise ConnectionError("the answer is not that of RabbitMQ")
    begin = found.end()
    return Identity("RabbitMQ", answer[begin : begin + found[1][0]].decode())


def ask_postgresql(host: str, port: int, timeout: float) -> Identity:
    """Return the identity of a PostgreSQL server; the version is empty if it asks for a password.

    Raises `OSError` when it does not serve yet, or does not answer in time.
    """
    with socket.create_connection((host, port), timeout=timeout) as conversation:
        conversation.settimeout(timeout)
        length = len(_STARTUP) + 8
        conversation.sendall(struct.pack(">ii", length, _PROTOCOL) + _STARTUP)
        answer = conversation.recv(_ENOUGH)
        if len(answer) < _HEAD:
            raise ConnectionError("it closed the connection")
        if not answer.startswith(b"R"):  # an E says why: it is starting up, or refuses
            text = answer[5:].decode(errors="replace")
            raise ConnectionError(f"the answer to the startup message was {text!r:.120}")
        if answer[5:9] != _ACCEPTED:
            return Identity("PostgreSQL", "")
        if not answer.endswith(_READY):
            answer += _read(conversation, until=_READY)
        conversation.sendall(b"X\x00\x00\x00\x04")

    found = _PARAMETER.search(answer)
    if found is None:
        raise ConnectionError("the answer is not that of PostgreSQL")
    return Identity("PostgreSQL", found[1].decode())


def _read(conversation: socket.socket, *, until: bytes) -> bytes:
    """Read until the answer ends with `until`."""
    answer = b""
    while not answer.endswith(until) and len(answer) < _ENOUGH:
        more = conversation.recv(4096)
        if not more:
            raise ConnectionError("it closed the connection")
        answer += more
    return answer
