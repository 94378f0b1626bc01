"""Metrics: every event as a name, labels and a number, for any metrics library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.middleware.base import Middleware

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mqcore.events import Event

__all__ = ["Metrics"]

_REPLY = "mq.reply"


class Metrics(Middleware):
    """Calls `count(name, labels, 1)` for every event.

    Calls `observe("message.seconds", labels, seconds)` for every handled message.

    Labels are few and bounded: the queue, and for dead letters the reason. A message id is never a
    label, and the reply queues that each client has for its requests count as one, `mq.reply`.
    """

    def __init__(
        self,
        count: Callable[[str, Mapping[str, str], float], None],
        observe: Callable[[str, Mapping[str, str], float], None] | None = None,
    ) -> None:
        """Take two functions, which run on the event loop and must be quick."""
        self._count = count
        self._observe = observe

    def on_event(self, event: Event) -> None:
        """Turn the event into numbers."""
        labels = {"queue": _REPLY if event.queue.startswith(f"{_REPLY}.") else event.queue}
        if event.name in ("message.dead", "message.dropped"):
            labels["reason"] = str(event.fields.get("reason", ""))
        self._count(event.name, labels, 1)
        took = event.fields.get("seconds")
        if self._observe is not None and event.name == "message.done" and isinstance(took, float):
            self._observe("message.seconds", labels, took)
