"""What a forked child inherits from an event loop of ours: its sockets are closed in the child.

The loop's thread exists only in the parent. A socket that stays open in a child would hide the
parent's death from the broker, and the parent's messages would return after the heartbeat's time
instead of at once (G5).
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

__all__ = ["close_in_children"]

_loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
_is_registered = False


def close_in_children(loop: asyncio.AbstractEventLoop) -> None:
    """Close in each forked child, from now on, what this loop has open there.

    For loops of our own only: a loop of the application may have sockets that its children serve.
    """
    global _is_registered  # noqa: PLW0603 - a hook of the process cannot be taken back
    if not _is_registered and hasattr(os, "register_at_fork"):
        _is_registered = True
        os.register_at_fork(after_in_child=_close_inherited)
    _loops[:] = [*(each for each in _loops if each() is not None), weakref.ref(loop)]


def _close_inherited() -> None:
    """Put `/dev/null` in the place of all inherited descriptors; runs in the child.

    A closed number would be used again, and an inherited socket object that is collected later
    would close a stranger's file. Nothing is unregistered: the selector is shared with the parent.
    """
    loops, _loops[:] = [each() for each in _loops], []
    numbers = {number for loop in loops if loop is not None for number in _descriptors(loop)}
    if not numbers:
        return

    nothing = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        with suppress(OSError):
            os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


def _descriptors(loop: asyncio.AbstractEventLoop) -> set[int]:
    """Return the descriptors of a loop of asyncio: its sockets, its own pipe and its selector.

    They have no public names. A loop of another kind has none that are known.
    """
    transports = set(getattr(loop, "_transports", ()))  # also those that read nothing now
    selector = getattr(loop, "_selector", None)
    if selector is None or (registered := selector.get_map()) is None:  # closed
        return transports
    own = {selector.fileno()} if hasattr(selector, "fileno") else set()
    return transports | {key.fd for key in registered.values()} | own
