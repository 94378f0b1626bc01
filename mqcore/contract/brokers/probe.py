"""Asks a server for product and version through a plain socket.

No client library is used, so the answer does not depend on the driver under test. Redis and Valkey
get two inline commands. RabbitMQ gets the protocol header and answers with `Connection.Start` (AMQP
0-9-1, 4.2.2), whose server properties contain product and version. It sends that only when it has
booted.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

__all__ = ["Identity", "ask_rabbitmq", "ask_redis"]

_ENOUGH = 65536
_VERSION = re.compile(rb"^(valkey|redis)_version:(\S+)", re.MULTILINE)
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


def _read(conversation: socket.socket, *, until: bytes) -> bytes:
    """Read until the answer ends with `until`."""
    answer = b""
    while not answer.endswith(until) and len(answer) < _ENOUGH:
        more = conversation.recv(4096)
        if not more:
            raise ConnectionError("it closed the connection")
        answer += more
    return answer
