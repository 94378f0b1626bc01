"""Random traces: each step calls the backend once or twice, and updates the model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from mqcore.contract.kit import ContractError, Kit
from mqcore.contract.model import Lease, Model, Rules, Span, named
from mqcore.messages.message import Death, Reason
from mqcore.spi import (
    STORED,
    Ack,
    Backend,
    Capability,
    Delivery,
    Done,
    Level,
    Move,
    Outgoing,
    Release,
    Settlement,
    Stale,
    Stored,
    Subscription,
    SupportsCount,
    SupportsRenew,
)
from mqcore.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from mqcore.contract.harness import Harness

__all__ = ["QUEUES", "WORK", "Example", "Given"]

T = TypeVar("T")
Given = tuple[Delivery, Lease, Subscription]
WORK = ("jobs", "other")
QUEUES = (*WORK, "dead")
_PREFETCH = 1000
"""More than an example has. Other cases show how prefetch limits a consumer."""
_REAL_SLACK = 0.5
"""Seconds by which a busy server and its network may be late."""


class Example:
    """One example: two work queues and their dead-letter queue, a consumer each, the model."""

    def __init__(self, harness: Harness) -> None:
        """Open nothing yet."""
        self.kit = Kit(harness)
        self.virtual = isinstance(harness.clock, VirtualClock)
        self.unit = 1.0 if self.virtual else 0.15
        """Real seconds for one second of the rules."""
        self.model: Model
        self.names: dict[str, str] = {}
        self.consumers: dict[str, Subscription] = {}
        self.given: list[Given] = []
        self.stored: dict[tuple[str, str], Outgoing] = {}
        self.opened_at = 0.0

    async def open(self) -> None:
        """Declare the queues with new names, and start the consumers."""
        kit = self.kit
        await kit.open(kit.backend)
        self.lease = 4.0 if self.virtual else 2.0
        self.model = Model(
            Rules.of(kit.capabilities, self.lease, 0.0 if self.virtual else _REAL_SLACK)
        )
        self.names = {name: await kit.queue() for name in WORK}
        self.names["dead"] = f"{self.names['jobs']}.dlq"
        for name in QUEUES:
            await self.subscribe(name)
        self.opened_at = kit.now

    async def subscribe(self, name: str) -> None:
        """Start the queue's one consumer."""
        self.consumers[name] = await self.kit.subscribe(
            self.names[name], prefetch=_PREFETCH, lease=self.lease
        )

    def level(self, expected: int) -> int:
        """Return a priority that the backend can distinguish, or the only one."""
        support = self.kit.capabilities[Capability.PRIORITY]
        if support.level is Level.NONE:
            return 5
        return expected if float(support.limits.get("levels", 11)) > 10 else (0, 10)[expected > 5]  # noqa: PLR2004 - 0 to 10

    async def timed(self, work: Coroutine[Any, Any, T]) -> tuple[T, Span]:
        """Do the work, and return with it the span of time it took."""
        began = self.kit.now
        done = await work
        return done, Span(began, self.kit.now)

    # Steps

    async def publish(
        self, name: str, count: int, priority: int, delay: float = 0.0, ttl: float | None = None
    ) -> list[Outgoing]:
        """Publish a batch of new messages and return it; unsupported options are left out."""
        kit, has = self.kit, self.kit.capabilities.has
        delay = delay * self.unit if has(Capability.DELAY) else 0.0
        ttl = ttl * self.unit + delay if ttl is not None and has(Capability.EXPIRY) else None
        level, first = self.level(priority), len(self.stored)
        batch = [
            Outgoing(
                self.names[name], kit.message(f"m{first + number}", priority=level), delay, ttl
            )
            for number in range(count)
        ]
        outcomes, at = await self.timed(kit.publish(*batch))
        kit.same(outcomes, [STORED] * count, "outcomes of publishing", "Backend.publish")

        for out in batch:
            self.model.put(out, at)
            self.stored[name, out.message.id] = out

        return batch

    async def publish_again(self, name: str, out: Outgoing) -> str:
        """Publish a known message again.

        With DEDUP no second copy is stored, whatever happened to the first. In another queue one
        is.
        """
        kit, window = self.kit, float(self.kit.limit(Capability.DEDUP, "window") or 0.0)
        known = (name, out.message.id) in self.stored
        if known and kit.now - self.opened_at >= window / 2:
            return f"{out.message.id} is not repeated: the window may be over"
        out = replace(out, to=self.names[name])
        outcomes, at = await self.timed(kit.publish(out))
        kit.same(
            outcomes,
            [Stored(duplicate=known)],
            "stored once in each queue",
            "Backend.publish: DEDUP",
        )

        if not known:
            self.model.put(out, at)
            self.stored[name, out.message.id] = out

        return (
            f"{out.message.id} (priority {out.message.priority}) "
            f"{'duplicate' if known else 'stored'}"
        )

    async def receive(self, name: str, limit: int) -> list[Delivery]:
        """Receive until `limit` messages have arrived or none arrives."""

        async def receive() -> list[Delivery]:
            got: list[Delivery] = []
            while len(got) < limit and (
                batch := await self.kit.receive(self.consumers[name], limit - len(got))
            ):
                got += batch
            return got

        got, at = await self.timed(receive())
        leases = self.model.received(self.names[name], got, limit, at)
        self.given += [
            (delivery, lease, self.consumers[name])
            for delivery, lease in zip(got, leases, strict=True)
        ]

        return got

    async def settle(
        self, name: str, *batch: tuple[Given, str], to: str = "dead", delay: float = 0.0
    ) -> str:
        """Settle a batch from one queue; items may be settled already, or lost."""
        atomic = self.kit.capabilities.has(Capability.ATOMIC_MOVE)
        items: list[tuple[Given, str, Settlement]] = []
        for (delivery, lease, consumer), how in batch:
            if how == "move" and lease.state != "live" and not atomic:
                continue  # a stale Move may have stored its successor
            settlement: Settlement = (
                Release(delivery.receipt) if how == "release" else Ack(delivery.receipt)
            )
            settlement = (
                self.move(delivery, self.names[name], to, delay) if how == "move" else settlement
            )
            items.append(((delivery, lease, consumer), how, settlement))

        if not items:
            return "nothing to settle"
        settling = self.kit.settle(items[0][0][2], *[settlement for _, _, settlement in items])
        outcomes, at = await self.timed(settling)
        self.kit.same(len(outcomes), len(items), "an outcome for each", "Subscription.settle")

        for ((_, lease, _), how, settlement), outcome in zip(items, outcomes, strict=True):
            self.kit.true(
                isinstance(outcome, Done | Stale), "Done or Stale", outcome, "Subscription.settle"
            )
            expires = lease.copy.expires
            self.model.settled(lease, how, isinstance(outcome, Done), at)
            if isinstance(settlement, Move) and isinstance(outcome, Done):
                for_ever = settlement.to.message.expires_at is None
                self.model.put(settlement.to, at, None if for_ever else expires)

        endings = zip(items, outcomes, strict=True)
        return ", ".join(
            f"{how} {item[0].message.id} {type(outcome).__name__}"
            for (item, how, _), outcome in endings
        )

    def move(self, delivery: Delivery, source: str, to: str, delay: float) -> Move:
        """Make a retry or a dead letter.

        A retry keeps its expiry and waits no longer than that; a dead letter never expires.
        """
        old, now = delivery.message, self.kit.clock.now()
        if to != "dead":
            delay = delay * self.unit if self.kit.capabilities.has(Capability.DELAY) else 0.0
            delay = 0.0 if delivery.expires_in is not None else delay
            return Move(
                delivery.receipt,
                Outgoing(self.names[to], old.moved(source, attempt=old.attempt + 1), delay),
            )

        death = Death(
            reason=Reason.REJECTED, queue=source, attempts=old.attempt, first_at=now, last_at=now
        )
        message = old.moved(source, attempt=1, expires_at=None, death=death)

        return Move(delivery.receipt, Outgoing(self.names["dead"], message))

    async def renew(self, given: Given) -> str:
        """Renew a claim."""
        delivery, lease, _ = given
        backend: Backend = self.kit.backend
        if isinstance(backend, SupportsRenew) and self.kit.capabilities.has(Capability.LEASE):
            renewing = backend.renew(lease.copy.queue, [delivery.receipt], self.lease)
            (renewed,), at = await self.timed(self.kit.within(renewing))
            self.model.renewed(lease, renewed, at)
            return f"{delivery.message.id} {'renewed' if renewed else 'lost'}"
        return "not renewed: LEASE is not declared"

    async def crash(self, name: str) -> None:
        """End a consumer that has settled nothing of what it holds, and start another."""
        _, at = await self.timed(self.kit.within(self.consumers[name].close()))
        self.model.crashed(self.names[name], at)
        await self.subscribe(name)

    async def count(self, name: str) -> str:
        """Compare the counts with the model.

        Each state where time is exact, otherwise the total, which may take a moment.
        """
        backend: Backend = self.kit.backend
        if not isinstance(backend, SupportsCount):
            return "not counted"
        deadline = self.kit.now + self.kit.harness.patience

        while True:
            ((counts,), at) = await self.timed(self.kit.within(backend.count([self.names[name]])))
            actual = counts.ready, counts.leased, counts.delayed
            expected = self.model.counts(self.names[name], at)
            if self.virtual and expected is not None:
                ready, leased, delayed = expected
                self.kit.counted(counts, ready=ready, leased=leased, delayed=delayed)
            stored = len(self.model.of(self.names[name]))
            if counts.total == stored or (None in actual and counts.total < stored):
                return "ready, leased, delayed: {}, {}, {}".format(*actual)
            self.kit.true(self.kit.now < deadline, f"{stored} in {name}", actual, "count")
            await self.kit.advance(0.1)

    async def end(self) -> None:
        """End all consumers and empty the queues: nothing may be lost or added."""
        for name in QUEUES:
            await self.crash(name)
        for name in QUEUES:
            self.given.clear()
            while True:
                quiet = self.model.quiet_at() - self.kit.now
                if await self.receive(name, 10):
                    await self.settle(name, *[(given, "ack") for given in self.given])
                    self.given.clear()
                elif self.model.of(self.names[name]) and quiet >= 0:
                    await self.kit.advance(quiet + 0.01 if self.virtual else min(quiet + 0.01, 0.2))
                else:
                    break
            left = [named(copy) for copy in self.model.of(self.names[name])]
            self.kit.true(
                not left,
                f"every message of {name}",
                f"{', '.join(left)} did not arrive",
                "Subscription.receive",
            )

        if self.kit.lost:
            raise ContractError(
                "an unbroken connection",
                repr(self.kit.lost[0]),
                "Backend.open: when `lost` is called",
            )
