"""How near a backend's BROWSE comes: an approximate one may leave marks on what it shows, and not see what is delayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.spi import Capability, Level

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit

__all__ = ["leaves_marks", "shows_delayed"]


def leaves_marks(kit: Kit) -> bool:
    """Whether what was looked at may come as delivered before."""
    return kit.capabilities[Capability.BROWSE].level is Level.APPROXIMATE


def shows_delayed(kit: Kit) -> bool:
    """Whether delayed messages are seen, and so can be taken and purged: not without BROWSE, and an approximate one may say no."""
    if not (kit.capabilities.has(Capability.DELAY) and kit.capabilities.has(Capability.BROWSE)):
        return False
    return not leaves_marks(kit) or kit.limit(Capability.BROWSE, "shows_delayed") is not False
