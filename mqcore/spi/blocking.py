"""The adapter for a client library that blocks, such as a database's or kombu's.

Write a `BlockingDriver`, whose methods are those of the seam without `async`, and name it in a
`BlockingBackend`:

    class AcmeBackend(BlockingBackend):
        scheme = "acme"
        spi_version = 1
        Driver = AcmeDriver

Each `open` makes a driver and one daemon thread, which runs the driver's calls one after the other.
So a driver needs no locks, and may hold a connection that belongs to one thread.

A call that the thread has not begun can be withdrawn: it certainly had no effect. A call that has
begun cannot be stopped. Its caller goes on when it is cancelled or its time ends, and what the call
claimed goes back to its queue at once, unmarked.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from mqcore.clock import Clock, SystemClock
from mqcore.errors import ConnectionLost, QueueNotFound
from mqcore.spi.backend import Backend, Subscription
from mqcore.spi.calls import CallNotBegun, CallNotEnded, CallThread
from mqcore.spi.gathered import Gathered, Group
from mqcore.spi.outcomes import Done, ErrorKind, Failed, Stale, Unknown

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Sequence

    from pydantic import BaseModel

    from mqcore.messages.delivery import Delivery, Outgoing, Settlement
    from mqcore.rules.capabilities import Capabilities
    from mqcore.spi.backend import QueueSpec
    from mqcore.spi.outcomes import Outcome, Settled

__all__ = ["BlockingBackend", "BlockingDriver", "CallNotBegun", "CallNotEnded", "CallThread"]

R = TypeVar("R")
_Lost = Callable[[Exception], None]

_CLOSE = 1.5
"""Seconds that `close` waits for the thread. A Backend must be closed within 2 s."""
_LEAST = 1.0
"""Seconds that a claim may take although the caller wants to wait less."""
_CHECK = 1.0
"""Seconds between two checks of a consumer that may hold no more messages."""
_OPTIONAL = [
    "alter",
    "bind",
    "bindings",
    "browse",
    "count",
    "delete",
    "diagnose",
    "note_start",
    "purge",
    "renew",
    "sweep",
    "take",
    "unbind",
]
"""Methods of the optional protocols, which an adapter has where its driver has them."""
_CLAIMING = ("sweep", "take")
"""Those of them that return claims. Their first parameter is the queue."""


class BlockingDriver(ABC):
    """A broker, as one thread uses it: `Backend` and `Subscription` without `async`.

    All methods but `classify` run on one thread, one after the other. They must end by themselves:
    give the client library time limits. Nothing here waits for messages.

    A driver may have the methods of the optional protocols too (`count`, `renew` and so on, also
    without `async`); `BlockingBackend` then supports them.
    """

    def __init__(self, url: str, options: BaseModel) -> None:
        """Store what is needed to connect. Must not do I/O; runs on the event loop."""
        self.url = url
        self.options = options

    @abstractmethod
    def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """As `Backend.open`, once for each instance. `lost` may be called from any thread."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections and remove the temporary queues of this instance.

        Also called when `open` has failed.
        """

    @abstractmethod
    def declare(self, queues: Sequence[QueueSpec]) -> None:
        """As `Backend.declare`."""

    @abstractmethod
    def publish(self, batch: Sequence[Outgoing], timeout: float) -> Sequence[Outcome]:
        """As `Backend.publish`."""

    @abstractmethod
    def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Any:
        """As `Backend.subscribe`; return what identifies the consumer to the methods below.

        The adapter counts what is unsettled. `prefetch` is what the consumer begins with, and the
        `limit` of a `claim` may exceed it after a resize.
        """

    @abstractmethod
    def claim(self, consumer: Any, limit: int) -> Sequence[Delivery]:
        """Claim up to `limit` messages that are ready now, without waiting.

        Raises NOT_FOUND when the queue was deleted, also with a limit of 0. Order, expired messages
        and marks as in `Subscription.receive`.
        """

    @abstractmethod
    def settle(
        self, consumer: Any, batch: Sequence[Settlement], timeout: float
    ) -> Sequence[Settled]:
        """As `Subscription.settle`; those that waited for the thread together are one call."""

    @abstractmethod
    def give_back(self, queue: str, receipts: Sequence[bytes]) -> None:
        """Return claims whose messages were not handed out; their marks stay as they were."""

    @abstractmethod
    def unsubscribe(self, consumer: Any, receipts: Sequence[bytes]) -> None:
        """End a consumer. These claims are unsettled and come back as taken over."""

    def abort(self) -> None:  # noqa: B027 - most drivers have nothing to do here
        """Cut the connections, because `close` cannot wait for the thread any longer.

        Runs on the event loop, while the thread may be inside a call. The default does nothing: the
        thread is a daemon, and is left to itself.
        """

    @staticmethod
    @abstractmethod
    def classify(error: Exception) -> ErrorKind:
        """As `Backend.classify`."""

    def pending(self, queues: Sequence[str]) -> Collection[str]:
        """Return those queues at which an idle consumer should claim now.

        Called every `poll` seconds with the queues of all idle consumers, so that one statement
        serves them all. Must include a queue that is missing. The default returns all queues.
        """
        return queues

    def is_quiet(self, queues: Sequence[str]) -> bool:  # noqa: ARG002 - for overriding
        """Return whether `pending` would certainly return nothing; it is not called then.

        Runs on the event loop, while the thread may be inside a call, so it must not block and must
        not use the connection. It saves an idle process the way through the thread. The default
        returns False.
        """
        return False

    def next_look(self, poll: float) -> float:
        """Return in how many seconds idle consumers are looked after again; `poll` by default.

        Runs on the event loop, as `is_quiet`. A driver that knows when the next message falls due
        may let an idle process sleep longer.
        """
        return poll

    def held(self, consumer: Any, receipts: Sequence[bytes]) -> Collection[bytes]:  # noqa: ARG002 - for overriding
        """Return the claims that still hold.

        Called for claims whose lease has ended by the consumer's clock: another instance may have
        renewed them. The default returns none, which is right without LEASE as well.
        """
        return ()


class BlockingBackend(Backend):
    """A Backend whose driver blocks. Subclasses set `scheme`, `Options` and `Driver`.

    `poll` is the number of seconds between two looks for messages when all consumers are idle.
    """

    Driver: ClassVar[type[BlockingDriver]]
    poll: ClassVar[float] = 0.05

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in _OPTIONAL:
            if hasattr(getattr(cls, "Driver", None), name) and not hasattr(cls, name):
                setattr(cls, name, _forwarding(name))

    def __init__(self, url: str, options: BaseModel) -> None:
        super().__init__(url, options)
        self.clock: Clock = getattr(options, "clock", None) or SystemClock()
        self._driver: BlockingDriver | None = None
        self._thread: CallThread
        self._error: Exception | None = None
        self._subscriptions: set[_BlockingSubscription] = set()
        self._poller: asyncio.Task[None] | None = None

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """Make a driver and its thread, and connect."""
        await self.close()
        driver = self.Driver(self.url, self.options)
        thread = CallThread(f"mqcore-{type(self).__name__}", self.clock)
        loop, self._error = asyncio.get_running_loop(), None

        def report(error: Exception) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._lose, driver, error, lost)

        self._driver, self._thread = driver, thread
        try:
            capabilities = await thread.run(lambda: driver.open(report))
        except BaseException:
            self._driver = None
            thread.post(driver.close)
            thread.close()
            raise
        self._poller = asyncio.create_task(self._poll())
        return capabilities

    async def close(self) -> None:
        """End the consumers and close the driver. A thread that does not answer is left behind."""
        driver, self._driver = self._driver, None
        if driver is None:
            return

        if self._poller is not None:
            self._poller.cancel()
        for subscription in list(self._subscriptions):
            subscription.end(self._thread, driver)
        ended = self._thread.post(driver.close)
        self._thread.close()

        try:
            async with asyncio.timeout(_CLOSE):
                await asyncio.shield(ended)
        except BaseException as error:
            with suppress(Exception):
                driver.abort()
            if not isinstance(error, TimeoutError):
                raise

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """As `BlockingDriver.declare`."""
        await self.run(lambda driver: driver.declare(queues))

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        """As `BlockingDriver.publish`; what the thread has not begun in time is `Failed` (G1)."""
        copies = list(batch)
        answers: Sequence[Outcome] = await _answered(
            copies, self.run(lambda driver: driver.publish(copies, timeout), timeout)
        )
        return answers

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        """Start to consume. Raises NOT_FOUND when the queue is missing."""
        consumer = await self.run(
            lambda driver: driver.subscribe(queue, prefetch=prefetch, lease=lease),
            undo=lambda driver, consumer: driver.unsubscribe(consumer, ()),
        )
        subscription = _BlockingSubscription(self, queue, consumer, prefetch, lease)
        self._subscriptions.add(subscription)
        return subscription

    def classify(self, error: Exception) -> ErrorKind:
        """As `BlockingDriver.classify`, and the errors of the adapter."""
        if isinstance(error, QueueNotFound):
            return ErrorKind.NOT_FOUND
        if isinstance(error, (ConnectionLost, CallNotBegun, CallNotEnded)):
            return ErrorKind.TRANSIENT
        return self.Driver.classify(error)

    def wake(self, queue: str) -> None:
        """Let the idle consumers of a queue claim now. A driver with notifications calls it.

        Must be called on the loop.
        """
        for subscription in self._subscriptions:
            if subscription.queue == queue:
                subscription.awake.set()

    async def run(
        self,
        work: Callable[[BlockingDriver], R],
        timeout: float | None = None,
        undo: Callable[[BlockingDriver, R], object] | None = None,
    ) -> R:
        """Run `work(driver)` on the thread, as `CallThread.run`.

        Raises `ConnectionLost` when this instance is closed, or has lost its connection.
        """
        self.check()
        driver = self._driver
        if driver is None:
            raise ConnectionLost("the connection is closed; open it first")
        return await self._thread.run(
            lambda: work(driver),
            timeout=timeout,
            undo=None if undo is None else partial(undo, driver),
        )

    def check(self) -> None:
        """Raise `ConnectionLost` after a loss."""
        if self._error is not None:
            raise ConnectionLost(f"the connection is closed: {self._error}") from self._error

    def end(self, subscription: _BlockingSubscription) -> asyncio.Future[None] | None:
        """Begin to close a subscription; None when the instance is closed already."""
        if self._driver is None:
            return None
        return subscription.end(self._thread, self._driver)

    def forget(self, subscription: _BlockingSubscription) -> None:
        """Drop a subscription that has ended."""
        self._subscriptions.discard(subscription)

    def _lose(self, driver: BlockingDriver, error: Exception, lost: _Lost) -> None:
        if driver is self._driver and self._error is None:
            self._error = error
            for subscription in self._subscriptions:
                subscription.awake.set()
            lost(error)

    async def _poll(self) -> None:
        """Wake the idle consumers whose queues have something for them."""
        while True:
            await self.clock.sleep(self._driver.next_look(self.poll) if self._driver else self.poll)
            queues = sorted({it.queue for it in self._subscriptions if it.is_idle})
            if not queues or self._driver is None or self._driver.is_quiet(queues):
                continue

            try:
                found = await self.run(methodcaller("pending", queues))
            except Exception:  # noqa: BLE001 - the claims of the consumers raise it where it belongs
                found = queues
            for queue in found:
                self.wake(queue)


class _BlockingSubscription(Subscription):
    """One consumer: it claims, and waits on the loop between the claims."""

    def __init__(
        self, backend: BlockingBackend, queue: str, consumer: Any, prefetch: int, lease: float
    ) -> None:
        self.queue, self._consumer = queue, consumer
        self.awake = asyncio.Event()
        self.is_idle = False
        self._backend, self._prefetch, self._lease = backend, prefetch, lease
        self._held: dict[bytes, float] = {}
        """What is unsettled, and when its lease ends by our clock."""
        self._unseen: Sequence[Delivery] = []
        """What the thread has claimed and the loop has not handed out yet."""
        self._is_open = True
        self._settling = Gathered(self._settle)

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Claim, or wait until there may be something to claim."""
        if not self._is_open:
            raise ConnectionLost(
                f"the subscription of queue {self.queue!r} is closed; subscribe again"
            )
        clock = self._backend.clock
        deadline = clock.monotonic() + timeout

        while self._is_open:
            self._backend.check()
            self.awake.clear()
            room = min(limit, await self._room())
            claimed = await self._claim(room, max(deadline - clock.monotonic(), _LEAST))
            left = deadline - clock.monotonic()
            if claimed or left <= 0:
                return claimed
            await self._wait(left if room > 0 else min(left, _CHECK), is_idle=room > 0)
        return []

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """As `BlockingDriver.settle`; what the thread has not begun in time is `Failed`.

        Settlements that wait for the thread at the same time are one call of the driver.
        """
        if not batch:
            return []
        settled = await self._settling.add(list(batch), timeout)
        self.awake.set()
        return settled

    async def _settle(self, group: Group[Settlement, Settled], timeout: float) -> Sequence[Settled]:
        def work(driver: BlockingDriver) -> Sequence[Settled]:
            items = group.close()
            outcomes = driver.settle(self._consumer, items, timeout)
            # here, on the thread: a caller that is cancelled frees its room all the same
            for item, outcome in zip(items, outcomes, strict=True):
                if isinstance(outcome, (Done, Stale)):
                    self._held.pop(item.receipt, None)
            return outcomes

        settled: Sequence[Settled] = await _answered(group.items, self._backend.run(work, timeout))
        return settled

    async def resize(self, prefetch: int) -> bool:
        """Hold at most so many unsettled messages from now on."""
        self._prefetch = prefetch
        self.awake.set()
        return True

    async def close(self) -> None:
        """End a waiting `receive`. What is unsettled comes back as taken over."""
        if not self._is_open:
            return
        if (given_back := self._backend.end(self)) is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE):
                    await asyncio.shield(given_back)

    def end(self, thread: CallThread, driver: BlockingDriver) -> asyncio.Future[None]:
        """Close without waiting: the thread gives back what is unsettled, in its turn."""
        self._is_open = False
        self._backend.forget(self)
        self.awake.set()

        def unsubscribe() -> None:  # here, on the thread: settlements of ours may come before it
            with suppress(Exception):  # a lease ends by itself
                self._return_unseen(driver)
            driver.unsubscribe(self._consumer, list(self._held))

        return thread.post(unsubscribe)

    async def _room(self) -> int:
        """Return how many messages may be claimed. An ended lease takes no room (G12)."""
        now = self._backend.clock.monotonic()
        ended = [receipt for receipt, ends in list(self._held.items()) if ends <= now]

        if ended:
            renewed = await self._backend.run(lambda driver: driver.held(self._consumer, ended))
            for receipt in ended:
                if receipt in renewed:
                    self._held[receipt] = now + self._lease
                else:
                    self._held.pop(receipt, None)
        return max(self._prefetch - len(self._held), 0)

    async def _claim(self, room: int, timeout: float) -> Sequence[Delivery]:
        """Claim now. A claim whose caller has gone returns to the queue unmarked."""
        before = self._backend.clock.monotonic()

        def claim(driver: BlockingDriver) -> Sequence[Delivery]:
            self._unseen = driver.claim(self._consumer, room)
            if not self._is_open:  # closed during the claim
                self._return_unseen(driver)
            return self._unseen

        try:
            claimed = await self._backend.run(claim, timeout, self._return_unseen)
        except (CallNotBegun, CallNotEnded):
            return []

        if not self._is_open:  # closed after the claim: the end of the consumer returns them
            return []
        self._unseen = []
        self._held |= {each.receipt: before + self._lease for each in claimed}
        return claimed

    def _return_unseen(self, driver: BlockingDriver, _claimed: object = None) -> None:
        """Give back, unmarked, what was claimed and not handed out; on the thread."""
        unseen, self._unseen = self._unseen, []
        _return_unseen(self.queue, driver, unseen)

    async def _wait(self, delay: float, *, is_idle: bool) -> None:
        self.is_idle = is_idle
        try:
            with suppress(TimeoutError):
                async with self._backend.clock.timeout(delay):
                    await self.awake.wait()
        finally:
            self.is_idle = False


def _forwarding(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return the method of an optional protocol that runs the driver's method on the thread."""

    async def method(self: BlockingBackend, *args: Any, **options: Any) -> Any:
        undo = partial(_return_unseen, str(args[0])) if name in _CLAIMING else None
        return await self.run(lambda driver: getattr(driver, name)(*args, **options), undo=undo)

    method.__name__, method.__doc__ = name, f"As the driver's `{name}`."
    return method


def _return_unseen(queue: str, driver: BlockingDriver, claimed: Sequence[Delivery]) -> None:
    if claimed:
        driver.give_back(queue, [delivery.receipt for delivery in claimed])


async def _answered(batch: Sequence[object], work: Coroutine[Any, Any, Any]) -> Any:
    """Return the outcomes of a batch: `Failed` or `Unknown` for each where its time has ended."""
    try:
        return await work
    except CallNotBegun as error:
        return [Failed(ErrorKind.TRANSIENT, str(error), error)] * len(batch)
    except CallNotEnded as error:
        return [Unknown(str(error), error)] * len(batch)
