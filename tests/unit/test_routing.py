"""Which bindings match a message: the edges of AMQP, and a slow matcher that must agree."""

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqcore.errors import ConfigurationError
from mqcore.rules.routing import Binding, Kind, check_key, route, topic_matches


@pytest.mark.parametrize(
    ("pattern", "key", "taken"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.b", "a.b.c", False),
        ("a.b", "A.b", False),
        ("*", "a", True),
        ("*", "", False),
        ("*", "a.b", False),
        ("*.*", "a.b", True),
        ("*.b", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.c", False),
        ("#", "", True),
        ("#", "a", True),
        ("#", "a.b.c", True),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("a.#", "ab", False),
        ("#.c", "c", True),
        ("#.c", "a.b.c", True),
        ("#.c", "a.b", False),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True),
        ("a.#.c", "a.b", False),
        ("#.#", "", True),
        ("#.*", "", False),
        ("#.*", "a", True),
        ("*.#", "a.b", True),
        ("#.a.#", "b.a.c", True),
        ("#.a.#", "b.c", False),
        ("#.a.#.a", "a", False),
        ("", "", True),
        ("", "a", False),
        ("a", "", False),
        ("*.a", ".a", True),
        ("a.*", "a.", True),
        ("a..b", "a..b", True),
        ("a.*.b", "a..b", True),
        ("a.#.b", "a..b", True),
        ("*.*", ".", True),
        ("#", ".", True),
        ("a*", "ab", False),
        ("a*", "a*", True),
        ("#a", "ba", False),
        ("#a.*", "#a.b", True),
        ("*", "*", True),
        ("*", "#", True),
        ("a", "*", False),
        ("a.b", "*.b", False),
        ("größe.*", "größe.😀", True),
        (".*", "xx", False),
        ("(a|b)", "a", False),
    ],
)
def test_a_topic_pattern_takes_a_key(pattern: str, key: str, *, taken: bool) -> None:
    assert topic_matches(pattern, key) is taken
    assert Binding(router="r", kind="topic", queue="q", pattern=pattern).takes(key, {}) is taken


def naive(pattern: Sequence[str], words: Sequence[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return naive(pattern[1:], words) or (bool(words) and naive(pattern, words[1:]))
    return bool(words) and pattern[0] in ("*", words[0]) and naive(pattern[1:], words[1:])


WORDS = st.lists(st.sampled_from(["a", "b", ""]), max_size=6)


@given(st.lists(st.sampled_from(["a", "b", "*", "#", ""]), min_size=1, max_size=6), WORDS)
def test_it_agrees_with_a_matcher_that_tries_everything(
    pattern: list[str], words: list[str]
) -> None:
    key = ".".join(words)
    assert topic_matches(".".join(pattern), key) is naive(
        pattern if pattern != [""] else [], key.split(".") if key else []
    )


@given(st.text(max_size=12), st.text(max_size=12))
def test_any_text_is_matched_or_not_and_nothing_raises(pattern: str, key: str) -> None:
    if "*" not in pattern and "#" not in pattern:
        assert topic_matches(pattern, key) is (pattern == key)
    assert topic_matches("#", key)
    assert isinstance(topic_matches(pattern, key), bool)


def test_a_pattern_bomb_ends_fast() -> None:
    pattern, key = "#." * 127 + "x", ".".join("a" * 127)
    start = time.perf_counter()
    assert not topic_matches(pattern, key)
    assert (
        time.perf_counter() - start < 5
    )  # a matcher that backtracks would take longer than the universe has


def binding(queue: str, kind: Kind = "direct", pattern: str = "", **headers: str) -> Binding:
    return Binding(
        router="r", kind=kind, queue=queue, pattern=pattern, headers=tuple(sorted(headers.items()))
    )


def test_direct_compares_the_whole_key_and_knows_no_wildcards() -> None:
    assert binding("q", "direct", "a.b").takes("a.b", {})
    assert not binding("q", "direct", "a.*").takes("a.b", {})
    assert not binding("q", "direct", "#").takes("a", {})
    assert binding("q", "direct").takes("", {"any": "thing"})


def test_fanout_takes_all() -> None:
    assert binding("q", "fanout").takes("", {})
    assert binding("q", "fanout", "ignored").takes("other", {"a": "b"})


@pytest.mark.parametrize(
    ("headers", "by_all", "by_any"),
    [
        ({"a": "1", "b": "2"}, True, True),
        ({"a": "1", "b": "2", "c": "3"}, True, True),
        ({"a": "1"}, False, True),
        ({"b": "2"}, False, True),
        ({"a": "2", "b": "1"}, False, False),
        ({"A": "1"}, False, False),
        ({}, False, False),
    ],
    ids=str,
)
def test_headers_are_compared_all_or_any(
    headers: dict[str, str], *, by_all: bool, by_any: bool
) -> None:
    wanted = (("a", "1"), ("b", "2"))
    every = Binding(router="r", kind="headers", queue="q", headers=wanted)
    some = Binding(router="r", kind="headers", queue="q", headers=wanted, match="any")
    assert every.takes("key", headers) is by_all
    assert some.takes("key", headers) is by_any


def test_a_queue_gets_one_copy_however_many_bindings_lead_to_it() -> None:
    bindings = [
        binding("b", "topic", "#"),
        binding("a", "topic", "x.*"),
        binding("b", "topic", "x.y"),
        binding("c", "topic", "z"),
    ]
    assert route(bindings, "x.y", {}) == ["b", "a"]
    assert route(bindings[3:], "x.y", {}) == []
    assert route([], "x", {}) == []


def test_a_headers_binding_without_headers_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="router 'r': a headers binding to 'q' needs at least one header"
    ):
        binding("q", "headers")


@pytest.mark.parametrize("key", ["k" * 256, "é" * 128], ids=["ascii", "utf-8"])
def test_a_key_that_no_broker_carries_is_refused(key: str) -> None:
    for kind in ("direct", "topic"):
        with pytest.raises(ConfigurationError, match="longer than 255 bytes") as caught:
            binding("q", kind, key)
        assert len(str(caught.value)) < 400
    assert binding("q", "fanout", key).pattern == key


def test_a_key_of_255_bytes_is_taken() -> None:
    assert check_key("é" * 127 + "k", "here") == "é" * 127 + "k"
