"""What is left in this process of something that was closed: the sockets, threads and tasks that were not there before.

Only a case that is alone can say so, for the sockets and threads of other cases would be counted
too.
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
"""How the threads of an event loop's own pool are called.

They belong to the loop, and end with it.
"""
_SOON = 2.0
"""Seconds of real time in which what was closed has gone: a socket's other end and a thread may take a moment.
"""
_BETWEEN = 0.02


class ProcessResources:
    """What this process has at one moment, to be compared with what it has later."""

    def __init__(self) -> None:
        """Look now."""
        self._sockets, self._threads, self._tasks = (
            _sockets(),
            set(threading.enumerate()),
            asyncio.all_tasks(),
        )

    async def gone(self, what: str, look: str) -> None:
        """Fail unless everything that has come since has gone, or goes soon."""
        deadline = time.monotonic() + _SOON

        while left := self._left():
            if time.monotonic() >= deadline:
                raise ContractError(f"no socket, thread or task left {what}", ", ".join(left), look)
            await asyncio.sleep(_BETWEEN)

    def _left(self) -> list[str]:
        threads = [
            it
            for it in threading.enumerate()
            if it not in self._threads and not it.name.startswith(_SHARED)
        ]
        tasks: AbstractSet[asyncio.Task[Any]] = asyncio.all_tasks() - self._tasks
        here = asyncio.current_task()

        left = (
            [f"{len(new)} socket{'s' * (len(new) > 1)}"]
            if (new := _sockets() - self._sockets)
            else []
        )
        left += [f"thread {thread.name}" for thread in threads]
        left += [f"task {call_name(task) or task.get_name()}" for task in tasks if task is not here]
        return left


def _sockets() -> set[int]:
    """Return the inodes of this process's sockets; none where the system does not list them."""
    found = set[int]()

    try:
        descriptors = [path.name for path in _DESCRIPTORS.iterdir()]
    except OSError:
        return found

    for descriptor in descriptors:
        try:
            status = os.fstat(int(descriptor))
        except OSError:
            continue  # it was the one by which the folder was listed
        if stat.S_ISSOCK(status.st_mode):
            found.add(status.st_ino)
    return found
