"""A parcel is the publish that it was made of, also as bytes; damage is one clear error."""

import json
import zlib
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqcore.errors import DecodeError
from mqcore.messages.message import Death, Message, Reason
from mqcore.publishing.parcel import (
    CONTENT_TYPE,
    LEAST_TTL,
    Parcel,
    enclose,
    pack_parcel,
    unpack_parcel,
)
from mqcore.rules.capabilities import Durability
from mqcore.rules.routing import Binding
from mqcore.spi import Outgoing, QueueSpec, Route

seconds = st.floats(min_value=0, max_value=1e9, allow_nan=False)
moments = st.floats(min_value=0, max_value=1e11, allow_nan=False)
counts = st.integers(min_value=0, max_value=10**6)
texts = st.text(max_size=40)
deaths = st.builds(
    Death,
    reason=st.sampled_from(Reason),
    queue=texts,
    attempts=counts,
    first_at=moments,
    last_at=moments,
    error_type=texts,
    error=texts,
    traceback=texts,
)
messages = st.builds(
    Message,
    id=texts,
    body=st.binary(max_size=200),
    content_type=st.none() | texts,
    encoding=st.none() | texts.filter(bool),
    headers=st.dictionaries(texts, texts, max_size=4).map(MappingProxyType),
    priority=st.integers(min_value=0, max_value=10),
    attempt=st.integers(min_value=1, max_value=10**6),
    hop=counts,
    lineage=st.just("") | st.from_regex(r"\A[0-9a-f]{8}\Z"),
    published_at=st.none() | moments,
    correlation_id=st.none() | texts,
    reply_to=st.none() | texts,
    failed_at=st.none() | moments,
    redriven=counts,
    takeovers=counts,
    death=st.none() | deaths,
)
specs = st.builds(
    QueueSpec,
    name=texts,
    role=st.sampled_from(["work", "dead_letter", "quarantine"]),
    ttl=st.none() | seconds,
    max_length=st.none() | counts,
    dead_letter=st.none() | texts,
    retention=st.none() | seconds,
    durability=st.none() | st.sampled_from(Durability),
)
bindings = st.builds(
    Binding,
    router=texts,
    kind=st.sampled_from(["direct", "topic", "fanout"]),
    queue=texts,
    pattern=st.text(max_size=30, alphabet=st.characters(codec="utf-8")),
    headers=st.just(()) | st.just((("a", "b"),)),
)
targets = texts | st.builds(Route, texts, texts)
parcels = st.builds(
    Parcel,
    st.builds(Outgoing, targets, messages, seconds, st.none() | seconds),
    moments,
    st.lists(specs, max_size=3).map(tuple),
    st.lists(bindings, max_size=2).map(tuple),
)


def parcel(to: str | Route = "orders", delay: float = 0.0, ttl: float | None = None) -> Parcel:
    return Parcel(Outgoing(to, Message(id="a", body=b"{}"), delay, ttl), at=1000.0)


@given(parcels)
def test_what_is_packed_comes_back(parcel: Parcel) -> None:
    assert unpack_parcel(pack_parcel(parcel)) == parcel


def test_headers_that_come_back_are_read_only() -> None:
    headers = {"tenant": "a"}
    message = Message(id="a", body=b"", headers=headers)
    back = unpack_parcel(pack_parcel(Parcel(Outgoing("orders", message), 1.0)))
    assert back.out.message.headers == headers
    assert isinstance(back.out.message.headers, MappingProxyType)


def test_the_seconds_that_are_left_are_published() -> None:
    waiting = unpack_parcel(pack_parcel(parcel(delay=60.0, ttl=300.0)))
    out = waiting.outgoing(1045.0)
    assert (out.delay, out.ttl) == (15.0, 255.0)


def test_what_expired_while_it_waited_has_a_last_moment() -> None:
    out = parcel(delay=60.0, ttl=300.0).outgoing(5000.0)
    assert (out.delay, out.ttl) == (0.0, LEAST_TTL)


def test_a_clock_that_was_set_back_lengthens_nothing() -> None:
    out = parcel(delay=60.0, ttl=300.0).outgoing(0.0)
    assert (out.delay, out.ttl) == (60.0, 300.0)


def test_what_never_expires_and_has_no_delay_stays_so() -> None:
    out = parcel().outgoing(5000.0)
    assert (out.delay, out.ttl) == (0.0, None)


@given(parcels, st.data())
def test_every_damage_is_one_clear_error(parcel: Parcel, data: st.DataObject) -> None:
    whole = pack_parcel(parcel)
    place = data.draw(st.integers(min_value=0, max_value=len(whole) - 1))
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(min_value=1, max_value=255))
    with pytest.raises(DecodeError, match=r"parcel"):
        unpack_parcel(bytes(damaged))


@given(parcels, st.data())
def test_a_part_of_a_parcel_is_one_clear_error(parcel: Parcel, data: st.DataObject) -> None:
    whole = pack_parcel(parcel)
    with pytest.raises(DecodeError, match=r"parcel"):
        unpack_parcel(whole[: data.draw(st.integers(min_value=0, max_value=len(whole) - 1))])


@given(st.binary(max_size=300))
def test_other_bytes_are_one_clear_error(data: bytes) -> None:
    with pytest.raises(DecodeError, match="are not a parcel of mqcore"):
        unpack_parcel(data)


def forged(fields: object) -> bytes:
    content = json.dumps(fields).encode() + b"\n"
    return b"mqcore-parcel/1 %08x\n%s" % (zlib.crc32(content), content)


GOOD = {"id": "a", "priority": 5, "at": 1.0, "queue": "orders", "record": {}}


@pytest.mark.parametrize(
    "fields",
    [
        [],
        None,
        {},
        {**GOOD, "id": 5},
        {**GOOD, "queue": None},
        {**GOOD, "at": "now"},
        {**GOOD, "at": True},
        {**GOOD, "ttl": float("nan")},
        {**GOOD, "delay": float("inf")},
        {**GOOD, "priority": None},
        {**GOOD, "headers": {"a": 1}},
        {**GOOD, "headers": []},
        {**GOOD, "record": "text"},
        {**GOOD, "router": "events"},
        {**GOOD, "queues": [{"nome": "x"}]},
        {**GOOD, "queues": 7},
        {**GOOD, "queues": [{"name": "x", "durability": "stone"}]},
        {**GOOD, "bindings": [{"router": "a", "kind": "odd", "queue": "b", "headers": []}]},
    ],
    ids=repr,
)
def test_a_parcel_with_other_fields_is_one_clear_error(fields: object) -> None:
    with pytest.raises(DecodeError, match="the parcel is malformed"):
        unpack_parcel(forged(fields))


def test_json_that_is_nested_too_deeply_is_one_clear_error() -> None:
    content = b"[" * 100_000 + b"\n"
    with pytest.raises(DecodeError, match="the parcel is malformed"):
        unpack_parcel(b"mqcore-parcel/1 %08x\n%s" % (zlib.crc32(content), content))


def test_a_parcel_of_a_newer_mqcore_names_its_version() -> None:
    newer = pack_parcel(parcel()).replace(b"parcel/1", b"parcel/2", 1)
    with pytest.raises(DecodeError, match="format version 2, and this mqcore reads version 1"):
        unpack_parcel(newer)


def test_the_enclosing_message_has_the_priority_and_names_the_one_inside() -> None:
    message = Message(id="mine", body=b"{}", priority=8)
    out = enclose(Parcel(Outgoing("orders", message), 1000.0), "mq.spool")
    assert out.to == "mq.spool"
    assert (out.message.priority, out.message.correlation_id) == (8, "mine")
    assert (out.message.content_type, out.message.published_at) == (CONTENT_TYPE, 1000.0)
    assert unpack_parcel(out.message.body).out.message == message


def test_one_id_has_a_parcel_for_each_target_and_copy() -> None:
    message = Message(id="mine", body=b"{}")
    outs = [
        Outgoing("orders", message),
        Outgoing("audit", message),
        Outgoing(Route("orders", ""), message),
        Outgoing(Route("orders", "a"), message),
        Outgoing("orders", message.moved("jobs")),
    ]
    names = [enclose(Parcel(out, 1.0), "mq.spool").message.id for out in outs]
    again = [enclose(Parcel(out, 2.0), "mq.spool").message.id for out in outs]
    assert len(set(names)) == len(outs)
    assert names == again
