"""Which queues exist: a list that beanstalkd does not keep.

A tube of beanstalkd appears when it is named and disappears when it is empty, so it cannot say that
a queue was declared, or how. Each declared queue therefore has a *marker*: one job in a tube of its
own, `mq;NAME`, whose body is the queue's settings. It is delayed for as long as a delay can be, so
no client can reserve it. `;` cannot be in a queue's name, so the tubes never meet.

The server decides between two who declare at the same time: the marker with the shorter delay left,
which is the earlier one, is the queue's. A temporary queue's marker is delayed for a minute, and
its owner puts a new one in time; when the owner dies the marker falls due, and the queue exists no
longer.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, replace

from mqcore.spi import ConfigurationError, QueueSpec, TopologyMismatch
from mqcore_beanstalk import claims
from mqcore_beanstalk.protocol import Connection, expect, put, reserve, table

__all__ = [
    "abandoned",
    "compare",
    "create",
    "drain",
    "is_empty",
    "refresh",
    "remove",
    "specs",
    "tube",
    "watch",
]

_FOR_EVER = 2**32 - 1
"""Seconds; the longest delay of beanstalkd, 136 years."""
_TEMPORARY = 60
_PAGE = 100
_PEEKS = (b"peek-delayed\r\n", b"peek-buried\r\n")
_BUSY = (
    "current-jobs-ready",
    "current-jobs-reserved",
    "current-jobs-delayed",
    "current-jobs-buried",
)
_MARKERS = "mq;"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,150}")

Marker = tuple[int, QueueSpec]
Connect = Callable[[], Awaitable[Connection]]


def tube(queue: str) -> bytes:
    """Return the tube of a queue: its name, so that other clients find it.

    A name must not begin with a hyphen there.
    """
    return (f"/{queue}" if queue.startswith("-") else queue).encode()


async def specs(connection: Connection, names: Iterable[str]) -> dict[str, QueueSpec | None]:
    """Return the settings of queues.

    None for one that does not exist. Asked each time: another process may delete it.
    """
    return {
        name: marker and marker[1] for name, marker in (await _markers(connection, names)).items()
    }


async def create(connection: Connection, spec: QueueSpec) -> None:
    """Create a queue unless it exists.

    Raises `TopologyMismatch`, and `ConfigurationError` for a name that no tube can have.
    """
    if not _NAME.fullmatch(spec.name):
        raise ConfigurationError(
            f"queue {spec.name!r:.60} cannot be a tube: use letters, digits, and . _ -"
        )
    have = (await _markers(connection, [spec.name]))[spec.name]
    if have is None:
        own = await _put_marker(connection, spec)
        have = (await _markers(connection, [spec.name]))[spec.name]
        if have is not None and have[0] != own:  # another process was earlier
            await connection.ask(claims.delete(own))
    if have is not None:
        compare(spec, have[1])


def compare(spec: QueueSpec, have: QueueSpec) -> None:
    """Raise `TopologyMismatch` when a queue exists with other settings."""
    wanted = replace(spec, durability=None)
    for setting, value in asdict(have).items():
        if value != getattr(wanted, setting):
            asked = getattr(wanted, setting)
            text = f"exists with {setting}={value!r}, but the code declares {setting}={asked!r}"
            raise TopologyMismatch(
                f"queue {spec.name!r} {text}; delete it, or change the declaration"
            )


async def refresh(connection: Connection, spec: QueueSpec) -> None:
    """Let a temporary queue live on. The new marker comes first: the queue must never seem gone."""
    have = (await _markers(connection, [spec.name]))[spec.name]
    await _put_marker(connection, spec)
    if have is not None:
        await connection.ask(claims.delete(have[0]))


async def remove(connect: Connect, queue: str) -> None:
    """Remove the queue's markers, so that it exists no longer, and then whatever is in it."""
    for name in (_marker_tube(queue), tube(queue)):
        await drain(await connect(), name, delayed=True)


async def drain(own: Connection, name: bytes, *, delayed: bool) -> int:
    """Delete the jobs of a tube that are ready, and `delayed` ones too; return how many.

    Closes the connection. Ready jobs go by the page. Delayed ones are deleted one by one where they
    are: made ready, they would go to a consumer that waits.
    """
    count = 0
    try:
        await watch(own, name)
        await own.ask(b"use %b\r\n" % name)
        while True:
            replies = await own.ask(*[reserve(0)] * _PAGE)
            got = [reply.number for reply in replies if reply.word == "RESERVED"]
            if not got:
                break
            await own.ask(*map(claims.delete, got))
            count += len(got)

        for peek in _PEEKS if delayed else ():
            while (reply := (await own.ask(peek))[0]).word == "FOUND":
                await own.ask(claims.delete(reply.number))
                count += 1
        return count
    finally:
        own.close()


async def watch(connection: Connection, name: bytes) -> None:
    """Let the connection's `reserve` take jobs of this tube, and of no other."""
    commands = [b"watch %b\r\n" % name]
    if name != b"default":
        commands.append(b"ignore default\r\n")
    for reply in await connection.ask(*commands):
        expect(reply, "WATCHING")


async def is_empty(connection: Connection, queues: Sequence[str]) -> bool:
    """Whether the tubes hold nothing."""
    found = [
        table(reply)
        for reply in await connection.ask(*(b"stats-tube %b\r\n" % tube(name) for name in queues))
    ]
    return not any(int(stats.get(name, 0)) for stats in found for name in _BUSY)


async def abandoned(connection: Connection) -> list[str]:
    """Return the temporary queues whose owner has died: their markers have fallen due."""
    (listed,) = await connection.ask(b"list-tubes\r\n")
    names = [line.removeprefix("- ") for line in listed.data.decode().splitlines()]
    queues = [name.removeprefix(_MARKERS) for name in names if name.startswith(_MARKERS)]
    counts = await connection.ask(*(b"stats-tube %b\r\n" % _marker_tube(name) for name in queues))
    return [
        name
        for name, stats in zip(queues, map(table, counts), strict=True)
        if int(stats.get("current-jobs-ready", 0)) and not int(stats.get("current-jobs-delayed", 0))
    ]


async def _markers(connection: Connection, names: Iterable[str]) -> dict[str, Marker | None]:
    """Return the marker of each queue: the delayed job that has the shortest time left."""
    found: dict[str, Marker | None] = dict.fromkeys(names)
    unique = [
        name for name in found if _NAME.fullmatch(name)
    ]  # another name cannot have been declared
    commands = [
        word
        for name in unique
        for word in (b"use %b\r\n" % _marker_tube(name), b"peek-delayed\r\n")
    ]
    replies = await connection.ask(*commands)
    for name, reply in zip(unique, replies[1::2], strict=True):
        expect(reply, "FOUND", "NOT_FOUND")
        found[name] = (
            (reply.number, QueueSpec(**json.loads(reply.data))) if reply.word == "FOUND" else None
        )
    return found


async def _put_marker(connection: Connection, spec: QueueSpec) -> int:
    body = json.dumps(asdict(spec) | {"durability": None}).encode()
    delay = _TEMPORARY if spec.role == "temporary" else _FOR_EVER
    commands = b"use %b\r\n" % _marker_tube(spec.name), put(0, delay, claims.TTR, body)
    return expect((await connection.ask(*commands))[1], "INSERTED").number


def _marker_tube(queue: str) -> bytes:
    return f"{_MARKERS}{queue}".encode()
