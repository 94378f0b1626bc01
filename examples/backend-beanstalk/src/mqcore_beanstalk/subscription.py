"""One consumer: it waits on a connection of its own, and claims what that gets."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqcore import spi
from mqcore_beanstalk import claims, queues, settling
from mqcore_beanstalk.jobs import NEW, Claim, decode
from mqcore_beanstalk.protocol import Connection, Reply, expect, reserve

if TYPE_CHECKING:
    from mqcore_beanstalk.backend import BeanstalkBackend

__all__ = ["BeanstalkSubscription"]

_ANSWERS = ("RESERVED", "TIMED_OUT", "DEADLINE_SOON")
_PAGE = 16
_ROUND = 2
"""Whole seconds that one `reserve` waits at most.

After each the consumer looks whether its queue still exists.
"""
_SLACK = 0.05
"""Seconds by which the server's own answer that the time is over may come after ours."""
_GIVE_BACK = 1.0


@dataclass(frozen=True)
class _Leased:
    """A job that is leased to us and not handed out yet."""

    claim: Claim
    delivery: spi.Delivery
    until: float
    """When (monotonic) the lease ends at the earliest: counted from before the claim (G6)."""


class BeanstalkSubscription(spi.Subscription):
    """One consumer of one queue.

    A reservation on its connection is never more than a lock, so the connection may be dropped at
    any time. That is how a `reserve` that waits is given up: the server gives back what it may have
    reserved, unmarked.
    """

    def __init__(
        self, backend: "BeanstalkBackend", queue: str, prefetch: int, lease: float
    ) -> None:
        self._backend, self._queue, self._prefetch, self._lease = backend, queue, prefetch, lease
        self._connection: Connection | None = None
        self._claiming: asyncio.Task[None] | None = None
        self._leased: list[_Leased] = []
        self._held: dict[bytes, float] = {}
        """Receipts that are handed out, and until when (monotonic) their leases last at least."""
        self._changed = asyncio.Event()
        self._closed = False

    async def connect(self) -> Connection:
        """Return the connection to wait on, opened when there is none."""
        if self._connection is not None:
            return self._connection
        connection = await self._backend.connect()
        try:
            await queues.watch(connection, queues.tube(self._queue))
            self._refuse_if_closed()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def hang_up(self, why: str) -> None:
        """Drop the connection, and wake all waiting callers."""
        self._changed.set()
        if self._connection is not None:
            self._connection.close(why)
            self._connection = None

    # Receiving

    async def receive(self, limit: int, timeout: float) -> Sequence[spi.Delivery]:
        self._refuse_if_closed()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout

        while True:
            # Raises when the queue was deleted, or the connection is lost.
            await self._backend.require(self._queue)
            await self._forget_lost()
            room = min(limit, self._prefetch - len(self._held))
            left = max(deadline - loop.time(), 0.0)
            try:
                if room > 0:
                    got = await self._next(room, left)
                else:
                    got = await self._wait_for_room(left)
            except spi.ConnectionLost:
                if self._closed:
                    return []
                raise
            if got or self._closed or loop.time() >= deadline:
                return got

    async def _next(self, room: int, left: float) -> list[spi.Delivery]:
        """Hand out what is leased.

        Where there is nothing, lease what is ready, or wait for something.
        """
        if self._claiming is None and not self._leased:
            connection = await self.connect()
            jobs = await self._reserve(connection, room, left)
            if jobs:  # no `await` since they were reserved
                self._claiming = asyncio.create_task(self._claim(connection, jobs))

        if (claiming := self._claiming) is not None:
            # A cancelled receive leaves this task running: what it leases comes with the next call.
            await asyncio.wait([claiming])
            self._claiming = None
            if not claiming.cancelled():  # by `close`, which could wait no longer
                claiming.result()

        now = asyncio.get_running_loop().time()
        good = [it for it in self._leased if it.until > now]  # some may have ended
        page, self._leased = good[:room], good[room:]
        self._held.update({it.claim.receipt: it.until for it in page})
        return [it.delivery for it in page]

    async def _reserve(self, connection: Connection, room: int, left: float) -> list[Reply]:
        """Reserve up to `room` jobs.

        Where none is ready, wait for one. Given up at any point, it has reserved nothing.
        """
        try:
            replies = await connection.ask(*[reserve(0)] * min(room, _PAGE))
            got = [reply for reply in replies if expect(reply, *_ANSWERS).word == "RESERVED"]
            if got or left <= 0:
                return got

            wait = min(_ROUND, math.ceil(left))
            (waiting,) = connection.send(reserve(wait))
            await asyncio.wait([waiting], timeout=min(left, wait) + _SLACK)
            if waiting.done():
                reply = expect(waiting.result(), *_ANSWERS)
                return [reply] if reply.word == "RESERVED" else []
        except BaseException:
            self._drop(connection)
            raise
        self._drop(connection)  # the time is over, in the middle of one of the server's seconds
        await self.connect()
        return []

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise spi.ConnectionLost(
                f"the subscription of {self._queue!r} is closed; subscribe again"
            )

    def _drop(self, connection: Connection) -> None:
        connection.close()
        if self._connection is connection:
            self._connection = None

    async def _claim(self, connection: Connection, jobs: Sequence[Reply]) -> None:
        """Turn reservations of this connection into leases."""
        now, until = self._backend.clock.now(), asyncio.get_running_loop().time() + self._lease
        ids = [job.number for job in jobs]
        try:
            spec = await self._backend.require(self._queue)
        except spi.QueueNotFound:  # deleted while we waited: what was left in its tube goes with it
            await connection.ask(*map(claims.delete, ids))
            raise
        marks = await claims.marks(connection, ids)

        wanted: list[_Leased] = []
        for job, mark in zip(jobs, marks, strict=True):
            message, stored_at = decode(job.number, job.data)
            if (
                spec.retention is not None
                and stored_at is not None
                and stored_at + spec.retention <= now
            ):
                await connection.ask(claims.delete(job.number))
                continue
            claim = Claim.new(job.number, mark, message.priority)
            left = None if message.expires_at is None else message.expires_at - now
            delivery = spi.Delivery(
                message,
                claim.receipt,
                left,
                redelivered=mark != NEW,
                takeovers=claim.takeovers,
            )
            wanted.append(_Leased(claim, delivery, until))

        leased = await claims.lease(connection, [it.claim for it in wanted], self._lease)
        self._leased += [it for it, is_leased in zip(wanted, leased, strict=True) if is_leased]

    # Bounds

    async def _forget_lost(self) -> None:
        """Prefetch counts what is held, and a lost lease is not.

        Another instance may have renewed it: the server is asked.
        """
        now = asyncio.get_running_loop().time()
        over = [receipt for receipt, until in self._held.items() if until <= now]
        known = [claim for claim in map(Claim.of, over) if claim is not None]
        if not known:
            return
        for claim, left in zip(known, await claims.holds(self._backend.main, known), strict=True):
            self._held.pop(claim.receipt, None)
            if left is not None:
                self._held[claim.receipt] = now + max(left, 0.1)

    async def _wait_for_room(self, left: float) -> list[spi.Delivery]:
        """Wait until something is settled, a lease may have ended, or the connection is lost."""
        self._changed.clear()
        if self._closed:
            return []
        soonest = min(self._held.values()) - asyncio.get_running_loop().time()
        waiting = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait([waiting], timeout=max(min(left, soonest, _ROUND), 0.0))
        finally:
            waiting.cancel()
        return []

    # Settling

    async def settle(
        self, batch: Sequence[spi.Settlement], *, timeout: float
    ) -> Sequence[spi.Settled]:
        results = await self._backend.settle(batch, timeout)
        for item, result in zip(batch, results, strict=True):
            if isinstance(result, spi.Done | spi.Stale):
                self._held.pop(item.receipt, None)
                self._changed.set()
        return results

    # Ending

    async def pause(self) -> None:
        """Take no more. What is leased and was not handed out goes back as it was (G13)."""
        await self._stop_claiming()
        await self._end({it.claim: it.claim.unseen for it in self._leased})
        self._leased.clear()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._backend.subscriptions.discard(self)
        await self._stop_claiming()

        # Jobs that were not handed out go back unchanged. Jobs that were handed out and are not
        # settled count as taken over (G4).
        ended = {it.claim: it.claim.unseen for it in self._leased}
        ended |= {claim: claim.lost for claim in map(Claim.of, self._held) if claim is not None}
        self._leased.clear()
        self._held.clear()
        await self._end(ended)

    async def _stop_claiming(self) -> None:
        if (claiming := self._claiming) is not None:
            await asyncio.wait([claiming], timeout=_GIVE_BACK / 2)
            claiming.cancel()
            await asyncio.gather(claiming, return_exceptions=True)
        self.hang_up("the subscription is closed; subscribe again")

    async def _end(self, ended: Mapping[Claim, int]) -> None:
        if not ended:
            return
        try:
            async with asyncio.timeout(_GIVE_BACK):
                await settling.give_back(self._backend.main, ended)
        except (OSError, spi.ConnectionLost):
            return  # then they come back when their leases end
