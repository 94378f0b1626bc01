"""Where the sun is, by ephem: sunrise, noon, sunset and the twilights at a place."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, get_args

from mqcore.errors import ConfigurationError
from mqcore.tasks.schedules.errors import InvalidSchedule

__all__ = ["SunEvent", "check_place", "next_event"]

SunEvent = Literal[
    "dawn_astronomical",
    "dawn_nautical",
    "dawn_civil",
    "sunrise",
    "solar_noon",
    "sunset",
    "dusk_civil",
    "dusk_nautical",
    "dusk_astronomical",
]

_HORIZONS = {"civil": "-6", "nautical": "-12", "astronomical": "-18"}
_OF_THE_DISC = "-0:34"
"""The horizon of sunrise and sunset: where refraction shows the upper edge of the disc."""
_DAY = 86_400.0
_MOST_DAYS = 400
_HOUR = 3_600.0
"""Two events of one kind are more than some hours apart."""
_SAME = 2.0
"""Seconds within which two answers are one event."""


def check_place(event: object, latitude: object, longitude: object) -> None:
    """Raise `InvalidSchedule` for an event that is not known, or a place that does not exist."""
    if event not in get_args(SunEvent):
        names = ", ".join(get_args(SunEvent))
        raise InvalidSchedule(f"solar({event!r:.60}): the events are {names}")

    for name, value, most in (("latitude", latitude, 90), ("longitude", longitude, 180)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and -most <= value <= most):  # type: ignore[operator]  # it is a number
            raise InvalidSchedule(
                f"solar({name}={value!r:.60}): it is in degrees, from -{most} to {most}; north and "
                "east are positive"
            )


def next_event(event: str, latitude: float, longitude: float, after: float) -> float:
    """Return the first time of the event later than `after`, as a whole second.

    ephem finds an event some milliseconds earlier or later when the search begins at another time.
    So each event is found again from a whole hour before it, which is the same for every search,
    and the rest of an event that was just planned is left out.
    """
    start = after
    for _ in range(_MOST_DAYS):
        found = _found(event, latitude, longitude, start)
        if found is None:
            start += _DAY  # the sun stays up or down all day
            continue

        hour = found // _HOUR * _HOUR - 2 * _HOUR
        exact = round(_found(event, latitude, longitude, hour) or found)
        if exact > after + _SAME:
            return float(exact)
        start = found + _HOUR

    raise InvalidSchedule(
        f"solar({event!r}, {latitude:g}, {longitude:g}): the place does not see this event within "
        f"{_MOST_DAYS} days. Choose another event, for instance solar_noon"
    )


def _found(event: str, latitude: float, longitude: float, start: float) -> float | None:
    try:
        import ephem  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the schedule solar({event!r}) needs ephem: pip install 'mqcore[solar]'"
        ) from error

    observer: Any = ephem.Observer()
    observer.lat, observer.lon = str(latitude), str(longitude)
    observer.pressure = 0  # refraction is part of the horizon
    observer.date = ephem.Date(datetime.fromtimestamp(start, UTC).replace(tzinfo=None))
    kind, _, twilight = event.partition("_")
    observer.horizon = _HORIZONS.get(twilight, _OF_THE_DISC)

    sun = ephem.Sun()
    try:
        if event == "solar_noon":
            date = observer.next_transit(sun)
        elif kind in {"dawn", "sunrise"}:
            date = observer.next_rising(sun, use_center=bool(twilight))
        else:
            date = observer.next_setting(sun, use_center=bool(twilight))
    except (ephem.AlwaysUpError, ephem.NeverUpError):
        return None

    moment: datetime = date.datetime()
    return moment.replace(tzinfo=UTC).timestamp()
