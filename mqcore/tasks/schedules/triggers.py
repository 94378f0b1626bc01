"""When a schedule fires: at an interval, by a cron expression, or by the sun.

A trigger is data. Two processes with the same code make equal triggers, and a trigger that was
stored can be read by a process without the library that it needs. Times are seconds since the epoch
in UTC; a time zone only decides which of them a cron expression names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mqcore.clock import seconds
from mqcore.errors import ConfigurationError
from mqcore.tasks.schedules.errors import InvalidSchedule
from mqcore.tasks.schedules.sun import SunEvent, check_place, next_event

if TYPE_CHECKING:
    from cronsim import CronSim

__all__ = ["Cron", "Every", "Solar", "Trigger", "cron", "every", "instant_of", "solar"]

_SHORTEST, _LONGEST = 0.1, 100 * 365.25 * 86_400
_FIELDS = "minute, hour, day of month, month, day of week"
_MICRO = 1_000_000
_ANY_DAY = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Every:
    """At a fixed interval, counted in UTC: a change to daylight saving does not move it."""

    seconds: float
    start: float | None = None
    """An instant of the interval. Without it the instants count from the first one."""
    kind: Literal["every"] = "every"

    def __str__(self) -> str:
        return f"every {self.seconds:g} s"

    def following(self, after: float, planned: float | None = None) -> float:
        """Return the first instant later than `after`; `planned` is one of the instants."""
        if self.start is not None and after < self.start:
            return self.start

        length = round(self.seconds * _MICRO)
        anchor = round(_first(self.start, planned, after) * _MICRO)
        passed = (round(after * _MICRO) - anchor) // length
        return (anchor + (passed + 1) * length) / _MICRO


@dataclass(frozen=True, slots=True)
class Cron:
    """By a cron expression, in a time zone.

    A fixed time that a change to daylight saving leaves out fires right after the gap, and one that
    happens twice fires the first time only, as in Debian's cron. An expression whose minute or hour
    begins with `*` fires at each real instant.
    """

    expression: str
    tz: str = "UTC"
    kind: Literal["cron"] = "cron"

    def __str__(self) -> str:
        return f"{self.expression} {self.tz}"

    def following(self, after: float, planned: float | None = None) -> float:  # noqa: ARG002 - an instant does not depend on the one before
        """Return the first instant later than `after`."""
        start = datetime.fromtimestamp(after, _zone(self.tz))
        for found in _cronsim(self.expression, start):
            instant = found.timestamp()

            # Started inside the second pass of an ambiguous hour, cronsim 2.8 answers with the
            # first pass: 251 of 52,416 starts.
            if instant > after:
                return instant
        raise InvalidSchedule(_never(self.expression))


@dataclass(frozen=True, slots=True)
class Solar:
    """By the sun, at a place on earth. A day without the event, in a polar summer, has no run."""

    event: SunEvent
    latitude: float
    longitude: float
    kind: Literal["solar"] = "solar"

    def __str__(self) -> str:
        return f"{self.event} at {self.latitude:.2f}, {self.longitude:.2f}"

    def following(self, after: float, planned: float | None = None) -> float:  # noqa: ARG002 - an instant does not depend on the one before
        """Return the first instant later than `after`."""
        return next_event(self.event, self.latitude, self.longitude, after)


Trigger = Every | Cron | Solar


def every(interval: float | timedelta, *, start: datetime | None = None) -> Every:
    """Return a trigger that fires at an interval, in seconds or as a `timedelta`.

    With `start` its instants are `start`, `start + interval` and so on; otherwise the first is one
    interval after the schedule was created. Raises `InvalidSchedule` for an interval below 0.1 s,
    and for a `start` without a time zone.
    """
    is_number = isinstance(interval, int | float | timedelta) and not isinstance(interval, bool)
    length = seconds(interval) if is_number else math.nan
    if not _SHORTEST <= length <= _LONGEST:
        raise InvalidSchedule(
            f"every({interval!r:.60}): an interval is a number of seconds or a timedelta, from "
            f"{_SHORTEST} s to 100 years. For times of the day use cron()"
        )
    return Every(length, None if start is None else instant_of(start, "every(start=)"))


def cron(expression: str, *, tz: str = "UTC") -> Cron:
    """Return a trigger for a cron expression of five fields, in the time zone `tz`.

    Raises `InvalidSchedule` for an expression that is malformed or never fires, and for an unknown
    time zone. Needs cronsim: `pip install 'mqcore[cron]'`.
    """
    if not isinstance(expression, str) or len(expression.split()) != len(_FIELDS.split(", ")):
        raise InvalidSchedule(
            f"cron({expression!r:.100}) is not an expression of five fields: {_FIELDS}, for "
            'instance "30 7 * * 1" for 7:30 on Mondays. For less than a minute use every()'
        )

    trigger = Cron(" ".join(expression.split()), _zone(tz).key)
    trigger.following(_ANY_DAY.timestamp())  # one that never fires is refused here
    return trigger


def solar(event: SunEvent, latitude: float, longitude: float) -> Solar:
    """Return a trigger for an event of the sun: `sunrise`, `solar_noon`, `sunset`, or a twilight.

    A twilight is `dawn_` or `dusk_` with `civil`, `nautical` or `astronomical`. Latitude and
    longitude are in degrees; north and east are positive. Raises `InvalidSchedule` for another
    event, a place that does not exist, and a place that never sees the event. Needs ephem:
    `pip install 'mqcore[solar]'`.
    """
    check_place(event, latitude, longitude)
    trigger = Solar(event, float(latitude), float(longitude))
    trigger.following(_ANY_DAY.timestamp())
    return trigger


def instant_of(moment: datetime, what: str) -> float:
    """Return a time in seconds since the epoch.

    Raises `InvalidSchedule` for one without a time zone; `what` names the argument in its text.
    """
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidSchedule(
            f"{what} is {moment!r:.60}, which has no time zone. Give one, for instance "
            "datetime(2026, 3, 29, 2, 30, tzinfo=ZoneInfo('Europe/Oslo')), or datetime.now(UTC)"
        )
    return moment.timestamp()


def _first(*given: float | None) -> float:
    return next(value for value in given if value is not None)


def _zone(tz: str) -> ZoneInfo:
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
        raise InvalidSchedule(
            f"cron(tz={tz!r:.60}): there is no time zone of that name. Write one of the IANA "
            "database, for instance Europe/Oslo. If that one is not found either, the system has "
            "no time zones: pip install tzdata"
        ) from error


def _cronsim(expression: str, start: datetime) -> CronSim:
    try:
        from cronsim import CronSim, CronSimError  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the schedule {expression!r} needs cronsim: pip install 'mqcore[cron]'"
        ) from error

    try:
        return CronSim(expression, start)
    except CronSimError as error:
        raise InvalidSchedule(
            f"cron({expression!r:.100}): {str(error)[:1].lower()}{str(error)[1:]}. The fields are "
            f"{_FIELDS}; each takes `*`, numbers, ranges `1-5`, lists `1,3` and steps `*/10`"
        ) from error


def _never(expression: str) -> str:
    return f"cron({expression!r:.100}) never fires: no day of 50 years matches it. Correct the days"
