"""One consumer of one queue: it claims, sleeps until there may be something, and claims again.

A claim runs in a task of its own, and who waits for it may be cancelled: what it brings is for the
next `receive`, if that has begun by then, and goes back at once if not: who drains asks no more,
and closes much later. Time is not waited for at the server: the answer to a claim says when a delay
or a lease ends next, and our own timer is precise. Once a second an idle or a full consumer looks
in any case, all of a session at the same moment, so that their claims leave in one write.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

from mqcore.spi import ConnectionLost, Delivery, Done, Settled, Settlement, Stale, Subscription
from mqcore_redis.batches import MESSAGES, Batches
from mqcore_redis.rows import aged, deliveries, token
from mqcore_redis.session import Call, Session, told
from mqcore_redis.waker import Waker

__all__ = ["RedisSubscription"]

POLL = 1.0
"""Seconds between two looks of an idle consumer: a lease that nobody knew of is taken over this late.
"""
_LAST_CALLS = 1.0
"""Seconds that `close` may take to give back what is on its way."""


class RedisSubscription(Subscription):
    """Made by `Consumers.subscribe`, which calls `start`."""

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
        """What is out, until when by our clock: a renewal by another instance is not seen here."""
        self._arrived: list[tuple[float, Delivery]] = []
        """What nobody has been handed yet, and when its claim was sent."""
        self._claiming: asyncio.Task[None] | None = None
        self._awake = asyncio.Event()
        self._next = 0.0
        self._looked = 0.0
        self._wanted = False
        """Whether a `receive` is there for what a claim brings: not after it was cancelled."""
        self._open = True

    async def start(self) -> None:
        """Register. Raises `QueueNotFound`."""
        await self._fetch(0)

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Claim, or wait until there is something to claim.

        Raises `QueueNotFound` once the queue was deleted.
        """
        if not self._open:
            raise ConnectionLost(
                f"the subscription of queue {self.queue!r} is closed; subscribe again"
            )
        self._wanted = True
        try:
            return await self._receive(limit, self._loop.time() + timeout)
        except (
            asyncio.CancelledError
        ):  # we may have been woken, or mind the next delay: let another look instead
            self._wanted = False
            if self._arrived and self._open:
                self._start(self._give_back())
            self._waker.pass_on(self.queue)
            raise

    async def _receive(self, limit: int, deadline: float) -> Sequence[Delivery]:
        while self._open:
            self._session.check()
            self._awake.clear()
            room = await self._room(limit)
            if self._open and not self._arrived and (room > 0 or self._is_look_due()):
                await self._claim(max(room, 0))
            if not self._open:
                break  # what the last claim brought is given back by who closes
            if got := self._hand_out(limit):
                return got
            now = self._loop.time()
            if now >= deadline:
                return []
            await self._sleep(min(deadline, self._look_again(now, room)) - now, full=room <= 0)
        return []

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """Settle a batch; an outcome for each, `Unknown` for what has no answer in time."""
        self._session.check()
        settled = await self._batches.settle(self.queue, batch, self._loop.time() + timeout)
        for settlement, ending in zip(batch, settled, strict=True):
            if isinstance(ending, (Done, Stale)):
                self._held.pop(settlement.receipt, None)
        self._awake.set()
        return settled

    async def close(self) -> None:
        """End a waiting `receive`; what it has not got goes back as it was, what is still held goes back as taken over."""
        await self.end(lost=True)

    async def end(self, *, lost: bool) -> None:
        """Close.

        Without `lost`, what is held is kept until its lease ends: its handlers may still settle it.
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
        """Look whether there is something."""
        self._awake.set()

    # The steps of a receive

    async def _room(self, limit: int) -> int:
        """Return how many may be claimed: an ended lease holds nothing, but who renews does not tell us."""
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
            if (
                self._claiming is not None and not self._claiming.done()
            ):  # of a receive that was cancelled
                await asyncio.shield(self._claiming)
            if self._open and not self._arrived:
                await asyncio.shield(self._start(self._fetch(room)))
        except Exception:
            self._leave()  # core takes a new subscription: this one is no consumer any more
            raise

    def _start(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        self._claiming = asyncio.create_task(work)
        self._claiming.add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )  # maybe nobody waits
        return self._claiming

    def _leave(self) -> None:
        self.closed(self)
        self._waker.forget(self)

    async def _fetch(self, room: int) -> None:
        before = self._loop.time()
        (answer,) = await self._session.gather([self._call(room)])
        if told(answer) == -1:
            raise self._session.missing(self.queue)
        self._born, now, soonest, rows = answer
        self._looked = self._loop.time()
        self._next = self._looked + soonest / 1e6 if soonest >= 0 else float("inf")
        arrived = deliveries(now, rows)
        self._arrived += [(before, delivery) for delivery in arrived]
        self._held |= dict.fromkeys(
            (delivery.receipt for delivery in arrived), before + self._lease
        )
        if self._arrived and not self._wanted and self._open:
            await self._give_back()

    async def _give_back(self) -> None:
        await self._session.gather(self._batches.abandoning(self.queue, self._unseen(), ()))

    def _unseen(self) -> list[bytes]:
        """Return what has arrived and will not be handed out; it is ours no more."""
        unseen, self._arrived = [delivery.receipt for _, delivery in self._arrived], []
        for receipt in unseen:
            self._held.pop(receipt, None)
        return unseen

    def _call(self, room: int, *, last: bool = False) -> Call:
        args = (self._born, room, round(self._lease * 1e6), token(), int(last))
        return Call("claim", self._session.keys.of(self.queue), args)

    def _hand_out(self, limit: int) -> list[Delivery]:
        """Give what has arrived, unless its lease ended while nobody asked for it."""
        now = self._loop.time()
        got, self._arrived = self._arrived[:limit], self._arrived[limit:]
        return [
            aged(delivery, now - sent)
            for sent, delivery in got
            if self._held.get(delivery.receipt, now) > now
        ]

    def _look_again(self, now: float, room: int) -> float:
        phase = self._waker.phase
        soonest = self._next if room > 0 else min(self._held.values())
        return min(soonest, (now + phase) // POLL * POLL + POLL - phase)

    def _is_look_due(self) -> bool:
        """Whether a full consumer asks for nothing, to hear that its queue was deleted by another process."""
        return self._loop.time() - self._looked >= POLL

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
