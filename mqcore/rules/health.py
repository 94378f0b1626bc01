"""The state of a broker, as it is known without asking it (G14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Health", "OutboxHealth", "SpoolHealth"]


@dataclass(frozen=True, slots=True)
class SpoolHealth:
    """The state of a fallback's spool, known without asking it.

    `depth`: how many messages wait in it. `age`: for how many seconds the oldest has waited.
    `usable`: whether it stores messages now. `error`: why not.
    """

    depth: int
    age: float
    usable: bool
    error: str


@dataclass(frozen=True, slots=True)
class OutboxHealth:
    """The state of an application's outbox, as it was up to 5 s ago.

    `depth`: how many committed messages wait for a relay. `age`: for how many seconds the oldest
    has waited. `usable`: whether its database is connected. `error`: why not.
    """

    depth: int
    age: float
    usable: bool
    error: str


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a broker, known without asking it (G14).

    `connected`: whether there is a connection. `consuming`: for each queue with a consumer, whether
    it is really consumed. `server`: name and version of the server, empty while not connected.
    `error`: the last connection error, empty after a reconnect. `counts`: how often each event of
    `mqcore.events.EVENTS` has happened. `spool`: the state of the fallback, None without one.
    `outbox`: the state of the outbox, None without one.
    """

    connected: bool
    consuming: Mapping[str, bool]
    server: str
    error: str
    counts: Mapping[str, int]
    spool: SpoolHealth | None = None
    outbox: OutboxHealth | None = None

    @property
    def ok(self) -> bool:
        """Whether messages can be published and every consumer consumes.

        While the broker is away, a fallback takes what is published.
        """
        publishes = self.connected or (self.spool is not None and self.spool.usable)
        return publishes and all(self.consuming.values())

    @property
    def degraded(self) -> bool:
        """Whether the fallback is in use, or could not be used now."""
        spool = self.spool
        return spool is not None and not (self.connected and spool.usable and not spool.depth)
