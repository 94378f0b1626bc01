"""The pull API: messages come when they are asked for, and the caller settles each.

    async with broker.consume(orders, prefetch=10) as deliveries:
        async for delivery in deliveries:
            print(delivery.value)
            await delivery.ack()

It uses the same `Receiver` as handlers do. A message that has expired, cannot be decoded or does
not validate never reaches the loop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from mqcore.consuming.context import DeliveryInfo
from mqcore.errors import ConfigurationError, ConnectionLost, LeaseLost
from mqcore.rules.checks import check_count, check_seconds, check_text, described
from mqcore.rules.retry import Ending, Failure, HandlerResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from datetime import timedelta
    from types import TracebackType

    from mqcore.consuming.held import HeldDelivery
    from mqcore.consuming.receiver import Receiver
    from mqcore.messages.delivery import Delivery
    from mqcore.queue import Queue
    from mqcore.rules.inbound import Inbound

__all__ = ["Consumer", "Received", "received"]

T = TypeVar("T")


class _Settles(Protocol):
    """What settles a received message: its receiver."""

    def finish(self, held: HeldDelivery, result: HandlerResult) -> object: ...


class Received(DeliveryInfo, Generic[T]):
    """A message that the application has received: its `value`, and the calls that settle it.

    Settle each message once.
    """

    def __init__(
        self,
        queue: str,
        held: HeldDelivery,
        delivery: Delivery,
        value: T,
        settles: _Settles,
        state: Any = None,
    ) -> None:
        """Made by a consumer, or for one item of a batch."""
        super().__init__(queue, delivery, state)
        self.value = value
        self.delivery = delivery
        """The delivery, its message as the value was read from it: transforms are undone."""
        self.finished = False
        """Whether it has been settled here."""
        self.held = held
        """The delivery as core holds it, its message as the broker stores it."""
        self._settles = settles

    async def ack(self) -> None:
        """Done: remove the message.

        Raises `LeaseLost` when it went to another consumer meanwhile (G5). In a batch with `once=`
        this and the methods below return at once, and take effect after its transaction.
        """
        await self._finish(HandlerResult(Ending.SUCCEEDED))

    async def release(self) -> None:
        """Give it back, not counted as an attempt (G4). Raises `LeaseLost` as `ack` does."""
        await self._finish(HandlerResult(Ending.INTERRUPTED))

    async def retry(
        self, delay: float | timedelta | None = None, error: BaseException | None = None
    ) -> None:
        """Handle it again by the retry policy, or after `delay` seconds (G10).

        It is dead-lettered when its attempts are exhausted.
        """
        if error is not None and not isinstance(error, BaseException):
            raise ConfigurationError(
                f"message {self.id}: retry(error=) takes the exception that happened, not "
                f"{described(error)}"
            )
        wait = (
            None
            if delay is None
            else check_seconds("delay", delay, f"message {self.id}", zero=True)
        )
        await self._finish(HandlerResult(Ending.RETRY, Failure.of(error) if error else None, wait))

    async def postpone(self, delay: float | timedelta) -> None:
        """Handle it again after `delay` seconds, not counted as an attempt (G10).

        The wait ends at the message's expiry at the latest. Raises `LeaseLost` as `ack` does.
        """
        wait = check_seconds("delay", delay, f"message {self.id}", zero=True)
        await self._finish(HandlerResult(Ending.POSTPONED, delay=wait))

    async def reject(self, reason: str = "rejected by the consumer") -> None:
        """Dead-letter it without another attempt, with the reason `rejected` (G11)."""
        check_text("reason", reason, f"message {self.id}")
        await self._finish(HandlerResult(Ending.REJECTED, Failure((), reason)))

    def finish(self, result: HandlerResult) -> None:
        """Settle without waiting for the broker's answer; a second time does nothing."""
        self.held.check_loop()
        if self.held.is_in_transaction:
            self.held.own_result = self.held.own_result or result
        elif not self.finished:
            self.finished = True
            self._settles.finish(self.held, result)

    async def _finish(self, result: HandlerResult) -> None:
        if self.held.is_in_transaction:
            self.finish(result)
            return
        if not self.finished:
            self.finish(result)
            await self.held.wait_settled()
        if self.held.is_lost or self.lease_lost:
            self.lease_lost = True
            raise LeaseLost(
                f"message {self.id} of queue {self.queue!r} went to another consumer; settling "
                "it here had no effect"
            )


def received(
    queue: Queue[T],
    held: HeldDelivery,
    inbound: Inbound,
    settles: _Settles,
    state: Any = None,
) -> Received[T] | HandlerResult:
    """Read a message, or return the result that dead-letters one that cannot be read (G11)."""
    delivery = inbound.opened(held.delivery)
    if isinstance(delivery, HandlerResult):
        return delivery

    value = inbound.decoded(queue.payload, delivery.message)
    if isinstance(value, HandlerResult):
        return value
    return Received(queue.name, held, delivery, value, settles, state)


class Consumer(Generic[T]):
    """The messages of one queue, as an async context manager and an async iterator.

    Used by one task at a time.
    """

    def __init__(
        self, queue: Queue[T], inbound: Inbound, make_receiver: Callable[[], Awaitable[Receiver]]
    ) -> None:
        """Made by `Broker.consume`; `make_receiver` subscribes on first use."""
        self._queue = queue
        self._inbound = inbound
        self._make_receiver = make_receiver
        self._receiver: Receiver | None = None
        self.closed = False
        """Whether it has ended for good."""
        self._out: set[Received[Any]] = set()
        self._resizing = asyncio.Lock()

    async def __aenter__(self) -> Consumer[T]:
        """Subscribe.

        Raises `QueueNotFound`, `TopologyMismatch` and what else prevents consuming.
        """
        await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    def __aiter__(self) -> AsyncIterator[Received[T]]:
        """Iterate until the consumer is closed."""
        return self

    async def __anext__(self) -> Received[T]:
        """Wait for the next message."""
        receiver = await self._open()
        while (held := await receiver.next()) is not None:
            try:
                message = received(self._queue, held, self._inbound, receiver)
            except Exception as error:
                receiver.fail(held, error)
                raise

            if isinstance(message, HandlerResult):
                receiver.finish(held, message)
                continue

            self._out = {earlier for earlier in self._out if not earlier.finished}
            self._out.add(message)
            return message
        raise StopAsyncIteration

    async def get(self, timeout: float | timedelta | None = None) -> Received[T] | None:
        """Return the next message, or None when none came within `timeout` seconds.

        Without a timeout it waits indefinitely.

        A timeout of 0 returns only what this consumer has received already.
        """
        limit = (
            None
            if timeout is None
            else check_seconds("timeout", timeout, f"consumer of {self._queue.name!r}", zero=True)
        )
        receiver = await self._open()
        try:
            async with receiver.clock.timeout(limit):
                return await anext(self, None)
        except TimeoutError:
            return None

    async def resize(self, prefetch: int) -> None:
        """Hold at most so many unsettled messages from now on; what is held stays, and counts.

        A claim that is under way while the prefetch shrinks may bring what it asked for (G12).
        """
        check_count("prefetch", prefetch, f"consumer of {self._queue.name!r}")
        receiver = await self._open()
        async with self._resizing:
            await receiver.resize(prefetch)

    async def stop(self) -> None:
        """Receive nothing more: what waits here goes back, and the iteration ends (G13).

        What was handed out can still be settled, until `close`.
        """
        if self._receiver is not None:
            self._receiver.check_loop()
            await self._receiver.stop()

    async def _open(self) -> Receiver:
        if self.closed:
            raise ConnectionLost(
                f"the consumer of queue {self._queue.name!r} is closed; make a new one with "
                "broker.consume"
            )
        if self._receiver is None:
            self._receiver = await self._make_receiver()
        self._receiver.check_loop()
        return self._receiver

    async def close(self) -> None:
        """Stop, and release what was handed out and never settled.

        Released messages go to the next consumer and are not counted (G4).
        """
        if self._receiver is not None:
            self._receiver.check_loop()
        self.closed = True
        if self._receiver is None:
            return

        try:
            await self._receiver.stop()
        finally:  # also when we are cancelled: what was handed out must be settled
            for message in self._out:
                if not message.finished:
                    message.finish(HandlerResult(Ending.INTERRUPTED))
                    message.lose_lease()  # an ack that comes now comes too late, and shall say so
            await self._receiver.close()
