"""The tasks that are open: for the command line, and for a web application."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.store.seam import Heartbeat, TaskStore

__all__ = ["open_tasks", "worker_info"]

_MOST = 10_000
"""Open tasks that are read."""


async def open_tasks(store: TaskStore) -> list[Node]:
    """Return the scheduled, queued, running and retrying tasks, by the time they are due."""
    nodes = await store.nodes(await store.live(_MOST))
    return [node for node in nodes if node is not None and not node.has_ended]


def worker_info(beat: Heartbeat) -> dict[str, Any]:
    """Return what a worker has said of itself."""
    info: dict[str, Any] = {"queues": [], "active": [], "registered": [], "counts": {}}
    info |= json.loads(beat.info or b"{}")
    return info
