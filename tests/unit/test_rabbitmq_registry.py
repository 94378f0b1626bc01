"""The picture that the registry's records give."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqcore.spi import Binding, QueueSpec
from mqcore_rabbitmq.layout import Layout, Server, compare
from mqcore_rabbitmq.registry import Picture, record_of


def layout(name: str) -> Layout:
    return Layout.of(QueueSpec(name=name), quorum=False, bands=11)


def test_records_add_up_to_what_there_is() -> None:
    picture, one = Picture(), Binding(router="shop", kind="topic", queue="a", pattern="x.*")
    two = Binding(
        router="shop", kind="headers", queue="b", headers=(("h", "1"), ("i", "2")), match="any"
    )
    for record in (
        layout("a").record(),
        layout("b").record(),
        {"bind": record_of(one)},
        {"bind": record_of(two)},
    ):
        picture.fold([record])
    assert set(picture.queues) == {"a", "b"}
    assert picture.bindings("shop") == picture.bindings(None) == [one, two]
    picture.fold([{"gone": "a"}])
    assert (set(picture.queues), picture.bindings("shop")) == ({"b"}, [two])
    picture.fold([{"unbind": record_of(two)}])
    assert picture.bindings(None) == []


def test_what_cannot_be_read_says_nothing() -> None:
    picture = Picture()
    for record in (
        {"q": "a"},
        {"bind": ["too", "short"]},
        {"bind": 7},
        {},
        {"mark": "x"},
        {"unknown": 1},
    ):
        picture.fold([record])
    assert picture == Picture(unreadable=6)


def test_one_write_may_hold_many_records_and_nonsense_between_them() -> None:
    picture = Picture()
    picture.fold([layout("a").record(), "nonsense", 7, {"gone": "a"}, layout("b").record()])
    picture.fold({"q": "not a list"})
    picture.fold(None)
    assert set(picture.queues) == {"b"}


def test_what_counts_can_be_written_down_again() -> None:
    picture, again = Picture(), Picture()
    binding = Binding(router="r", kind="headers", queue="a", headers=(("h", "1"),), match="any")
    for record in (
        layout("a").record(),
        layout("b").record(),
        {"gone": "b"},
        {"bind": record_of(binding)},
    ):
        picture.fold([record])
    for record in picture.records():
        again.fold([record])
    assert (again.queues, again.bound) == (picture.queues, picture.bound)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["work", "topic", "all"]),
    lambda it: st.lists(it, max_size=6) | st.dictionaries(st.text(max_size=4), it, max_size=3),
)
NAMES = [
    "q",
    "role",
    "ttl",
    "max",
    "over",
    "dead",
    "keep",
    "quorum",
    "bands",
    "gone",
    "bind",
    "unbind",
]
RECORDS = st.lists(
    st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=5) | ANYTHING, max_size=4
)


@given(RECORDS)
@example([{"q": "a", "role": "work", "ttl": "soon"}])
@example([{"q": 7, "role": "work"}])
@example([{"q": "a", "role": "work", "bands": 10**400}])
@example([{"bind": ["shop", "topic", "a", None, [], "all"]}])
@example([{"bind": ["shop", ["topic"], "a", "x", [], "all"]}])
def test_whatever_somebody_writes_there_can_be_worked_with(records: list[object]) -> None:
    """Any publisher may write a record: it is read if it is valid, else counted and skipped."""
    picture = Picture()
    picture.read(json.dumps(records).encode())
    for one in picture.queues.values():
        one.arguments(one.name, Server("RabbitMQ", "4.0.5"))
        assert all(isinstance(queue, str) for queue in one.queues)
        compare(one, one)
    for binding in picture.bindings(None):
        binding.takes("a.b", {"h": "1"})
    again = Picture()
    again.read(json.dumps(picture.records()).encode())
    assert (again.queues, again.bound, again.unreadable) == (picture.queues, picture.bound, 0)


@pytest.mark.parametrize("body", [b"", b"\xff", b"{", b"7", b"[" * 100_000, b'[{"q":' * 50_000])
def test_a_message_that_is_not_a_record_is_counted(body: bytes) -> None:
    picture = Picture()
    picture.read(body)
    assert picture == Picture(unreadable=1)
