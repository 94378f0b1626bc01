"""Calls of the optional methods that several cases make."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mqcore.spi import (
    Capability,
    ErrorKind,
    SupportsBrowse,
    SupportsCount,
    SupportsDelete,
    SupportsTake,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from mqcore.contract.kit import Kit
    from mqcore.spi import Entry, QueueCounts


COUNT, BROWSE, TAKE = "SupportsCount.count", "SupportsBrowse.browse", "SupportsTake.take"


PURGE, DELETE = "SupportsPurge.purge", "SupportsDelete.delete"


LOOKS, TAKES = (Capability.BROWSE,), (SupportsBrowse, SupportsTake)


async def counts_of(kit: Kit, *queues: str) -> list[QueueCounts]:
    """Count these queues, or all."""
    return list(await kit.within(cast("SupportsCount", kit.backend).count(list(queues) or None)))


async def browse_page(
    kit: Kit, queue: str, limit: int = 100, after: str | None = None
) -> list[Entry]:
    """Return one page of a queue."""
    return list(await kit.within(cast("SupportsBrowse", kit.backend).browse(queue, limit, after)))


async def keys_by_id(kit: Kit, queue: str) -> dict[str, str]:
    """Return the keys of a queue's entries by message id, in their order."""
    return {entry.message.id: entry.key for entry in await browse_page(kit, queue)}


async def delete_queue(kit: Kit, queue: str, **options: bool) -> bool:
    """Delete a queue and return the driver's answer."""
    return await kit.within(cast("SupportsDelete", kit.backend).delete(queue, **options))


async def is_not_found(kit: Kit, work: Awaitable[object], look: str) -> None:
    """Fail unless the work raises what the driver classifies as NOT_FOUND."""
    error = await kit.raises(Exception, work, "an exception of the kind NOT_FOUND", look)
    kit.kind(error, ErrorKind.NOT_FOUND)
