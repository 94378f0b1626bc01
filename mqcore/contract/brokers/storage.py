"""What a server stores, read without the driver: how often a body is in each key or queue.

Redis and Valkey are read through a plain socket. RabbitMQ's message store cannot be searched, so
all messages of each queue are counted there, by `rabbitmqctl`. PostgreSQL is asked by `psql`.
"""

from __future__ import annotations

import socket
from typing import BinaryIO, Protocol

__all__ = ["Searchable", "count_in_postgresql", "count_in_rabbitmq", "count_in_redis"]

Reply = bytes | int | list["Reply"] | None
_WITHIN = 5.0
_READ = {
    b"string": ("GET",),
    b"hash": ("HGETALL",),
    b"list": ("LRANGE", "0", "-1"),
    b"set": ("SMEMBERS",),
    b"zset": ("ZRANGE", "0", "-1"),
    b"stream": ("XRANGE", "-", "+"),
}
"""The command that reads a whole key of each type; the key follows the first word."""


class Searchable(Protocol):
    """What a `Server` offers for this."""

    host: str
    port: int

    def run(self, *words: str) -> str:
        """Run a program beside the server, and return what it printed."""
        ...


def count_in_redis(server: Searchable, body: bytes) -> dict[str, int]:
    """Return how often `body` is in each key of the server's first database."""
    found: dict[str, int] = {}

    with socket.create_connection((server.host, server.port), timeout=_WITHIN) as connection:
        answers = connection.makefile("rb")

        def ask(*words: str | bytes) -> Reply:
            connection.sendall(_command(words))
            return _reply(answers)

        cursor: bytes = b"0"
        while True:
            page = ask("SCAN", cursor, "COUNT", "1000")
            if (
                not isinstance(page, list)
                or not isinstance(page[0], bytes)
                or not isinstance(page[1], list)
            ):
                raise ConnectionError(f"the answer to SCAN was {page!r:.80}")

            for key in page[1]:
                if (
                    isinstance(key, bytes)
                    and isinstance(kind := ask("TYPE", key), bytes)
                    and kind in _READ
                ):
                    command, *options = _READ[kind]
                    found[key.decode(errors="replace")] = _count(ask(command, key, *options), body)

            cursor = page[0]
            if cursor == b"0":
                return found


def count_in_rabbitmq(server: Searchable, body: bytes) -> dict[str, int]:  # noqa: ARG001 - its storage cannot be searched
    """Return how many messages each queue holds, ready or not acknowledged."""
    output = server.run(
        "rabbitmqctl", "--quiet", "--no-table-headers", "list_queues", "name", "messages"
    )
    rows = [line.rpartition("\t") for line in output.splitlines()]
    return {name: int(number) for name, _, number in rows if name and number.strip().isdigit()}


def count_in_postgresql(server: Searchable, body: bytes) -> dict[str, int]:
    """Return how often `body` is in each queue of the tables with the default prefix."""
    statement = (
        "SELECT q.name, count(m.id) FROM mq_queues q LEFT JOIN mq_messages m "  # noqa: S608 - hexadecimal digits
        f"ON m.queue = q.id AND m.body = '\\x{body.hex()}' GROUP BY q.name"
    )
    output = server.run("psql", "-XAtF\t", "-c", statement, "postgres")
    rows = [line.rpartition("\t") for line in output.splitlines()]
    return {name: int(number) for name, _, number in rows if name and number.isdigit()}


def _count(value: Reply, body: bytes) -> int:
    if isinstance(value, list):
        return sum(_count(item, body) for item in value)
    return value.count(body) if isinstance(value, bytes) else 0


def _command(words: tuple[str | bytes, ...]) -> bytes:
    """Return a command in RESP: an array of strings, each with its length."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(
        b"$%d\r\n%s\r\n" % (len(part), part) for part in parts
    )


def _reply(answers: BinaryIO) -> Reply:
    """Read one RESP 2 reply. An error, such as that of a deleted key, is read as None."""
    line = answers.readline()
    if not line:
        raise ConnectionError("the server closed the connection")

    kind, rest = line[:1], line[1:].strip()
    match kind:
        case b"*":
            return [_reply(answers) for _ in range(int(rest))] if int(rest) >= 0 else None
        case b"$":
            return answers.read(int(rest) + 2)[:-2] if int(rest) >= 0 else None
        case b":":
            return int(rest)
        case b"+":
            return rest
        case _:
            return None
