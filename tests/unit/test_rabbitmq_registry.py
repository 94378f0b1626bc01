"""The picture that the registry's records give."""

from __future__ import annotations

from mqcore.spi import Binding, QueueSpec
from mqcore_rabbitmq.delayed import Delayed
from mqcore_rabbitmq.layout import Layout
from mqcore_rabbitmq.registry import Picture, record_of


def layout(name: str) -> Layout:
    return Layout.of(QueueSpec(name=name), quorum=False, bands=11)


def test_records_add_up_to_what_there_is() -> None:
    picture, one = Picture(), Binding(router="shop", kind="topic", queue="a", pattern="x.*")
    two = Binding(router="shop", kind="headers", queue="b", headers=(("h", "1"), ("i", "2")), match="any")
    for record in (layout("a").record(), layout("b").record(), {"bind": record_of(one)}, {"bind": record_of(two)}):
        picture.fold([record])
    assert set(picture.queues) == {"a", "b"}
    assert picture.bindings("shop") == picture.bindings(None) == [one, two]
    picture.fold([{"gone": "a"}])
    assert (set(picture.queues), picture.bindings("shop")) == ({"b"}, [two])
    picture.fold([{"unbind": record_of(two)}])
    assert picture.bindings(None) == []


def test_what_cannot_be_read_says_nothing() -> None:
    picture = Picture()
    for record in ({"q": "a"}, {"bind": ["too", "short"]}, {"bind": 7}, {}, {"mark": "x"}, {"unknown": 1}):
        picture.fold([record])
    assert picture == Picture()


def test_one_write_may_hold_many_records_and_nonsense_between_them() -> None:
    picture = Picture()
    picture.fold([layout("a").record(), "nonsense", 7, {"gone": "a"}, layout("b").record()])
    picture.fold({"q": "not a list"})
    picture.fold(None)
    assert set(picture.queues) == {"b"}


def test_what_is_delayed_is_counted_until_it_is_due() -> None:
    delayed = Delayed()
    for due in (1.0, 2.0, 2.01, 30.0):
        delayed.add("q", due, 0.0)
    assert [delayed.count("q", now) for now in (0.0, 1.5, 2.5, 31.0)] == [4, 3, 1, 0]
    delayed.add("q", 50.0, 31.0)
    delayed.clear("q")
    assert delayed.count("q", 0.0) == 0


def test_what_counts_can_be_written_down_again() -> None:
    picture, again = Picture(), Picture()
    binding = Binding(router="r", kind="headers", queue="a", headers=(("h", "1"),), match="any")
    for record in (layout("a").record(), layout("b").record(), {"gone": "b"}, {"bind": record_of(binding)}):
        picture.fold([record])
    for record in picture.records():
        again.fold([record])
    assert (again.queues, again.bound) == (picture.queues, picture.bound)
