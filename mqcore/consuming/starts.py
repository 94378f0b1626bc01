"""Notes at the broker that handlers start, where only a start counts as an attempt (G4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.consuming.held import HeldDelivery
    from mqcore.consuming.receiver import Receiver
    from mqcore.consuming.subscription import LiveSubscription

__all__ = ["note_starts"]

_REFUSED = 1.0
"""Seconds to wait after a note that failed: it must not be tried again without a pause."""


async def note_starts(receiver: Receiver, batch: Sequence[HeldDelivery]) -> list[HeldDelivery]:
    """Note that handlers start with these messages; return those that may start now.

    What is not noted is not started: it is released. A suspect was noted by the quarantine.
    """
    groups: dict[LiveSubscription, list[HeldDelivery]] = {}
    for held in batch:
        if not held.is_suspect:
            groups.setdefault(held.subscription, []).append(held)

    refused: set[HeldDelivery] = set()
    for subscription, group in groups.items():  # two while a consumer is resized
        if not await subscription.note_start(*group):
            refused.update(group)
    if refused and not receiver.stopped:
        await receiver.clock.sleep(_REFUSED)

    fit: list[HeldDelivery] = []
    for held in batch:
        if not held.can_settle:  # a drain has released it meanwhile
            receiver.leave(held)
        elif held in refused:
            receiver.release(held)
        elif receiver.may_still_start(held):
            fit.append(held)
    return fit
