"""The tasks that are open: for the command line, and for a web application."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.store.seam import Heartbeat, TaskStore

__all__ = ["open_tasks", "worker_info"]

_MOST = 10_000
"""Open tasks that are read."""
_FAR = 3_155_760_000.0
"""A hundred years: `suspects` of that future are all that wait."""


async def open_tasks(store: TaskStore, now: float | None = None) -> list[Node]:
    """Return the scheduled, queued, running and retrying tasks, by the time they are due.

    `now` is the store's time, by default that of this process.
    """
    now = time.time() if now is None else now
    ids = dict.fromkeys(await store.suspects(now + _FAR, _MOST))
    for beat in await store.workers():
        if now < beat.at + beat.ttl:
            ids |= dict.fromkeys(each["id"] for each in worker_info(beat)["active"])
    nodes = [node for node in await store.nodes(list(ids)) if node is not None]
    return sorted((node for node in nodes if not node.has_ended), key=lambda node: node.due)


def worker_info(beat: Heartbeat) -> dict[str, Any]:
    """Return what a worker has said of itself."""
    info: dict[str, Any] = {"queues": [], "active": [], "registered": [], "counts": {}}
    info |= json.loads(beat.info or b"{}")
    return info
