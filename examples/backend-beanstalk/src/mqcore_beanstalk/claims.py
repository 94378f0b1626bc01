"""Leasing jobs: mqcore's lease, built on beanstalkd's delay.

beanstalkd has a lease of its own, the time to run of a reserved job, with `touch` to renew it. It
is not the one that mqcore needs: its length is fixed by the publisher, and only the connection that
reserved the job can renew or settle it. mqcore renews from a thread with an instance of its own, so
that a handler which blocks the event loop keeps its message (G5).

So a reservation is only a lock of a few milliseconds, and the lease is a *delay*. A claim reserves
the job and releases it with a delay as long as the lease and with a token in its priority number.
During the delay no client can reserve the job by accident. When it ends, the job is ready again.
Whoever has the token can lock the job by `reserve-job`, from any connection, and settle it or delay
it again. A reservation that is cut off in the middle gives the job back as it was.
"""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mqcore_beanstalk.jobs import NEW, Claim, mark_of
from mqcore_beanstalk.protocol import Connection, Reply, table

__all__ = ["TTR", "Locked", "delete", "holds", "lease", "lock", "marks", "release"]

TTR = 30
"""Seconds that a lock lasts when the connection under it falls silent."""
_LOOKS, _BETWEEN = 200, 0.01
"""How often to look at a job that another connection has locked, and the seconds between."""


def release(job: int, priority_number: int, delay: float = 0.0) -> bytes:
    """Return the command that ends a reservation. `delay` is rounded up: it must not end early."""
    return b"release %d %d %d\r\n" % (job, priority_number, math.ceil(delay))


def delete(job: int) -> bytes:
    """Return the command that removes a job."""
    return b"delete %d\r\n" % job


def _look(job: int) -> bytes:
    return b"stats-job %d\r\n" % job


async def marks(connection: Connection, jobs: Sequence[int]) -> list[int]:
    """Return the marks of reserved jobs.

    One that was never released has never been claimed, whatever its number says.
    """
    found = [table(reply) for reply in await connection.ask(*map(_look, jobs))]
    return [
        mark_of(int(stats["pri"])) if stats and stats["releases"] != "0" else NEW for stats in found
    ]


async def lease(connection: Connection, claims: Sequence[Claim], seconds: float) -> list[bool]:
    """Turn reservations of this connection into leases; False for one that has ended meanwhile."""
    commands = [release(claim.job, claim.leased, seconds) for claim in claims]
    return [reply.word == "RELEASED" for reply in await connection.ask(*commands)]


async def holds(connection: Connection, claims: Sequence[Claim]) -> list[float | None]:
    """Return how many seconds each lease has left at least; None for one that was lost."""
    found = [
        table(reply) for reply in await connection.ask(*(_look(claim.job) for claim in claims))
    ]
    return [
        float(stats["time-left"]) if _is_ours(claim, stats) else None
        for claim, stats in zip(claims, found, strict=True)
    ]


class Locked(NamedTuple):
    """What `lock` has found.

    `mine` are reserved by this connection now; `busy` are ours, but locked by another connection.
    """

    mine: set[Claim]
    busy: set[Claim]


async def lock(connection: Connection, claims: Iterable[Claim]) -> Locked:
    """Reserve the jobs of those claims that still hold. What is not ours is not changed (G5)."""
    mine: set[Claim] = set()
    undecided = list(dict.fromkeys(claims))

    for _ in range(_LOOKS):
        looks = [
            table(reply)
            for reply in await connection.ask(*(_look(claim.job) for claim in undecided))
        ]
        ours = [
            (claim, look["state"])
            for claim, look in zip(undecided, looks, strict=True)
            if _is_ours(claim, look)
        ]

        mine.update(
            await _reserve(connection, [claim for claim, state in ours if state == "delayed"])
        )
        undecided = [claim for claim, _ in ours if claim not in mine]
        if not undecided:
            break
        await asyncio.sleep(
            _BETWEEN
        )  # another instance has just locked it, to renew or to settle it
    return Locked(mine, set(undecided))


async def _reserve(connection: Connection, claims: Sequence[Claim]) -> list[Claim]:
    """Reserve jobs that were ours a moment ago.

    Where a lease has ended since and another has it, he gets it back.
    """
    commands = [
        command
        for claim in claims
        for command in (b"reserve-job %d\r\n" % claim.job, _look(claim.job))
    ]
    replies: list[Reply] = await connection.ask(*commands)

    locked, others = [], []
    for claim, reserved, look in zip(claims, replies[::2], replies[1::2], strict=True):
        stats = table(look)
        if reserved.word != "RESERVED":
            continue
        if int(stats["pri"]) == claim.leased:
            locked.append(claim)
        else:
            others.append(release(claim.job, int(stats["pri"]), int(stats["delay"])))
    if others:
        await connection.ask(*others)
    return locked


def _is_ours(claim: Claim, stats: Mapping[str, str]) -> bool:
    """Whether the job is leased by this claim.

    While it is locked it counts as that: its number is unchanged.
    """
    return stats.get("state") in ("delayed", "reserved") and int(stats["pri"]) == claim.leased
