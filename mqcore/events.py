"""What core tells about itself: one table of events, which logging, metrics and counters all read.

Every event is counted; a listener (a middleware's `on_event`) is called only when there is one. A
listener that raises is reported once through logging and otherwise ignored: telemetry never decides
what becomes of a message.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mqcore.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["EVENTS", "Event", "Events"]

EVENTS = {
    "connection.opened": "connected for the first time; fields: server, durability",
    "connection.lost": "the connection broke; fields: error",
    "connection.retry": "connecting again failed; fields: error, wait",
    "connection.restored": "connected again, topology re-declared; fields: seconds",
    "queue.altered": "a queue has other settings after a reconnect than it was declared with here; fields: "
    "error",
    "message.published": "a message was stored; fields: duplicate",
    "publish.failed": "a message was certainly not stored; fields: error",
    "publish.unknown": "a message was sent without an answer; fields: error",
    "message.started": "a handler begins",
    "message.done": "handled and acknowledged; fields: seconds",
    "message.retried": "will be handled again; fields: delay, error",
    "message.dead": "dead-lettered; fields: reason, error",
    "message.dropped": "gone, for its queue has no dead-letter queue; fields: reason, error",
    "message.released": "given back unfinished",
    "message.taken_over": "came back from a dead consumer for the first time; runs at once among the others",
    "message.quarantined": "came back from a dead consumer again; will run alone",
    "settle.stale": "the settlement came too late: the message belongs to another consumer; fields: verdict",
    "settle.failed": "the settlement failed and is tried again, the message stays ours; fields: verdict, "
    "error",
    "settle.unanswered": "the broker never answered the settlement; the message may come again; fields: error",
    "lease.lost": "the claim was lost while the message was held",
    "consumer.started": "consuming; fields: prefetch",
    "consumer.interrupted": "consuming stopped by itself; fields: error",
    "consumer.stopped": "consuming ended in order",
    "reply.failed": "a reply could not be stored; fields: error",
}
"""Every event and its fields. The names are public: dashboards are built on them."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: its name from `EVENTS`, where it applies the queue, message id and attempt, and the fields."""

    name: str
    queue: str = ""
    message_id: str = ""
    attempt: int = 0
    fields: Mapping[str, object] = field(default_factory=dict)


class Events:
    """The hub: counts everything, calls the listeners."""

    def __init__(self) -> None:
        """Start with no listeners and all counts at 0."""
        self.counts: Counter[str] = Counter()
        self._listeners: list[Callable[[Event], None]] = []
        self._broken: set[int] = set()

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event from now on, on the event loop: it must be quick."""
        self._listeners.append(listener)

    def emit(
        self, name: str, queue: str = "", message_id: str = "", attempt: int = 0, **fields: object
    ) -> None:
        """Count an event and tell the listeners. Never raises."""
        self.counts[name] += 1
        if not self._listeners:
            return
        event = Event(name, queue, message_id, attempt, fields)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a listener is user code
                if id(listener) not in self._broken:
                    self._broken.add(id(listener))
                    log().exception(
                        "an event listener raised, and will be heard of only this once: %r",
                        listener,
                    )
