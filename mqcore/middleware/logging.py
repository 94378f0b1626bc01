"""Log lines for operators, through the standard library's logger `mqcore`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mqcore.log import log
from mqcore.middleware.base import Middleware

if TYPE_CHECKING:
    from mqcore.events import Event

__all__ = ["Logging"]

_LEVELS = {
    "connection.opened": logging.INFO,
    "connection.lost": logging.WARNING,
    "connection.retry": logging.WARNING,
    "connection.restored": logging.INFO,
    "publish.failed": logging.WARNING,
    "publish.unknown": logging.WARNING,
    "message.skipped": logging.INFO,
    "message.retried": logging.INFO,
    "spool.failed": logging.ERROR,
    "relay.held": logging.WARNING,
    "message.dead": logging.WARNING,
    "message.dropped": logging.WARNING,
    "message.taken_over": logging.INFO,
    "message.quarantined": logging.WARNING,
    "settle.stale": logging.WARNING,
    "settle.failed": logging.WARNING,
    "settle.unanswered": logging.WARNING,
    "lease.lost": logging.WARNING,
    "consumer.started": logging.INFO,
    "consumer.interrupted": logging.WARNING,
    "consumer.draining": logging.INFO,
    "consumer.stopped": logging.INFO,
    "conclusion.failed": logging.WARNING,
    "reply.failed": logging.WARNING,
}
"""What is worth a line; what happens to every message of a healthy system is DEBUG.

Bodies and headers are never logged.
"""


class Logging(Middleware):
    """Logs events: name, queue, message id, attempt and fields.

    The record's attribute `mqcore` has them too, for JSON formatters.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        """Log to `logger`, or to the logger `mqcore`."""
        self._logger = logger

    def wants(self, name: str) -> bool:
        """Whether an event of this name is worth a line at the level that is enabled now."""
        return (self._logger or log()).isEnabledFor(_LEVELS.get(name, logging.DEBUG))

    def on_event(self, event: Event) -> None:
        """Write the line when its level is enabled."""
        if not self.wants(event.name):
            return
        level = _LEVELS.get(event.name, logging.DEBUG)
        logger = self._logger or log()
        about = [
            ("queue", event.queue),
            ("id", event.message_id),
            ("attempt", event.attempt),
            *event.fields.items(),
        ]

        words = " ".join(
            f"{name}={_short(value)}" for name, value in about if value not in ("", 0, 0.0)
        )
        logger.log(level, "%s %s", event.name, words, extra={"mqcore": event})


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = "".join(
        char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(str(value).split())
    )
    return text if len(text) <= 200 else text[:199] + "…"  # noqa: PLR2004 - a log line, not a record
