"""Middleware: what happens around every handler and every publish, without the handler knowing.

A middleware is an object with up to four hooks. `handle` wraps the run of a handler, the first in
the list outermost. `outgoing` may change every message before it is sent, and `incoming` is its
inverse: it changes a message back before it is decoded. `on_event` is called with every event of
`mqcore.events.EVENTS`. No hook depends on a broker.
"""

from mqcore.middleware.base import Middleware
from mqcore.middleware.logging import Logging
from mqcore.middleware.metrics import Metrics
from mqcore.middleware.timeout import Timeout
from mqcore.middleware.tracing import Span, Tracing

__all__ = ["Logging", "Metrics", "Middleware", "Span", "Timeout", "Tracing"]
