"""Tracing: every message carries a W3C `traceparent`, through retries, dead letters and redrives.

Format: https://www.w3.org/TR/trace-context/#traceparent-header. `Tracing` knows no tracing library;
`on_span` is where one is joined.
"""

from __future__ import annotations

import random
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mqcore.middleware.base import Middleware

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.consuming.context import Context
    from mqcore.messages.message import Message

__all__ = ["Span", "Tracing"]

_HEADER = "traceparent"
_FORMAT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Span:
    """One run of a handler.

    The ids are hex; the parent's is empty at the root. `seconds` and `error` are set at its end.
    """

    trace_id: str
    span_id: str
    parent_id: str
    flags: str
    queue: str = ""
    message_id: str = ""
    attempt: int = 1
    seconds: float = 0.0
    error: str = ""

    @property
    def traceparent(self) -> str:
        """The header's value for what comes next in this trace."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


_current: ContextVar[Span | None] = ContextVar("mqcore_span", default=None)


class Tracing(Middleware):
    """Gives every message a `traceparent`, and reports each run of a handler.

    What a handler publishes continues its trace.
    """

    def __init__(self, on_span: Callable[[Span], None] | None = None) -> None:
        """`on_span` is called on the event loop when a handler has ended; it must be quick."""
        self._on_span = on_span

    @staticmethod
    def current() -> Span | None:
        """Return the span that this code runs in, None outside of a handler."""
        return _current.get()

    def outgoing(self, message: Message) -> Message:
        """Add the header, unless the publisher set one."""
        if _HEADER in message.headers:
            return message
        span = _current.get() or Span(_hex(128), _hex(64), "", "01")
        return replace(message, headers={**message.headers, _HEADER: span.traceparent})

    async def handle(
        self, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
    ) -> object:
        """Run the handler in a span of its own, a child of the message's."""
        match = _FORMAT.fullmatch(ctx.headers.get(_HEADER, ""))
        trace, parent, flags = match.groups() if match else (_hex(128), "", "01")
        span = Span(trace, _hex(64), parent, flags, ctx.queue, ctx.id, ctx.attempt)
        token = _current.set(span)
        began, error = time.perf_counter(), ""

        try:
            return await call_next(ctx)
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            _current.reset(token)
            if self._on_span is not None:
                self._on_span(replace(span, seconds=time.perf_counter() - began, error=error))


def _hex(bits: int) -> str:
    return f"{random.getrandbits(bits) or 1:0{bits // 4}x}"
