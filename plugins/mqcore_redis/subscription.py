"""One consumer of one queue: it claims, sleeps until there may be something, and claims again.

A claim runs in a task of its own, because `receive` may be cancelled. What the claim brings then
goes to the next `receive` if that has begun by then, and back to the queue if not: a consumer that
drains calls `receive` no more, and closes much later. The server does not wait for time. The answer
to a claim says when a delay or a lease ends next, and the timer here is precise. Once a second an
idle or full consumer claims in any case. All consumers of a session do so at the same moment, so
that their claims leave in one write.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

from mqcore.spi import ConnectionLost, Delivery, Done, Settled, Settlement, Stale, Subscription
from mqcore_redis.batches import MESSAGES, Batches
from mqcore_redis.rows import aged, deliveries, token
from mqcore_redis.session import Call, Session, raise_if_error
from mqcore_redis.waker import Waker

__all__ = ["RedisSubscription"]

POLL = 1.0
"""Seconds between two claims of an idle consumer.

A lease that ends without a timer of ours is noticed this late.
"""
_LAST_CALLS = 1.0
"""Seconds that `close` may take to return what is under way."""


class RedisSubscription(Subscription):
    """Created by `Consumers.subscribe`, which calls `start`."""

    def __init__(
        self,
        session: Session,
        batches: Batches,
        waker: Waker,
        queue: str,
        *,
        prefetch: int,
        lease: float,
    ) -> None:
        self.queue = queue
        self.closed: Callable[[RedisSubscription], None] = lambda _: None
        self._session, self._batches, self._waker = session, batches, waker
        self._prefetch, self._lease = prefetch, lease
        self._loop = asyncio.get_running_loop()
        self._born = b""
        self._held: dict[bytes, float] = {}
        """Unsettled claims, and their ends by our clock. Another instance may have renewed them."""
        self._arrived: list[tuple[float, Delivery]] = []
        """Deliveries that were not handed out yet, and when their claims were sent."""
        self._claiming: asyncio.Task[None] | None = None
        self._awake = asyncio.Event()
        self._next = 0.0
        self._claimed_at = 0.0
        self._is_receiving = False
        """Whether a `receive` waits for what a claim brings: not after it was cancelled."""
        self._open = True

    async def start(self) -> None:
        """Check that the queue exists. Raises `QueueNotFound`."""
        await self._fetch(0)

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Claim, or wait until there is something to claim.

        Raises `QueueNotFound` when the queue was deleted.
        """
        if not self._open:
            raise ConnectionLost(
                f"the subscription of queue {self.queue!r} is closed; subscribe again"
            )
        self._is_receiving = True
        try:
            return await self._receive(limit, self._loop.time() + timeout)
        except asyncio.CancelledError:
            # This consumer may have been woken, or mind the next delay: another one claims instead.
            self._is_receiving = False
            if self._arrived and self._open:
                self._start(self._give_back())
            self._waker.pass_on(self.queue)
            raise

    async def _receive(self, limit: int, deadline: float) -> Sequence[Delivery]:
        while self._open:
            self._session.check()
            self._awake.clear()
            room = await self._room(limit)
            if self._open and not self._arrived and (room > 0 or self._is_check_due()):
                await self._claim(max(room, 0))
            if not self._open:
                break  # `end` returns what the last claim brought
            if got := self._hand_out(limit):
                return got
            now = self._loop.time()
            if now >= deadline:
                return []
            await self._sleep(min(deadline, self._next_claim(now, room)) - now, full=room <= 0)
        return []

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """Settle a batch. Each outcome without an answer in time is `Unknown`."""
        self._session.check()
        settled = await self._batches.settle(self.queue, batch, self._loop.time() + timeout)
        for settlement, ending in zip(batch, settled, strict=True):
            if isinstance(ending, (Done, Stale)):
                self._held.pop(settlement.receipt, None)
        self._awake.set()
        return settled

    async def close(self) -> None:
        """End a waiting `receive`.

        What was not handed out returns unmarked. What is unsettled returns as taken over.
        """
        await self.end(lost=True)

    async def end(self, *, lost: bool) -> None:
        """Close.

        Without `lost`, claims hold until their leases end: their handlers may still settle them.
        """
        if not self._open:
            return
        self._open = False
        self._leave()
        self._awake.set()
        with suppress(Exception):
            async with asyncio.timeout(_LAST_CALLS):
                if self._claiming is not None:
                    await asyncio.wait([self._claiming])
                unseen = self._unseen()
                back = self._batches.abandoning(
                    self.queue, unseen, list(self._held) if lost else []
                )
                await self._session.gather([*back, self._call(0, last=True)])

    def wake(self) -> None:
        """Claim now, because there may be something."""
        self._awake.set()

    # The steps of a receive

    async def _room(self, limit: int) -> int:
        """Return how many messages may be claimed.

        An ended lease takes no room. Another instance may have renewed it, so the server is asked.
        """
        now = self._loop.time()
        over = [receipt for receipt, ends in self._held.items() if ends <= now]
        if over and self._prefetch - len(self._held) < limit:
            left = await self._batches.renew(self.queue, over, 0)
            for receipt, rest in zip(over, left, strict=True):
                if rest:
                    self._held[receipt] = now + rest / 1e6
                else:
                    self._held.pop(receipt, None)
        return min(limit, self._prefetch - len(self._held), MESSAGES)

    async def _claim(self, room: int) -> None:
        try:
            # a claim of a receive that was cancelled may be under way
            if self._claiming is not None and not self._claiming.done():
                await asyncio.shield(self._claiming)
            if self._open and not self._arrived:
                await asyncio.shield(self._start(self._fetch(room)))
        except Exception:
            self._leave()  # core creates a new subscription
            raise

    def _start(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        self._claiming = asyncio.create_task(work)
        # its exception counts as seen, also when no receive waits for it
        self._claiming.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._claiming

    def _leave(self) -> None:
        self.closed(self)
        self._waker.forget(self)

    async def _fetch(self, room: int) -> None:
        before = self._loop.time()
        (answer,) = await self._session.gather([self._call(room)])
        if raise_if_error(answer) == -1:
            raise self._session.missing(self.queue)
        self._born, now, soonest, rows = answer
        self._claimed_at = self._loop.time()
        self._next = self._claimed_at + soonest / 1e6 if soonest >= 0 else float("inf")
        arrived = deliveries(now, rows)
        self._arrived += [(before, delivery) for delivery in arrived]
        self._held |= dict.fromkeys(
            (delivery.receipt for delivery in arrived), before + self._lease
        )
        if self._arrived and not self._is_receiving and self._open:
            await self._give_back()

    async def _give_back(self) -> None:
        await self._session.gather(self._batches.abandoning(self.queue, self._unseen(), ()))

    def _unseen(self) -> list[bytes]:
        """Return and forget what has arrived and will not be handed out."""
        unseen, self._arrived = [delivery.receipt for _, delivery in self._arrived], []
        for receipt in unseen:
            self._held.pop(receipt, None)
        return unseen

    def _call(self, room: int, *, last: bool = False) -> Call:
        args = (self._born, room, round(self._lease * 1e6), token(), int(last))
        return Call("claim", self._session.keys.of(self.queue), args)

    def _hand_out(self, limit: int) -> list[Delivery]:
        """Hand out what has arrived, unless its lease has ended meanwhile."""
        now = self._loop.time()
        got, self._arrived = self._arrived[:limit], self._arrived[limit:]
        return [
            aged(delivery, now - sent)
            for sent, delivery in got
            if self._held.get(delivery.receipt, now) > now
        ]

    def _next_claim(self, now: float, room: int) -> float:
        phase = self._waker.phase
        # A settlement may have emptied it while a full consumer asked about its queue.
        soonest = self._next if room > 0 else min(self._held.values(), default=now)
        return min(soonest, (now + phase) // POLL * POLL + POLL - phase)

    def _is_check_due(self) -> bool:
        """Return whether a full consumer should claim nothing.

        So it notices that another process has deleted its queue.
        """
        return self._loop.time() - self._claimed_at >= POLL

    async def _sleep(self, delay: float, *, full: bool) -> None:
        if not full:
            self._waker.enter(self)
        try:
            async with asyncio.timeout(max(delay, 0.0)):
                await self._awake.wait()
        except TimeoutError:
            return
        finally:
            self._waker.leave(self)
