"""`Detour`: where the relay of an outbox delivers to while workers handle what is in the spool.

    parcel ─► the broker is there, and nothing of this target waits ─► the broker
          └─► the broker is away, or something of this target waits ─► the spool

So what is committed is handled like what is published without a transaction: by the broker's
workers, or by those that consume from the spool (`Fallback.consume`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from mqcore.publishing.destination import Forwarding
from mqcore.spi import ErrorKind, Failed, Route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.connection.connection import Connection
    from mqcore.publishing.parcel import Parcel
    from mqcore.publishing.spool import Lane, Spool
    from mqcore.spi import Outcome

__all__ = ["Detour"]


class Detour:
    """Delivers parcels to the broker, or to the spool of its fallback."""

    def __init__(self, connection: Connection, spool: Spool) -> None:
        """Both are opened and closed by their owner."""
        self._connection = connection
        self._spool = spool
        self._forwarding = Forwarding(connection)

    async def ready(self) -> None:
        """Return when one of the two takes parcels. Raises `ConnectionLost` when both are closed.

        A spool that cannot be used leaves the parcels where they are, until the broker is back.
        """
        if self._connection.is_closed or not self._spool.is_usable:
            await self._forwarding.ready()

    async def publish(self, parcels: Sequence[Parcel], timeout: float) -> Sequence[Outcome]:
        """Deliver parcels; those of one target keep their order."""
        clock = self._connection.clock
        deadline = clock.monotonic() + timeout
        outcomes: list[Outcome | None] = [None] * len(parcels)
        for lane, indexes in self._by_lane(parcels).items():
            with suppress(TimeoutError):  # it is spooled, behind the others
                await lane.pass_gate(max(deadline - clock.monotonic(), 0.0))
            if self._connection.connected and not lane.is_spooled:
                continue
            with lane.place() as place:
                stored = await lane.store(
                    place,
                    [parcels[index] for index in indexes],
                    max(deadline - clock.monotonic(), 0.0),
                )
            for index, outcome in zip(indexes, stored, strict=True):
                outcomes[index] = _held_back(outcome)

        left = [index for index, outcome in enumerate(outcomes) if outcome is None]
        if left:
            remaining = max(deadline - clock.monotonic(), 0.0)
            sent = await self._forwarding.publish([parcels[index] for index in left], remaining)
            for index, outcome in zip(left, sent, strict=True):
                outcomes[index] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _by_lane(self, parcels: Sequence[Parcel]) -> dict[Lane, list[int]]:
        """Return the lane of each target, with the places of its parcels in the batch."""
        lanes: dict[Lane, list[int]] = {}
        for index, parcel in enumerate(parcels):
            lane = self._spool.lane(parcel.target, is_router=isinstance(parcel.out.to, Route))
            lanes.setdefault(lane, []).append(index)
        return lanes


def _held_back(outcome: Outcome) -> Outcome:
    """Return the outcome of a spool for a parcel that has another durable place: it can wait."""
    if isinstance(outcome, Failed) and outcome.kind is ErrorKind.FULL:
        return replace(outcome, kind=ErrorKind.TRANSIENT)
    return outcome
