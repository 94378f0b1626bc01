"""Calls of a driver's Subscription that end well, whatever the driver raises."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from mqcore.spi import Failed, SupportsPause, SupportsResize, Unknown

if TYPE_CHECKING:
    from mqcore.spi import Subscription

__all__ = ["closed", "paused", "resized", "why"]


async def resized(subscription: Subscription, prefetch: int) -> bool:
    """Change its prefetch; False if the driver cannot.

    When the connection is lost meanwhile, the next subscription has the new prefetch.
    """
    if not isinstance(subscription, SupportsResize):
        return False
    with suppress(Exception):
        return await subscription.resize(prefetch)
    return True


async def paused(subscription: SupportsPause) -> None:
    """Stop at the broker. When that fails, the connection is lost, or a close is what ends it."""
    with suppress(Exception):
        await subscription.pause()


async def closed(subscription: Subscription) -> None:
    """Close it. The connection may be gone; then the broker has taken back everything by itself."""
    with suppress(Exception):
        await subscription.close()


def why(result: object) -> str:
    """Return why a settlement has to be repeated; also for what no driver may answer."""
    if isinstance(result, (Failed, Unknown)):
        return result.text
    return f"the driver answered {type(result).__name__}, which is not an outcome"
