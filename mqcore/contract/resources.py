"""What this process still holds after something was closed: sockets, threads and tasks.

Only a case that runs alone can measure that, since those of other cases would be counted too.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqcore.contract.kit import ContractError
from mqcore.contract.locate import call_name

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

__all__ = ["ProcessResources"]

_DESCRIPTORS = Path("/dev/fd")
_SHARED = "asyncio_"
"""The name of the threads in an event loop's own pool.

They belong to the loop and end with it.
"""
_SOON = 2.0
"""Seconds of real time for a socket's other end and a thread to go."""
_BETWEEN = 0.02


class ProcessResources:
    """The sockets, threads and tasks of this process at one moment."""

    def __init__(self) -> None:
        """Record what there is now."""
        self._sockets, self._threads, self._tasks = (
            _sockets(),
            set(threading.enumerate()),
            asyncio.all_tasks(),
        )

    async def gone(self, what: str, look: str) -> None:
        """Fail unless everything that was added since is gone soon."""
        deadline = time.monotonic() + _SOON

        while remaining := self._left():
            if time.monotonic() >= deadline:
                raise ContractError(
                    f"no socket, thread or task left {what}", ", ".join(remaining), look
                )
            await asyncio.sleep(_BETWEEN)

    def _left(self) -> list[str]:
        threads = [
            counts
            for counts in threading.enumerate()
            if counts not in self._threads and not counts.name.startswith(_SHARED)
        ]
        tasks: AbstractSet[asyncio.Task[Any]] = asyncio.all_tasks() - self._tasks
        here = asyncio.current_task()

        remaining = (
            [f"{len(new)} socket{'s' * (len(new) > 1)}"]
            if (new := _sockets() - self._sockets)
            else []
        )
        remaining += [f"thread {thread.name}" for thread in threads]
        remaining += [
            f"task {call_name(task) or task.get_name()}" for task in tasks if task is not here
        ]
        return remaining


def _sockets() -> set[int]:
    """Return the inodes of this process's sockets; empty where the system does not list them."""
    inodes = set[int]()

    try:
        descriptors = [path.name for path in _DESCRIPTORS.iterdir()]
    except OSError:
        return inodes

    for descriptor in descriptors:
        try:
            status = os.fstat(int(descriptor))
        except OSError:
            continue  # it listed the folder, and is closed
        if stat.S_ISSOCK(status.st_mode):
            inodes.add(status.st_ino)
    return inodes
