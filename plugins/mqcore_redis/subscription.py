"""One consumer of one queue: it claims, sleeps until there may be something, and claims again.

A claim is a call whose answer comes to `_take_in`, and no task waits for it: `receive` may be
cancelled. What the claim brings then goes to the next `receive` if that has begun by then, and back
to the queue if not: a consumer that drains calls `receive` no more, and closes much later.

The answer to a claim says when the queue may have something next: at once, or when a delay or a
lease ends. The timer here is precise, so the server does not wait for time. Until then a token
wakes the consumer, which claims in that moment. Once a second an idle or full consumer claims in
any case. All consumers of a session do so at the same moment, so that their claims leave in one
write.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from mqcore.spi import ConnectionLost, Delivery, Done, Settled, Settlement, Stale, Subscription
from mqcore_redis.batches import MESSAGES, Batches
from mqcore_redis.link import Answer
from mqcore_redis.rows import aged, deliveries, token
from mqcore_redis.scripts import Call
from mqcore_redis.session import Session, raise_if_error
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
        self._claiming: asyncio.Future[Answer] | None = None
        """The answer to the claim that is under way."""
        self._failure: Exception | None = None
        """What a claim has failed with: the end of this consumer."""
        self._sent_at = self._claimed_at = 0.0
        """When the last claim was sent, and when it was answered."""
        self._next = 0.0
        """When the queue may have something, as far as the last claim knows."""
        self._wanted = 0
        """For how many messages a sleeping consumer has room."""
        self._waiter: asyncio.Future[None] | None = None
        self._is_roused = False
        self._is_receiving = False
        """Whether a `receive` waits for what a claim brings: not after it was cancelled."""
        self._open = True

    async def start(self) -> None:
        """Check that the queue exists. Raises `QueueNotFound`."""
        await self._claim(0)

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
            if self._open:
                self._give_back()
            self._waker.pass_on(self.queue)
            raise

    async def _receive(self, limit: int, deadline: float) -> Sequence[Delivery]:
        has_asked = False
        while self._open:
            self._check()
            self._is_roused = False
            room = await self._room(limit)
            if not self._arrived and self._must_claim(room, deadline, has_asked=has_asked):
                await self._claim(max(room, 0))
                has_asked = True
            if not self._open:
                break  # `end` returns what the last claim brought
            if got := self._hand_out(limit):
                return got
            if self._loop.time() >= deadline and (has_asked or room <= 0):
                return []
            await self._sleep(deadline, room)
        return []

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """Settle a batch. Each outcome without an answer in time is `Unknown`."""
        self._session.check()
        settled = await self._batches.settle(self.queue, batch, self._loop.time() + timeout)
        was_full = len(self._held) >= self._prefetch
        for settlement, ending in zip(batch, settled, strict=True):
            if isinstance(ending, (Done, Stale)):
                self._held.pop(settlement.receipt, None)
        if was_full:
            self.rouse()
        return settled

    async def resize(self, prefetch: int) -> bool:
        """Hold at most so many unsettled messages from now on."""
        self._prefetch = prefetch
        self.rouse()
        return True

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
        self.rouse()
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
        """Claim now: there may be something for this sleeping consumer."""
        if self._claiming is None:
            self._send_claim(self._wanted, at_once=True)

    def rouse(self) -> None:
        """Let a waiting `receive` look again at what it waits for."""
        self._is_roused = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The steps of a receive

    async def _room(self, limit: int) -> int:
        """Return how many messages may be claimed.

        An ended lease takes no room. Another instance may have renewed it, so the server is asked.
        """
        if self._prefetch - len(self._held) < limit:
            now = self._loop.time()
            over = [receipt for receipt, ends in self._held.items() if ends <= now]
            left = await self._batches.renew(self.queue, over, 0) if over else ()
            for receipt, rest in zip(over, left, strict=True):
                if rest:
                    self._held[receipt] = now + rest / 1e6
                else:
                    self._held.pop(receipt, None)
        return min(limit, self._prefetch - len(self._held), MESSAGES)

    def _must_claim(self, room: int, deadline: float, *, has_asked: bool) -> bool:
        """Return whether there may be something.

        Each receive with room claims once at least. A full one claims nothing, once a second, so it
        notices that another process has deleted its queue.
        """
        now = self._loop.time()
        if not self._open or self._claiming is not None or now >= self._poll_at():
            return self._open
        return room > 0 and (now >= self._next or (now >= deadline and not has_asked))

    def _poll_at(self) -> float:
        phase = self._waker.phase
        return (self._claimed_at + phase) // POLL * POLL + POLL - phase

    async def _claim(self, room: int) -> None:
        """Wait for the claim that is under way, or claim."""
        if self._claiming is None:
            self._send_claim(room)
        while self._claiming is not None:
            self._is_roused = False
            await self._pause(None)
        self._check()

    def _check(self) -> None:
        """Raise what a claim has failed with, or that the session is over."""
        failure, self._failure = self._failure, None
        if failure is not None:
            self._leave()  # core creates a new subscription
            raise failure
        self._session.check()

    def _send_claim(self, room: int, *, at_once: bool = False) -> None:
        self._sent_at = self._loop.time()
        (self._claiming,) = self._session.main.run([self._call(room)], at_once=at_once)
        self._claiming.add_done_callback(self._take_in)

    def _take_in(self, answer: asyncio.Future[Answer]) -> None:
        """Take in what a claim has brought, and let a waiting `receive` look at it."""
        self._claiming, self._claimed_at = None, self._loop.time()
        try:
            if raise_if_error(answer.result()) == -1:
                raise self._session.missing(self.queue)  # noqa: TRY301 - every failure goes one way
            self._born, now, soonest, rows = answer.result()
            self._next = self._claimed_at + soonest / 1e6 if soonest >= 0 else float("inf")
            arrived = deliveries(now, rows, self._sent_at)
            self._arrived += arrived
            self._held |= {delivery.receipt: sent + self._lease for sent, delivery in arrived}
            if not (self._open and self._is_receiving):
                self._give_back()
        except Exception as error:  # noqa: BLE001 - whatever it is, `receive` raises it
            self._failure = error
        self.rouse()

    def _leave(self) -> None:
        self.closed(self)
        self._waker.forget(self.queue, self.wake)

    def _give_back(self) -> None:
        """Return what no caller waits for any more."""
        self._session.main.run(self._batches.abandoning(self.queue, self._unseen(), ()))

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

    async def _sleep(self, deadline: float, room: int) -> None:
        """Sleep until a token or a settlement comes, or until there is something to do.

        A full consumer sleeps until a lease ends. What has changed meanwhile is looked at first: a
        settlement may have emptied a full consumer while it asked about its queue.
        """
        if self._is_roused:
            return
        if room > 0:
            self._wanted = room
            self._waker.enter(self.queue, self.wake)
            soonest = self._next
        else:
            soonest = min(self._held.values(), default=0.0)
        try:
            await self._pause(min(deadline, self._poll_at(), soonest))
        finally:
            self._waker.leave(self.queue, self.wake)

    async def _pause(self, until: float | None) -> None:
        """Wait until `rouse` is called, or until a moment by the loop's clock."""
        self._waiter = self._loop.create_future()
        timer = None if until is None else self._loop.call_at(until, self.rouse)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
