"""When a schedule fires: intervals, cron expressions over changes of the clock, and the sun."""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from mqcore.errors import ConfigurationError
from mqcore.tasks.schedules.errors import InvalidSchedule
from mqcore.tasks.schedules.triggers import Trigger, cron, every, solar

ZONES = (
    "Europe/Oslo",
    "America/New_York",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Antarctica/Troll",
    "Asia/Tehran",
)


def at(text: str, tz: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(tz)).timestamp()


def local(moment: float, tz: str) -> str:
    return datetime.fromtimestamp(moment, ZoneInfo(tz)).strftime("%m-%d %H:%M%z")


def chain(trigger: Trigger, start: str, count: int, tz: str) -> list[str]:
    found, moment = [], at(start, tz)
    for _ in range(count):
        moment = trigger.following(moment)
        found.append(local(moment, tz))
    return found


# Intervals


def test_an_interval_counts_from_the_planned_instant_not_from_now() -> None:
    trigger, planned = every(30), at("2026-03-01 00:00:00")
    assert trigger.following(planned + 100.7, planned) == planned + 120
    assert trigger.following(planned, planned) == planned + 30


def test_an_interval_without_an_instant_begins_after_itself() -> None:
    assert every(timedelta(minutes=1)).following(1_000.5) == 1_060.5


def test_an_interval_with_a_start_has_its_own_instants() -> None:
    start = datetime(2026, 3, 29, 1, 30, tzinfo=ZoneInfo("Europe/Oslo"))
    trigger = every(3600, start=start)
    assert trigger.following(0.0) == start.timestamp()
    assert trigger.following(start.timestamp() + 7_200, 5.0) == start.timestamp() + 10_800


def test_an_interval_is_exact_after_a_million_instants() -> None:
    trigger, planned = every(0.1), 1_793_000_000.123457
    assert round(trigger.following(planned + 1e5 + 0.01, planned) - planned, 6) == 100_000.1


@pytest.mark.parametrize("interval", [0, -1, 0.01, float("nan"), float("inf"), True, "30", None])
def test_an_interval_that_cannot_work_is_refused(interval: object) -> None:
    with pytest.raises(InvalidSchedule, match=r"from 0\.1 s to 100 years"):
        every(interval)  # type: ignore[arg-type]  # that is what is tested


def test_a_start_without_a_time_zone_is_refused() -> None:
    with pytest.raises(InvalidSchedule, match="has no time zone"):
        every(30, start=datetime(2026, 3, 29, 2, 30))  # noqa: DTZ001 - that is what is tested


# Cron


def test_a_fixed_time_follows_the_local_clock() -> None:
    trigger = cron("30 7 * * 1", tz="Europe/Oslo")
    assert chain(trigger, "2026-03-20", 3, "Europe/Oslo") == [
        "03-23 07:30+0100",
        "03-30 07:30+0200",
        "04-06 07:30+0200",
    ]


def test_a_time_that_is_left_out_fires_right_after_the_gap() -> None:
    oslo = chain(cron("30 2 * * *", tz="Europe/Oslo"), "2026-03-28", 3, "Europe/Oslo")
    assert oslo == ["03-28 02:30+0100", "03-29 03:00+0200", "03-30 02:30+0200"]
    name = "Australia/Lord_Howe"  # half an hour
    assert chain(cron("15 2 * * *", tz=name), "2026-10-03 12:00", 2, name) == [
        "10-04 02:30+1100",
        "10-05 02:15+1100",
    ]


def test_several_times_in_one_gap_fire_once() -> None:
    found = chain(cron("15,45 2 * * *", tz="Europe/Oslo"), "2026-03-29", 2, "Europe/Oslo")
    assert found == ["03-29 03:00+0200", "03-30 02:15+0200"]


def test_a_time_that_happens_twice_fires_once() -> None:
    trigger = cron("30 2 * * *", tz="Europe/Oslo")
    assert chain(trigger, "2026-10-24 12:00", 2, "Europe/Oslo") == [
        "10-25 02:30+0200",
        "10-26 02:30+0100",
    ]


def test_every_real_hour_fires() -> None:
    trigger = cron("0 * * * *", tz="Europe/Oslo")
    assert chain(trigger, "2026-10-25 01:00", 4, "Europe/Oslo") == [
        "10-25 02:00+0200",
        "10-25 02:00+0100",
        "10-25 03:00+0100",
        "10-25 04:00+0100",
    ]
    assert chain(trigger, "2026-03-29 00:00", 3, "Europe/Oslo")[1:] == [
        "03-29 03:00+0200",
        "03-29 04:00+0200",
    ]


def test_a_start_in_the_second_pass_of_an_hour_gets_no_instant_of_the_past() -> None:
    second = datetime(2026, 10, 25, 2, 29, tzinfo=ZoneInfo("Europe/Oslo"), fold=1).timestamp()
    found = cron("30 2 * * *", tz="Europe/Oslo").following(second)
    assert local(found, "Europe/Oslo") == "10-26 02:30+0100"


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(
    "expression", ["30 2 * * *", "15,45 1-3 * * *", "0 */6 * * *", "*/20 2 * * *", "5 0 * * 0"]
)
def test_the_instants_are_the_same_from_every_start(zone: str, expression: str) -> None:
    """What follows a moment is the first instant after it, wherever the search began."""
    choose, trigger = random.Random(zone), cron(expression, tz=zone)
    moment, end = at("2026-02-27"), at("2026-11-10")
    instants = []
    while moment < end:
        moment = trigger.following(moment)
        instants.append(moment)
    assert instants == sorted(set(instants))

    for place in choose.sample(range(1, len(instants)), min(60, len(instants) - 1)):
        before, here = instants[place - 1], instants[place]
        for start in (before, choose.uniform(before, here), here - 0.5):
            assert trigger.following(start) == here


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("30 7 * *", "not an expression of five fields"),
        ("0 30 7 * * 1", "For less than a minute use every"),
        ("61 * * * *", "bad minute"),
        ("x * * * *", "bad minute"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 0 31 4,6 *", "bad day-of-month"),
        ("0 0 */31 2 1#2", "never fires"),
        ("@daily", "not an expression of five fields"),
        (None, "not an expression of five fields"),
    ],
)
def test_an_expression_that_cannot_work_is_refused(expression: str, text: str) -> None:
    with pytest.raises(InvalidSchedule, match=text):
        cron(expression)


@pytest.mark.parametrize("tz", ["Europe/Olso", "", "../etc/passwd", "/etc/passwd", "Africa", None])
def test_an_unknown_time_zone_is_refused(tz: str) -> None:
    with pytest.raises(InvalidSchedule, match="there is no time zone of that name"):
        cron("30 7 * * 1", tz=tz)


@pytest.mark.parametrize(
    ("library", "make", "extra"),
    [
        ("cronsim", lambda: cron("30 7 * * 1"), r"mqcore\[cron\]"),
        ("ephem", lambda: solar("sunset", 0, 0), r"mqcore\[solar\]"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    library: str, make: object, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigurationError, match=extra):
        make()  # type: ignore[operator]  # a function of no arguments


# The sun


def test_the_sun_sets_in_melbourne() -> None:
    """timeanddate.com has 20:33 on 1 January 2026 and 17:08 on 21 June, at UTC+11 and +10."""
    trigger = solar("sunset", -37.81753, 144.96715)
    shown = [
        local(trigger.following(at(day, "Australia/Melbourne")), "Australia/Melbourne")
        for day in ("2026-01-01 12:00", "2026-06-21 12:00")
    ]
    assert [text[:9] for text in shown] == ["01-01 20:", "06-21 17:"]


def test_the_events_of_a_day_come_in_their_order() -> None:
    events = (
        "dawn_astronomical",
        "dawn_nautical",
        "dawn_civil",
        "sunrise",
        "solar_noon",
        "sunset",
        "dusk_civil",
        "dusk_nautical",
        "dusk_astronomical",
    )
    start = at("2026-03-20 00:00")
    moments = [solar(event, 51.48, 0.0).following(start) for event in events]
    assert moments == sorted(moments)
    assert moments[-1] < start + 86_400
    assert abs(moments[4] - at("2026-03-20 12:07")) < 120  # the equation of time is 7 minutes


def test_the_instants_of_the_sun_rise_by_a_day() -> None:
    trigger, moment = solar("sunrise", 59.91, 10.75), at("2026-01-01")
    for _ in range(400):
        following = trigger.following(moment)
        assert trigger.following(following - 3.0) == following
        assert following == round(following)
        assert following - moment < 86_400 * 1.5
        moment = following


def test_a_polar_summer_has_no_sunset() -> None:
    trigger = solar("sunset", 69.65, 18.96)  # Tromsø
    following = trigger.following(at("2026-05-25"))
    assert at("2026-07-20") < following < at("2026-08-01")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("moonrise", 0, 0), "the events are"),
        (("sunset", 91, 0), "latitude=91"),
        (("sunset", 0, 181), "longitude=181"),
        (("sunset", float("nan"), 0), "latitude=nan"),
        (("sunset", "0", 0), "latitude='0'"),
    ],
)
def test_a_place_that_does_not_exist_is_refused(given: tuple[object, ...], text: str) -> None:
    with pytest.raises(InvalidSchedule, match=text):
        solar(*given)  # type: ignore[arg-type]  # that is what is tested


def test_a_place_that_never_sees_the_event_is_refused() -> None:
    with pytest.raises(InvalidSchedule, match="does not see this event"):
        solar("dusk_astronomical", 90.0, 0.0)


def test_now_has_a_time_zone() -> None:
    assert every(60, start=datetime.now(UTC)).start is not None
