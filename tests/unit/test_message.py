"""Ids, priorities, headers, limits; and the flat wire format, which must bear forged values."""

import os
import random
from collections import UserDict
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqcore.errors import MessageTooLarge, ValidationError
from mqcore.messages.message import (
    Death,
    Limits,
    Message,
    Reason,
    check_headers,
    check_id,
    check_priority,
    new_id,
    pack,
    unpack,
)


@pytest.mark.parametrize("good", ["a", "x" * 128, "!~", "3f-2504:e0/4f", new_id()])
def test_an_id_is_taken(good: str) -> None:
    assert check_id(good) == good


@pytest.mark.parametrize(
    "bad",
    ["", " ", "a b", "a\n", "a\x00", "é", "\ud800", "x" * 129, "\x7f", None, 5, b"a", ["a"]],
    ids=ascii,
)
def test_another_id_is_refused(bad: object) -> None:
    with pytest.raises(ValidationError, match="is not usable") as caught:
        check_id(bad)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_ids_differ_also_when_an_application_seeds_random() -> None:
    random.seed(0)
    first = new_id()
    random.seed(0)
    assert new_id() != first
    assert len({new_id() for _ in range(1000)}) == 1000
    assert len(first) == 32


def test_ids_differ_after_a_fork() -> None:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - runs in the child
        os.write(theirs, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(ours, 32).decode() != new_id()
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("good", [0, 5, 10])
def test_a_priority_is_taken(good: int) -> None:
    assert check_priority(good) == good


@pytest.mark.parametrize(
    "bad", [-1, 11, 255, 10**30, True, False, 5.0, float("nan"), "5", "high", None, b"5"], ids=repr
)
def test_another_priority_is_refused(bad: object) -> None:
    with pytest.raises(
        ValidationError, match=r"out of range: 0 \(lowest\) to 10 \(highest\), 5 by default"
    ):
        check_priority(bad)


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"tenant": "a"},
        {"A.b_c-9": ""},
        {"n" * 128: "ü😀 \t end"},
        UserDict(a="b"),
        {"mqtt": "a", "xray": "b"},
    ],
    ids=range(6),
)
def test_headers_are_taken_as_a_copy(good: dict[str, str]) -> None:
    taken = check_headers(good)
    assert taken == dict(good)
    assert taken is not good


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"": "v"}, "name '' is not usable"),
        ({"a b": "v"}, "not usable"),
        ({"a:": "v"}, "not usable"),
        ({"a\r\nb": "v"}, "not usable"),
        ({"ä": "v"}, "not usable"),
        ({"n" * 129: "v"}, "not usable"),
        ({"n" * 10**6: "v"}, "not usable"),
        ({5: "v"}, "not usable"),
        ({None: "v"}, "not usable"),
        ({b"a": "v"}, "not usable"),
        ({"mq-attempt": "7"}, "reserved"),
        ({"MQ-Attempt": "7"}, "reserved"),
        ({"x-death": "v"}, "reserved"),
        ({"X-Match": "v"}, "reserved"),
        ({"a": 5}, "type int"),
        ({"a": None}, "type NoneType"),
        ({"a": b"v"}, "type bytes"),
        ({"a": ["v"]}, "type list"),
        ({"a": "v\r\nb: c"}, "control character"),
        ({"a": "\x00"}, "control character"),
        ({"a": "\x1b[31m"}, "control character"),
        ({"a": "\x7f"}, "control character"),
        ({"a": "\ud800"}, "lone surrogate"),
        ({"ok": "v", "bad": "\udfff"}, "'bad'"),
        ([("a", "b")], "not list"),
        ("a=b", "not str"),
        (None, "not NoneType"),
    ],
    ids=range(27),
)
def test_other_headers_are_refused(bad: object, why: str) -> None:
    with pytest.raises(ValidationError, match=why) as caught:
        check_headers(bad)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


LIMITS = Limits(payload=10, headers=2, header_bytes=20, header_value=12)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"x" * 10, {}),
        (b"", {"a": "1", "b": "2"}),
        (b"", {"a": "x" * 12}),
        (b"", {"a": "é" * 6}),
        (b"", {"n" * 8: "x" * 12}),
    ],
    ids=range(6),
)
def test_what_is_within_the_limits_passes(body: bytes, headers: dict[str, str]) -> None:
    LIMITS.check(Message(id="m", body=body, headers=headers), "q")


@pytest.mark.parametrize(
    ("body", "headers", "why"),
    [
        (b"x" * 11, {}, "its payload has 11 bytes, 10 are allowed"),
        (b"", {"a": "1", "b": "2", "c": "3"}, "it has 3 headers, 2 are allowed"),
        (b"", {"a": "x" * 13}, "header 'a' has 13 bytes, 12 are allowed"),
        (b"", {"a": "é" * 7}, "header 'a' has 14 bytes"),
        (b"", {"n" * 9: "x" * 12}, "its headers have 21 bytes in all, 20 are allowed"),
    ],
    ids=["payload", "number", "value", "value in bytes", "all"],
)
def test_what_is_beyond_a_limit_is_refused_with_queue_id_and_both_numbers(
    body: bytes, headers: dict[str, str], why: str
) -> None:
    with pytest.raises(
        MessageTooLarge, match=f"message m1 for 'orders' was not sent: {why}"
    ) as caught:
        LIMITS.check(Message(id="m1", body=body, headers=headers), "orders")
    assert caught.value.id == "m1"


def test_the_default_limits() -> None:
    Limits().check(
        Message(id="m", body=bytes(1024 * 1024), headers={f"h{i}": "v" for i in range(64)}), "q"
    )
    with pytest.raises(MessageTooLarge, match="1,048,577 bytes, 1,048,576 are allowed"):
        Limits().check(Message(id="m", body=bytes(1024 * 1024 + 1)), "q")


def test_a_copy_shares_nothing_that_can_change() -> None:
    body, headers = bytearray(b"abc"), {"a": "1"}
    message = Message(id="m", body=body, headers=headers)  # type: ignore[arg-type]  # a careless caller
    copied = message.copy()
    body[0], headers["a"] = 0, "2"
    assert (copied.body, copied.headers) == (b"abc", {"a": "1"})
    assert type(copied.body) is bytes
    with pytest.raises(TypeError):
        copied.headers["a"] = "3"  # type: ignore[index]  # as above
    assert copied.copy() == copied


MOMENTS = st.floats(0, 1e11)
DEATHS = st.builds(
    Death,
    reason=st.sampled_from(Reason),
    queue=st.text(max_size=5),
    attempts=st.integers(0, 10**9 - 1),
    first_at=MOMENTS,
    last_at=MOMENTS,
    error_type=st.text(max_size=5),
    error=st.text(max_size=5),
    traceback=st.text(max_size=5),
)
MESSAGES = st.builds(
    Message,
    id=st.just("m"),
    body=st.binary(max_size=3),
    headers=st.just(MappingProxyType({"a": "b"})),
    priority=st.integers(0, 10),
    attempt=st.integers(1, 10**9 - 1),
    hop=st.integers(0, 10**9 - 1),
    published_at=st.none() | MOMENTS,
    expires_at=st.none() | MOMENTS,
    failed_at=st.none() | MOMENTS,
    redriven=st.integers(0, 10**9 - 1),
    death=st.none() | DEATHS,
)
OURS = ("attempt", "hop", "redriven", "published_at", "failed_at", "death")


@given(MESSAGES)
def test_cores_own_fields_survive_the_flat_form(message: Message) -> None:
    flat = pack(message)
    assert all(name.startswith("mq-") and isinstance(value, str) for name, value in flat.items())
    back = unpack(Message(id="m", body=b""), flat)
    assert [getattr(back, name) for name in OURS] == [getattr(message, name) for name in OURS]


def test_a_fresh_message_packs_small() -> None:
    assert pack(Message(id="m", body=b"", published_at=1.5)) == {
        "mq-attempt": "1",
        "mq-published_at": "1.5",
    }


@pytest.mark.parametrize(
    ("forged", "field", "default"),
    [
        ({"mq-attempt": "0"}, "attempt", 1),
        ({"mq-attempt": "-5"}, "attempt", 1),
        ({"mq-attempt": "1.5"}, "attempt", 1),
        ({"mq-attempt": "high"}, "attempt", 1),
        ({"mq-attempt": ""}, "attempt", 1),
        ({"mq-attempt": "٣"}, "attempt", 1),
        ({"mq-attempt": "²"}, "attempt", 1),
        ({"mq-attempt": "9" * 10}, "attempt", 1),
        ({"mq-attempt": "9" * 5000}, "attempt", 1),
        ({"mq-hop": "-1"}, "hop", 0),
        ({"mq-redriven": " 1"}, "redriven", 0),
        ({"mq-published_at": "nan"}, "published_at", None),
        ({"mq-published_at": "inf"}, "published_at", None),
        ({"mq-published_at": "-1"}, "published_at", None),
        ({"mq-published_at": "1e12"}, "published_at", None),
        ({"mq-published_at": "yesterday"}, "published_at", None),
        ({"mq-failed_at": "9" * 5000}, "failed_at", None),
        ({"mq-death-reason": "bored"}, "death", None),
        ({"mq-death-queue": "q"}, "death", None),
        ({"mq-body": "x", "mq-id": "y", "mq-priority": "9", "mq-expires_at": "1"}, "id", "m"),
    ],
    ids=range(20),
)
def test_a_forged_field_keeps_its_default(
    forged: dict[str, str], field: str, default: object
) -> None:
    plain = Message(id="m", body=b"b")
    assert getattr(unpack(plain, forged), field) == default
    assert unpack(plain, forged) == plain


@pytest.mark.parametrize(
    "attempts",
    ["", "-1", "x", "²", "9" * 5000],
    ids=["empty", "negative", "text", "square", "huge"],
)
def test_a_forged_death_record_is_read_as_far_as_it_makes_sense(attempts: str) -> None:
    forged = {
        "mq-death-reason": "timeout",
        "mq-death-attempts": attempts,
        "mq-death-first_at": "nan",
    }
    assert unpack(Message(id="m", body=b""), forged).death == Death(
        reason=Reason.TIMEOUT, queue="", attempts=1, first_at=0.0, last_at=0.0
    )


@given(
    st.dictionaries(
        st.sampled_from(
            sorted(
                f"mq-{name}" for name in (*OURS, "death-reason", "death-attempts", "death-first_at")
            )
        ),
        st.text(),
    )
)
def test_no_header_from_the_wire_breaks_unpacking(flat: dict[str, str]) -> None:
    message = unpack(Message(id="m", body=b""), flat)
    assert message.attempt >= 1
    assert message.hop >= 0
    assert message.published_at is None or 0 <= message.published_at < 1e12
