"""What a task may have to wait for before it starts: its turn of a rate, and a slot.

A worker gives both with `Begin`, as its code has them, so a new limit holds from the next start.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RateLimit", "SlotLimit"]


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most one start in `interval` seconds with the same key, and `burst` of them at once."""

    key: str
    interval: float
    burst: int = 1


@dataclass(frozen=True, slots=True)
class SlotLimit:
    """At most `count` tasks with the same key at a time.

    A task that `keeps` its slot has it until its end, also while it waits for its next attempt.
    `takes_over`: the slots of workers without a recent heartbeat are free. A worker that has had no
    heartbeats itself for a while does not know who is dead.
    """

    key: str
    count: int
    keeps: bool = False
    takes_over: bool = True
