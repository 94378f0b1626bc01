"""The events of core: one table for logging, metrics and counters.

Every event is counted, and passed to the listeners (a middleware's `on_event`). The first exception
of a listener is logged; further ones are ignored, because telemetry must not change what happens to
a message.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mqcore.errors import ConfigurationError
from mqcore.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["EVENTS", "Event", "Events"]

EVENTS = {
    "connection.opened": "connected for the first time; fields: server, durability",
    "connection.lost": "the connection broke; fields: error",
    "connection.retry": "connecting again failed; fields: error, wait",
    "connection.restored": "connected again, topology re-declared; fields: seconds",
    "queue.altered": "after a reconnect, a queue has other settings than this process declared; "
    "fields: error",
    "message.published": "a message was stored; fields: duplicate",
    "message.enlisted": "a message was stored in a transaction of the application, which has not "
    "ended yet; fields: duplicate",
    "message.unrouted": "no binding of its router took a message that was published with "
    "unroutable='drop'",
    "publish.failed": "a message was certainly not stored; fields: error",
    "publish.unknown": "a message was sent without an answer; fields: error",
    "message.started": "a handler begins",
    "message.done": "handled and acknowledged; fields: seconds",
    "message.skipped": "acknowledged without its handler, which has handled it before (once=)",
    "message.retried": "will be handled again; fields: delay, error",
    "message.postponed": "its handler wants it later; not an attempt; fields: delay",
    "message.dead": "dead-lettered; fields: reason, error",
    "message.dropped": "lost, because its queue has no dead-letter queue; fields: reason, error",
    "message.released": "returned to the queue unfinished",
    "message.taken_over": "its consumer died for the first time; it runs now, beside others",
    "message.quarantined": "its consumer died again; it will run alone",
    "settle.stale": "the settlement came too late: another consumer has the message; fields: "
    "verdict",
    "settle.failed": "the settlement failed and will be tried again; the message is still held; "
    "fields: verdict, error",
    "settle.unanswered": "the broker did not answer the settlement; the message may be delivered "
    "again; fields: error",
    "lease.lost": "the claim was lost while the message was held",
    "consumer.started": "consuming; fields: prefetch",
    "consumer.interrupted": "consuming was interrupted; fields: error",
    "consumer.draining": "running handlers get the rest of the grace to end; fields: handlers",
    "consumer.stopped": "consuming ended as requested",
    "message.spooled": "the broker is away, and the fallback stored a message; fields: duplicate, "
    "reason",
    "spool.failed": "the fallback's spool cannot be used; the broker still is; fields: error",
    "message.relayed": "a message that waited in a spool or an outbox was stored by its broker; "
    "fields: duplicate",
    "relay.held": "the broker does not take messages that wait; they are tried again; fields: "
    "messages, error",
    "conclusion.failed": "the conclusion hook failed, so the message is postponed; fields: error",
    "reply.failed": "a reply could not be stored; fields: error",
}
"""Every event and its fields. The names are public, because dashboards use them."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    `name` is a key of `EVENTS`. `queue`, `message_id` and `attempt` are empty or 0 where they do
    not apply. `fields` are the event's own.
    """

    name: str
    queue: str = ""
    message_id: str = ""
    attempt: int = 0
    fields: Mapping[str, object] = field(default_factory=dict)


class Events:
    """Counts every event and calls the listeners. `counts` has the number of each event so far."""

    def __init__(self) -> None:
        """Start with no listeners and all counts at 0."""
        self.counts: Counter[str] = Counter()
        self._listeners: list[tuple[Callable[[Event], None], Callable[[str], bool]]] = []
        self._broken: set[int] = set()

    def listen(
        self, listener: Callable[[Event], None], wants: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Call `listener` from now on with every event whose name it `wants`.

        Both are called on the event loop, so they must be quick. Raises `ConfigurationError` for a
        listener that cannot be called, and for an async one: it would never be awaited.
        """
        if not callable(listener) or inspect.iscoroutinefunction(listener):
            raise ConfigurationError(
                f"events.listen takes a plain function of one event, not {listener!r:.60}"
            )
        self._listeners.append((listener, wants))

    def emit(
        self, name: str, queue: str = "", message_id: str = "", attempt: int = 0, **fields: object
    ) -> None:
        """Count an event and call the listeners. Never raises."""
        self.counts[name] += 1
        event: Event | None = None  # it is made when somebody wants it

        for listener, wants in self._listeners:
            try:
                if not wants(name):
                    continue
                event = event or Event(name, queue, message_id, attempt, fields)
                listener(event)
            except Exception:  # noqa: BLE001 - a listener is user code
                if id(listener) not in self._broken:
                    self._broken.add(id(listener))
                    log().exception(
                        "an event listener raised; its further exceptions are not logged: %r",
                        listener,
                    )
