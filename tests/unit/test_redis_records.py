"""A message as bytes in Redis: whatever goes in comes out, and no name is another's."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqcore.messages.message import Death, Message, Reason
from mqcore.spi import Outgoing
from mqcore_redis.records import decode, encode, name_of, read, store_options

IDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
LINEAGES = st.sampled_from(["", "0badcafe", "deadbeef"])
MESSAGES = st.builds(
    Message,
    id=IDS,
    body=st.binary(max_size=60)
    | st.sampled_from([b"", b"\n", b'!{"queue":1}\n{}\n', b"\x00\xff\n\n"]),
    content_type=st.none() | TEXTS,
    headers=st.dictionaries(st.text("abc.-_", min_size=1, max_size=5), TEXTS, max_size=3),
    priority=st.integers(0, 10),
    attempt=st.integers(1, 9),
    hop=st.integers(0, 9),
    lineage=LINEAGES,
    published_at=st.none() | st.floats(0, 2e9),
    correlation_id=st.none() | TEXTS,
    reply_to=st.none() | TEXTS,
    failed_at=st.none() | st.floats(0, 2e9),
    redriven=st.integers(0, 3),
    death=st.none()
    | st.builds(
        Death,
        reason=st.sampled_from(Reason),
        queue=TEXTS,
        attempts=st.integers(0, 9),
        first_at=st.floats(0, 2e9),
        last_at=st.floats(0, 2e9),
        error=TEXTS,
    ),
)


@given(MESSAGES)
def test_what_goes_in_comes_out(message: Message) -> None:
    assert decode(encode(message), b"") == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda it: st.lists(it) | st.dictionaries(TEXTS, it),
)
FIELDS = [
    *(
        "id",
        "content_type",
        "correlation_id",
        "reply_to",
        "priority",
        "headers",
        "mq-attempt",
        "mq-hop",
        "mq-lineage",
    ),
    *(
        "mq-published_at",
        "mq-death-reason",
        "mq-death-queue",
        "mq-death-error",
        "mq-death-attempts",
        "mq-death-last_at",
    ),
]


@given(
    st.dictionaries(
        st.sampled_from(FIELDS), JSON | st.sampled_from(["a", "1", "rejected", {"h": 1}])
    )
)
def test_a_record_of_any_json_is_a_message_of_the_right_types(fields: dict[str, object]) -> None:
    """A plain client may push anything: the problem is named, and nothing raises later."""
    message, unreadable = read(json.dumps(fields).encode() + b"\nbody", b"")
    assert unreadable or message.body == b"body"
    assert decode(encode(message), b"") == message


def test_a_record_nested_without_end_is_unreadable() -> None:
    message, unreadable = read(
        b'{"id": "a", "headers": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", b""
    )
    assert unreadable.startswith("the record in Redis is malformed")
    assert message.body.startswith(b'{"id"')


@given(st.integers(0, 2**52))
def test_an_expiry_is_the_servers_and_comes_back_exactly(moment: int) -> None:
    message = decode(encode(Message(id="a", body=b"")), str(moment).encode())
    _, _, _, expires, _, _ = store_options(Outgoing("q", message)).split(",")
    assert int(expires) == moment


def test_a_record_is_a_line_of_json_and_the_body() -> None:
    record = encode(Message(id="a", body=b"\x00body\n", headers={"h": "Grüße"}))
    line, _, body = record.partition(b"\n")
    assert body == b"\x00body\n"
    assert json.loads(line) == {"id": "a", "headers": {"h": "Grüße"}, "mq-attempt": "1"}


def test_headers_cannot_be_changed_by_who_receives_them() -> None:
    assert (
        type(decode(encode(Message(id="a", body=b"", headers={"h": "v"})), b"").headers)
        is MappingProxyType
    )


def test_a_bare_line_is_a_first_attempt_with_defaults() -> None:
    assert decode(b'{"id":"x"}\npayload', b"") == Message(id="x", body=b"payload")


def test_the_servers_note_makes_a_dead_letter() -> None:
    old = Message(id="a", body=b"\x00b", headers={"h": "v"}, priority=3, attempt=2, failed_at=5.0)
    note = b'!{"queue":"orders","at":"1700000000250000"}\n'
    letter = decode(note + encode(old), b"")
    assert letter.death == Death(
        reason=Reason.OVERFLOW, queue="orders", attempts=1, first_at=5.0, last_at=1_700_000_000.25
    )
    assert (letter.id, letter.body, dict(letter.headers), letter.priority) == (
        "a",
        b"\x00b",
        {"h": "v"},
        3,
    )
    assert (letter.attempt, letter.hop, letter.failed_at, letter.expires_at) == (1, 1, None, None)
    assert letter.lineage == old.moved("orders").lineage


def test_a_dead_letter_that_overflows_once_more_has_a_note_of_each_time() -> None:
    """Where the dead-letter queue of one queue is itself bounded."""
    notes = b'!{"queue":"parked","at":"9000000"}\n!{"queue":"orders","at":"8000000"}\n'
    letter = decode(notes + encode(Message(id="a", body=b"!b")), b"")
    assert (letter.id, letter.body, letter.hop) == ("a", b"!b", 2)
    assert letter.death is not None
    assert (letter.death.queue, letter.death.last_at) == ("parked", 9.0)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"words",
        b"[1]\nx",
        b"{}\nx",
        b"\xff\n",
        b"!x\n{}\n",
        b'!{}\n{"id":"a"}\n',
        b'"id"\n',
        pytest.param(b'!{"queue":"q","at":"' + 400 * b"9" + b'"}\n{"id":"a"}\n', id="too late"),
    ],
)
def test_a_spoiled_record_is_a_message_that_nobody_can_read(record: bytes) -> None:
    message = decode(record, b"")
    assert message.body == record
    assert message.id.startswith("unreadable-")


@given(MESSAGES, MESSAGES)
def test_no_name_is_anothers(one: Message, other: Message) -> None:
    assert (name_of(one) == name_of(other)) == (one.copy_name == other.copy_name)


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (Outgoing("q", Message(id="a", body=b"")), "5,,,,,"),
        (Outgoing("q", Message(id="a", body=b"", priority=10, hop=1), 0.4), "10,400000,,,1,"),
        (Outgoing("q", Message(id="a", body=b"", priority=99), ttl=1.5), "10,,1500000,,,"),
        (
            Outgoing("q", Message(id="a", body=b"", priority=-1, expires_at=3.0), ttl=2),
            "0,,2000000,,,",
        ),
        (Outgoing("q", Message(id="a", body=b"", expires_at=3.000001)), "5,,,3000001,,"),
    ],
    ids=range(5),
)
def test_how_a_copy_is_wanted(out: Outgoing, text: str) -> None:
    assert store_options(out) == text
    assert store_options(out, 7) == f"{text}7"
