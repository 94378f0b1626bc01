"""Profile *browse*: counting, browsing, taking, purging and deleting.

Counting and browsing change nothing. Taking, purging and deleting do only what they promise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.spi import Capability, Level

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit

__all__ = ["leaves_marks", "shows_delayed"]


def leaves_marks(kit: Kit) -> bool:
    """Whether a message may come as redelivered after it was browsed: BROWSE is approximate."""
    return kit.capabilities[Capability.BROWSE].level is Level.APPROXIMATE


def shows_delayed(kit: Kit) -> bool:
    """Whether browsing shows delayed messages, so that they can be taken and purged.

    It does not without BROWSE, and an approximate BROWSE may declare `shows_delayed=False`.
    """
    if not (kit.capabilities.has(Capability.DELAY) and kit.capabilities.has(Capability.BROWSE)):
        return False

    return not leaves_marks(kit) or kit.limit(Capability.BROWSE, "shows_delayed") is not False
