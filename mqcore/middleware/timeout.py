"""The time limit of one run of a handler (G4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.errors import HandlerTimeout
from mqcore.middleware.base import Middleware

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.clock import Clock
    from mqcore.consuming.context import Context

__all__ = ["Timeout"]


class Timeout(Middleware):
    """Ends a run after `limit` seconds with `HandlerTimeout`, one attempt.

    Every consumer has one as its innermost middleware.

    An async handler is cancelled. A thread cannot be: its message is settled, and its slot stays
    taken until it ends. A process is killed. A handler that blocks the event loop past the limit is
    informed when it returns.
    """

    def __init__(self, limit: float, clock: Clock) -> None:
        """`limit` in seconds of the given clock."""
        self.limit = limit
        self.clock = clock

    async def handle(
        self, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
    ) -> object:
        """Run the rest under the limit."""
        began, own = self.clock.monotonic(), None
        try:
            async with self.clock.timeout(self.limit):
                try:
                    result = await call_next(ctx)
                except TimeoutError as error:
                    own = error
                    raise
        except TimeoutError as error:
            if error is own and self.clock.monotonic() - began < self.limit:
                raise  # the handler's own
            raise self._late(ctx) from error
        finally:
            del own  # a cycle: its traceback holds this frame

        if self.clock.monotonic() - began > self.limit:
            raise self._late(ctx)
        return result

    def _late(self, ctx: Context) -> HandlerTimeout:
        return HandlerTimeout(
            f"the handler of {ctx.queue!r} ran longer than {self.limit:g} s with message {ctx.id}"
        )
