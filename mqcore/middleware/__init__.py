"""Middleware: what happens around every handler and every publish, without the handler knowing.

A middleware is an object with up to three hooks. `handle` wraps the run of a handler, the first in
the list outermost; `outgoing` sees every message before it is sent; `on_event` hears of everything
in `mqcore.events.EVENTS`. None of them knows a broker.
"""

from mqcore.middleware.base import Middleware
from mqcore.middleware.logging import Logging
from mqcore.middleware.metrics import Metrics
from mqcore.middleware.timeout import Timeout
from mqcore.middleware.tracing import Span, Tracing

__all__ = ["Logging", "Metrics", "Middleware", "Span", "Timeout", "Tracing"]
