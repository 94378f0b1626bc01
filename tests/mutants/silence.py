"""A network for the memory backend that can fall silent, so that mutants can miss a loss.

cut     publish: unknown at its deadline; open: an error after 5 s;
        after 10 s subscriptions fail, then `lost` is called
muted   settle: done by the store, unknown at its deadline
refuses open: an error at once
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqcore.spi import (
    Capabilities,
    Capability,
    Clock,
    ConnectionLost,
    Durability,
    Level,
    Outcome,
    Support,
    Unknown,
)
from mqcore_memory.backend import MemoryBackend, MemorySubscription
from mqcore_memory.waiting import Holder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from mqcore.spi import Delivery, Outgoing, Settled, Settlement, Subscription

__all__ = ["BreakableSubscription", "Net", "NetBackend"]

_ANSWERED = 0.05
"""Seconds, at most, from the end of a mute until what it held back is delivered."""
_CONNECT, _NOTICED = 5.0, 10.0
"""Seconds until a connect is given up, and until an open connection is considered dead."""


class Net:
    """The network between the instances and their store."""

    def __init__(self) -> None:
        self.silent = False
        self.refuses = False
        self.connected: set[NetBackend] = set()
        self.muted: set[NetBackend] = set()

    @asynccontextmanager
    async def cut(self, clock: Clock) -> AsyncIterator[None]:
        """Let nothing through; connected instances notice after a while."""

        async def notice() -> None:
            await clock.sleep(_NOTICED)
            for backend in list(self.connected):
                await backend.fail(ConnectionLost(f"no sign of life for {_NOTICED:g} s"))

        self.silent, noticing = True, asyncio.create_task(notice())
        try:
            yield
        finally:
            self.silent = False
            noticing.cancel()

    @asynccontextmanager
    async def mute(self, backend: NetBackend) -> AsyncIterator[None]:
        """Let through what an instance sends, and no answer."""
        self.muted.add(backend)
        try:
            yield
        finally:
            self.muted.discard(backend)


class BreakableSubscription(MemorySubscription):
    """A Subscription that raises after a loss."""

    error: Exception | None = None
    backend: NetBackend

    async def fail(self, error: Exception) -> None:
        """Note the loss."""
        self.error = error
        await self.close()

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        got = await super().receive(limit, timeout) if self.error is None else []
        claimed = self._clock.monotonic()
        while got and self.muted and self.error is None:
            await self._clock.sleep(_ANSWERED)
        if self.error is not None:
            raise self.error
        late = self._clock.monotonic() - claimed
        return [self.aged(delivery, late) for delivery in got] if late else got

    def aged(self, delivery: Delivery, late: float) -> Delivery:
        """Return a delivery as its late answer describes it: with less time left."""
        left = delivery.expires_in
        return delivery if left is None else replace(delivery, expires_in=left - late)

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """In silence nothing arrives.

        What is muted is done at once, and answered when it is heard again.
        """
        if self.backend.net.silent:
            await self._clock.sleep(timeout)
            return [Unknown("no answer")] * len(batch)
        settled = await super().settle(batch, timeout=timeout)
        until = self._clock.monotonic() + timeout
        while self.muted and self._clock.monotonic() < until:
            await self._clock.sleep(min(_ANSWERED, until - self._clock.monotonic()))
        return [Unknown("no answer in time")] * len(batch) if self.muted else settled

    @property
    def muted(self) -> bool:
        """Whether no answer comes now."""
        return self.backend in self.backend.net.muted


class NetBackend(MemoryBackend):
    """The memory backend behind a network, with any kind of Subscription.

    Its server can be killed, and has a disk.
    """

    net: Net
    subscription: type[MemorySubscription]

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        capabilities = self._capabilities
        supports = {**capabilities.supports, Capability.DURABLE: Support(Level.NATIVE)}
        self.deleted: set[str] = set()
        self._capabilities = replace(capabilities, durability=Durability.PROCESS, supports=supports)

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        if self.net.refuses:
            raise ConnectionLost("the connection is refused")
        if self.net.silent:
            await self._clock.sleep(_CONNECT)
            raise ConnectionLost(f"no answer within {_CONNECT:g} s")
        self.lost = lost
        self.net.connected.add(self)
        return await super().open(lost)

    async def close(self) -> None:
        self.net.connected.discard(self)
        await super().close()

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        if self.net.silent:
            await self._clock.sleep(timeout)
            return [Unknown("no answer")] * len(batch)
        return await super().publish(batch, timeout=timeout)

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        subscription = self.subscription(self._store, queue, Holder(prefetch, lease), self._options)
        self._subscriptions.add(subscription)
        subscription.closed = self._subscriptions.discard
        if isinstance(subscription, BreakableSubscription):
            subscription.backend = self
        return subscription

    async def delete(self, queue: str, *, if_empty: bool = False) -> bool:
        self.deleted.add(queue)
        return await super().delete(queue, if_empty=if_empty)

    async def fail(self, error: Exception) -> None:
        """Note that the network reports the peer as gone."""
        for subscription in list(self._subscriptions):
            if isinstance(subscription, BreakableSubscription):
                await subscription.fail(error)
        self.lost(error)
