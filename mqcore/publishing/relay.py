"""`Relay`: delivers the parcels of one queue to another broker, in order.

    receive ─► unpack ─► Destination.publish ─► stored: Ack
                                              ─► may succeed later: Release, to its old place
                                              ─► never will: Move to the dead-letter queue

A parcel is removed after the broker has confirmed its message, so a crash between the two publishes
it again, with the same id (G1, G2). Several relays may run on one queue: its role `relay` gives a
consumer nothing while another one holds a claim, so what was stored first is published first.

    source.declare(relay_specs("mq.outbox"))
    await Relay(source, "mq.outbox", Forwarding(connection)).run()
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqcore.defaults import LEASE
from mqcore.errors import DecodeError, MqcoreError, QueueNotFound, UnsupportedFeature
from mqcore.messages.message import Death, Reason
from mqcore.publishing.parcel import unpack_parcel
from mqcore.queue import DLQ
from mqcore.rules.capabilities import Capability
from mqcore.rules.redact import describe_error
from mqcore.spi import (
    Ack,
    Done,
    ErrorKind,
    Failed,
    Move,
    Outgoing,
    QueueSpec,
    Release,
    Stale,
    Stored,
    SupportsCount,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqcore.connection.connection import Connection
    from mqcore.publishing.destination import Destination
    from mqcore.publishing.parcel import Parcel
    from mqcore.spi import Delivery, Outcome, Settlement, Subscription

__all__ = ["Relay", "check_relays", "relay_specs"]

_BATCH = 1000
"""How many parcels are claimed and published at once.

Each batch waits for both brokers, and for its turn on a busy machine: with 200 at once 30,000
parcels took a minute on one with twelve times the load that it can carry.
"""
_TIMEOUT = 10.0
"""Seconds that the broker has to confirm a batch. It must be well below the lease."""
_SETTLING = 5.0
_RELEASING = 1.0
"""Seconds that a relay which ends waits for the release of what it holds."""
_LOOK = 1.0
"""Seconds of one wait for parcels."""
_FIRST_WAIT, _LAST_WAIT = 0.05, 2.0
"""Seconds between two tries while the broker does not take what it is given."""
_FORGOTTEN = 2 * _TIMEOUT
"""Seconds after which a target that was full and was not tried again is as good as any other."""
_KEPT = 2_000
"""Characters of an error's text in a dead letter (G11)."""
_REASONS = {ErrorKind.NOT_FOUND: Reason.UNROUTABLE, ErrorKind.FULL: Reason.OVERFLOW}
_MAY_SUCCEED = {ErrorKind.TRANSIENT, ErrorKind.FULL}


def relay_specs(
    queue: str, *, max_length: int | None = None, dead_letter: str | None = None
) -> list[QueueSpec]:
    """Return the specs of a queue of parcels and of its dead-letter queue, to be declared."""
    letters = dead_letter or queue + DLQ
    return [
        QueueSpec(name=queue, role="relay", max_length=max_length, dead_letter=letters),
        QueueSpec(name=letters, role="dead_letter"),
    ]


def check_relays(connection: Connection, wanted: str) -> None:
    """Raise `UnsupportedFeature` unless the backend can keep the order of a queue of parcels."""
    capabilities = connection.capabilities
    if not capabilities[Capability.LEASE].limits.get("exclusive"):
        raise UnsupportedFeature(
            f"{wanted}: the backend {capabilities.backend!r} cannot keep parcels in order for "
            "several relays (LEASE without exclusive). Use sqlite:// or postgresql://"
        )


@dataclass(slots=True)
class _Verdicts:
    """What becomes of a batch: the settlements, and what is held back, with the last reason."""

    settlements: list[Settlement]
    held: int = 0
    error: str = ""


class Relay:
    """Delivers the parcels of one queue to a destination."""

    def __init__(
        self,
        source: Connection,
        queue: str,
        destination: Destination,
        *,
        dead_letter: str | None = None,
        full_patience: float | None = 60.0,
        redeclare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`queue` is declared already, as `relay_specs` says; `dead_letter` as there.

        `redeclare` declares it again when it was deleted; None leaves that to its publishers.

        A parcel that its queue at the broker refuses as full is tried again, and blocks those
        behind it. When a target has taken nothing for `full_patience` seconds, its parcels are
        dead-lettered as `overflow`. None waits indefinitely, for a queue whose parcels all have one
        target.
        """
        self._source = source
        self._queue = queue
        self._destination = destination
        self._dead_letter = dead_letter or queue + DLQ
        self._full_patience = full_patience
        self._redeclare = redeclare
        self._clock, self._events = source.clock, source.events
        self._subscription: Subscription | None = None
        self._claimed: list[bytes] = []
        """What is being delivered. It is released when that ends too early."""
        self._generation = 0
        self._size, self._failures = _BATCH, 0
        self._full: dict[str, tuple[float, float]] = {}
        """Targets that are full: since when they took nothing, and when they last said so."""

    async def run(self) -> None:
        """Relay until the task is cancelled.

        Raises `ConnectionLost` when one of the two connections is closed for good.
        """
        try:
            while True:
                await self._turn(_LOOK)
        finally:
            await self.close()

    async def drain(self) -> None:
        """Relay until nothing waits in the queue for the broker, and nothing is claimed.

        What is delayed in it, a retry of a consumer of the spool, does not wait for the broker.
        Raises as `run` does.
        """
        try:
            while True:
                if await self._turn(0.0):
                    continue
                if await self._is_empty():
                    return
                await self._clock.sleep(_FIRST_WAIT)  # another relay holds a claim
        finally:
            await self.close()

    async def close(self) -> None:
        """Return what is claimed to the queue at once. May be called again.

        It is released first: what a closed subscription holds counts as taken over, and a consumer
        of the same queue would take that for a crash (G4).
        """
        subscription, self._subscription = self._subscription, None
        claimed, self._claimed = self._claimed, []
        if subscription is None:
            return
        if claimed:
            with suppress(Exception):
                releases = [Release(receipt) for receipt in claimed]
                await subscription.settle(releases, timeout=_RELEASING)
        with suppress(Exception):  # its claims end with their lease
            await subscription.close()

    async def _turn(self, patience: float) -> int:
        """Deliver one batch. Returns how many parcels it had, after a wait if none was taken."""
        await self._destination.ready()
        try:
            deliveries = await self._receive(patience)
        except QueueNotFound:
            await self._revive()
            deliveries = []
        except MqcoreError:
            await self.close()
            await self._source.ready(f"relaying the queue {self._queue!r}")
            deliveries = []

        if not deliveries:
            if patience and self._subscription is None:
                await self._clock.sleep(_LOOK)
            return 0

        self._claimed = [delivery.receipt for delivery in deliveries]
        verdicts = await self._deliver(deliveries)
        await self._settle(verdicts.settlements)
        self._claimed = []
        await self._pace(verdicts)
        return len(deliveries)

    async def _revive(self) -> None:
        """The queue was deleted: declare it again, or wait until its publishers do."""
        await self.close()
        if self._redeclare is not None:
            with suppress(MqcoreError):  # it is still missing in the next turn
                await self._redeclare()

    async def _receive(self, patience: float) -> Sequence[Delivery]:
        source, doing = self._source, f"relaying the queue {self._queue!r}"
        generation = await source.ready(doing)
        if self._subscription is None or generation != self._generation:
            self._subscription = await source.subscribe(self._queue, _BATCH, LEASE)
            self._generation = generation
        subscription = self._subscription
        return await source.call(doing, lambda: subscription.receive(self._size, patience), None)

    async def _deliver(self, deliveries: Sequence[Delivery]) -> _Verdicts:
        verdicts = _Verdicts([])
        whole: list[tuple[Delivery, Parcel]] = []
        for delivery in deliveries:
            try:
                whole.append((delivery, _parcel_in(delivery)))
            except DecodeError as error:
                move = self._dead(delivery, Reason.UNDECODABLE, describe_error(error))
                verdicts.settlements.append(move)
        if not whole:
            return verdicts

        try:
            parcels = [parcel for _, parcel in whole]
            outcomes = await self._destination.publish(parcels, _TIMEOUT)
        except MqcoreError as error:
            outcomes = [Unknown(describe_error(error), error)] * len(whole)

        for (delivery, parcel), outcome in zip(whole, outcomes, strict=True):
            self._judge(delivery, parcel, outcome, verdicts)
        return verdicts

    def _judge(
        self, delivery: Delivery, parcel: Parcel, outcome: Outcome, verdicts: _Verdicts
    ) -> None:
        """Add the settlement of one parcel."""
        if isinstance(outcome, Stored):
            self._full.pop(parcel.target, None)
            id_, duplicate = parcel.out.message.id, outcome.duplicate
            self._events.emit("message.relayed", parcel.target, id_, duplicate=duplicate)
            verdicts.settlements.append(Ack(delivery.receipt))
            return

        kind = outcome.kind if isinstance(outcome, Failed) else ErrorKind.TRANSIENT
        is_stuck = kind is ErrorKind.FULL and self._is_stuck(parcel.target)
        if kind in _MAY_SUCCEED and not is_stuck:
            verdicts.held += 1
            verdicts.error = outcome.text
            verdicts.settlements.append(Release(delivery.receipt))
            return
        reason = _REASONS.get(kind, Reason.REJECTED)
        verdicts.settlements.append(self._dead(delivery, reason, outcome.text))

    def _dead(self, delivery: Delivery, reason: Reason, error: str) -> Move:
        """Return the Move of a parcel to the dead-letter queue; a redrive relays it again."""
        message, now = delivery.message, self._clock.now()
        id_ = message.correlation_id or message.id
        self._events.emit("message.dead", self._queue, id_, reason=reason.value, error=error)

        death = Death(
            reason=reason,
            queue=self._queue,
            attempts=1,
            first_at=now,
            last_at=now,
            error_type="relay",
            error=error[:_KEPT],
        )
        letter = message.moved(self._queue, attempt=1, expires_at=None, death=death)
        return Move(delivery.receipt, Outgoing(self._dead_letter, letter))

    async def _settle(self, settlements: Sequence[Settlement]) -> None:
        """Settle a batch; what has no answer is asked again until its lease may end.

        A settlement that took effect unnoticed is `Stale` the second time. One that never takes
        effect comes back at the end of its lease, and its message is published again.
        """
        until = self._clock.monotonic() + LEASE - _TIMEOUT - 2 * _SETTLING
        left, wait = list(settlements), _FIRST_WAIT

        while left and (subscription := self._subscription) is not None:
            try:
                settled = await subscription.settle(left, timeout=_SETTLING)
            except Exception as error:  # noqa: BLE001 - a driver's exception, as an outcome
                text = describe_error(error)
                settled = [Unknown(text, error)] * len(left)
            failures = [
                (settlement, outcome)
                for settlement, outcome in zip(left, settled, strict=True)
                if not isinstance(outcome, Done | Stale)
            ]
            left = [settlement for settlement, _ in failures]
            if not left or self._clock.monotonic() + wait >= until:
                break
            await self._clock.sleep(wait)
            wait = min(wait * 2, _LAST_WAIT)

        for settlement in left:
            verdict, why = type(settlement).__name__.lower(), "it was not answered"
            self._events.emit("settle.failed", self._queue, verdict=verdict, error=why)

    async def _pace(self, verdicts: _Verdicts) -> None:
        """Wait after a batch of which something was held back, and send less the next time.

        A smaller batch is confirmed sooner by a slow broker, and separates what fails alone.
        """
        has_progress = verdicts.held < len(verdicts.settlements)
        if not verdicts.held:
            self._size, self._failures = min(self._size * 2, _BATCH), 0
            return

        self._events.emit("relay.held", self._queue, messages=verdicts.held, error=verdicts.error)
        self._size = max(self._size // 2, 1)
        wait = min(_FIRST_WAIT * 2**self._failures, _LAST_WAIT)
        self._failures = 0 if has_progress else min(self._failures + 1, 10)
        await self._clock.sleep(wait)

    def _is_stuck(self, target: str) -> bool:
        """Note that a target is full; whether it took nothing for longer than is allowed."""
        now = self._clock.monotonic()
        since, last = self._full.get(target, (now, now))
        if now - last > _FORGOTTEN:
            since = now
        self._full[target] = since, now
        return self._full_patience is not None and now - since >= self._full_patience

    async def _is_empty(self) -> bool:
        backend = self._source.backend
        if not isinstance(backend, SupportsCount):
            return True
        try:
            counts = await self._source.call(
                f"counting the queue {self._queue!r}", lambda: backend.count([self._queue])
            )
        except MqcoreError:
            return False
        return not counts or not (counts[0].ready or counts[0].leased)


def _parcel_in(delivery: Delivery) -> Parcel:
    """Return the parcel of a stored message. Raises `DecodeError`."""
    if delivery.unreadable:
        raise DecodeError(delivery.unreadable)
    return unpack_parcel(delivery.message.body)
