"""What can be wrong with a schedule."""

from __future__ import annotations

from mqcore.errors import ConfigurationError, MqcoreError

__all__ = ["InvalidSchedule", "UnknownSchedule"]


class InvalidSchedule(ConfigurationError):
    """A schedule cannot work as it is written: a cron expression, a time zone, an interval."""


class UnknownSchedule(MqcoreError):
    """The store has no schedule of that name."""
