"""Events reach those that want them, and one that is not wanted costs a count."""

import logging

import pytest

from mqcore.events import Event, Events
from mqcore.middleware import Logging


def test_every_listener_gets_the_events_that_it_wants() -> None:
    events = Events()
    all_of_them: list[Event] = []
    few: list[Event] = []
    events.listen(all_of_them.append)
    events.listen(few.append, lambda name: name == "message.dead")

    events.emit("message.done", "jobs", "a", 1, seconds=0.5)
    events.emit("message.dead", "jobs", "b", 2)

    assert all_of_them == [
        Event("message.done", "jobs", "a", 1, {"seconds": 0.5}),
        Event("message.dead", "jobs", "b", 2),
    ]
    assert few == all_of_them[1:]
    assert few[0] is all_of_them[1]
    assert events.counts == {"message.done": 1, "message.dead": 1}


def test_an_error_in_a_wish_is_that_of_its_listener(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    got: list[Event] = []

    def wants(name: str) -> bool:
        raise ValueError(name)

    events.listen(got.append, wants)
    events.listen(got.append)
    events.emit("message.done")
    assert [event.name for event in got] == ["message.done"]
    assert "an event listener raised" in caplog.text


def test_logging_wants_what_its_level_shows_and_asks_each_time() -> None:
    logger = logging.getLogger("mqcore-apart")
    logger.setLevel(logging.INFO)
    middleware = Logging(logger)
    names = ("message.started", "message.retried", "message.dead")
    assert [middleware.wants(name) for name in names] == [False, True, True]
    logger.setLevel(logging.DEBUG)
    assert middleware.wants("message.started")
    logger.setLevel(logging.ERROR)
    assert not middleware.wants("message.dead")
