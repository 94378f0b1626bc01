"""A task that begins in the next turn of the event loop, also where tasks are eager.

With `asyncio.eager_task_factory` (Python 3.12) a task runs inside of the call that makes it, before
that call has returned it. What stores its task, or gathers the work of one turn, needs one that
does not.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["begin_later"]

T = TypeVar("T")


def begin_later(work: Coroutine[object, object, T]) -> asyncio.Task[T]:
    """Return a task of the running loop that has not begun yet."""
    return asyncio.Task(work, loop=asyncio.get_running_loop())
