"""Content header frames: whatever a broker forwards is read, and nothing raises."""

from __future__ import annotations

import asyncio
import struct
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pika import BasicProperties, ConnectionParameters, frame, spec
from pika.exceptions import AMQPError, InvalidFrameError

from mqcore.spi import STORED, ErrorKind, Failed
from mqcore_rabbitmq.confirms import ConfirmChannel, PlannedMessage
from mqcore_rabbitmq.frames import ContentReader, Field, Properties, content_frames, read_frame
from mqcore_rabbitmq.link import Channel, _Connection, _Services
from mqcore_rabbitmq.message_format import (
    fit,
    inherit,
    level_of,
    message_of,
    properties,
    released,
    released_as,
)

TYPES = "tbBsUuIilLfdDTSxAFV"
SHORT = (
    "content_type",
    "correlation_id",
    "reply_to",
    "message_id",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
)


def long_string(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def short_string(content: bytes) -> bytes:
    return bytes((len(content),)) + content


def entry(name: bytes, kind: str, value: bytes) -> bytes:
    return short_string(name) + kind.encode() + value


def of(table: bytes) -> Properties:
    """Read properties that consist of one table of headers."""
    return Properties.read(struct.pack(">H", BasicProperties.FLAG_HEADERS) + long_string(table))


def whole(found: Properties) -> bytes:
    return b"".join(found.encode())


def use(found: Properties) -> None:
    """Do everything with the properties that a Move and a release do."""
    level_of(found)
    released_as(found)
    message = message_of(found, b"", 5.0, 100.0)
    successor = properties(message.moved("q"), message.expires_at)
    inherit(successor, found, "guest")
    for copy in (successor, released(found, None, 1, level_of(found))):
        fit(copy, 131_052)
        written = whole(copy)
        assert len(written) <= 131_052
        assert message_of(Properties.read(written), b"", None, 100.0).headers == message.headers


SHORT_BYTES = st.binary(max_size=60) | st.sampled_from(
    [b"", b"\xff\xfe", "Grüße".encode(), b"x-death", b"CC", b"mq-hop"]
)
VALUES = st.one_of(
    *(
        st.binary(min_size=size, max_size=size).map(lambda raw, kind=kind: kind.encode() + raw)  # type: ignore[misc]  # a default
        for kind, size in zip(
            "tbBsUuIilLfdDTV", (1, 1, 1, 2, 2, 2, 4, 4, 8, 8, 4, 8, 5, 8, 0), strict=True
        )
    ),
    st.tuples(st.sampled_from("SxAF"), st.binary(max_size=40)).map(
        lambda it: it[0].encode() + long_string(it[1])
    ),
    st.binary(min_size=1, max_size=12),
)
TABLES = st.lists(st.tuples(SHORT_BYTES, VALUES), max_size=6).map(
    lambda entries: b"".join(short_string(name) + value for name, value in entries)
)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff\xff" * 3)
def test_any_bytes_are_read_as_properties(encoded: bytes) -> None:
    found = Properties.read(encoded)
    if not found.unreadable:
        use(found)
    message_of(found, b"", None, 0.0)


@given(TABLES)
@example(entry(b"h", "t", b"\x00") + entry(b"h", "T", b"\xff" * 8))
@example(entry(b"h", "T", b"\xff" * 8) + entry(b"h", "S", b"\x00\x00\x00\x01v"))
@example(entry(b"h", "S", b"\x00\x00\x00\x01v") + entry(b"h", "V", b""))
@example(entry(b"h", "S", b"\x00\x00\x00\x01v") + entry(b"h", "S", b"\x00\x00\x00\x01\xff"))
def test_any_table_is_read(table: bytes) -> None:
    use(of(table))


@given(st.integers(0, 2**16 - 1).map(lambda flags: flags & ~1), st.data())
def test_any_properties_come_back_as_they_were(flags: int, draw: st.DataObject) -> None:
    """What is read is written again byte for byte, whether it is UTF-8 or not."""
    flags &= sum(getattr(BasicProperties, f"FLAG_{name.upper()}") for name in SHORT)
    present = [name for name in SHORT if flags & getattr(BasicProperties, f"FLAG_{name.upper()}")]
    pieces = [struct.pack(">H", flags), *(short_string(draw.draw(SHORT_BYTES)) for _ in present)]
    found = Properties.read(b"".join(pieces))
    assert whole(found) == b"".join(pieces)
    use(found)


@given(st.binary(max_size=64))
def test_any_frame_of_a_message_is_read_whole_or_not_yet(encoded: bytes) -> None:
    payload = struct.pack(">HHQ", 60, 0, 5) + encoded
    sent = struct.pack(">BHL", 2, 7, len(payload)) + payload + b"\xce"
    length, found = read_frame(sent + b"more")
    assert (length, found.channel_number, found.body_size) == (len(sent), 7, 5)
    for cut in range(len(sent)):
        assert read_frame(sent[:cut]) == (0, None)


@given(
    st.builds(
        BasicProperties,
        content_type=st.none() | st.text(max_size=20),
        headers=st.none()
        | st.dictionaries(
            st.text(max_size=10),
            st.text(max_size=20)
            | st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.binary(max_size=9)
            | st.integers(0, 253_402_300_799).map(
                lambda seconds: datetime.fromtimestamp(seconds, UTC)
            ),
            max_size=5,
        ),
        priority=st.none() | st.integers(0, 255),
        message_id=st.none() | st.text(max_size=20),
        timestamp=st.none() | st.integers(0, 2**64 - 1),
        app_id=st.none() | st.text(max_size=20),
    )
)
def test_what_pika_can_read_is_read_as_pika_reads_it(sent: BasicProperties) -> None:
    marshaled = frame.Header(3, 9, sent).marshal()
    length, theirs = frame.decode_frame(marshaled)
    ours_length, ours = read_frame(marshaled)
    assert ours_length == length
    for name in (
        "content_type",
        "headers",
        "priority",
        "message_id",
        "timestamp",
        "app_id",
        "correlation_id",
    ):
        assert getattr(ours.properties, name) == getattr(theirs.properties, name)
    assert ours.properties.unreadable == ""


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("T", struct.pack(">Q", 1_764_460_800_000)),  # milliseconds where AMQP has seconds
        ("T", b"\xff" * 8),
        ("d", struct.pack(">d", float("inf"))),
        ("f", struct.pack(">f", float("nan"))),
        ("D", b"\xff\x7f\xff\xff\xff"),
        ("A", long_string(b"\x00" * 10)),
        ("F", long_string(b"\xff\xff\xff")),
    ],
)
def test_a_header_that_pika_cannot_read_disturbs_no_other(kind: str, raw: bytes) -> None:
    table = (
        entry(b"before", "S", long_string(b"1"))
        + entry(b"bad", kind, raw)
        + entry(b"after", "S", long_string(b"2"))
    )
    found = of(table)
    assert found.unreadable == ""
    assert found.headers is not None
    assert (found.headers["before"], found.headers["after"]) == ("1", "2")
    assert found.others == {b"bad": Field(kind.encode() + raw)}


def test_tables_nested_without_end_are_skipped() -> None:
    """Erlang reads them, and so the broker forwards them; a decoder that calls itself does not."""
    nested = b""
    for _ in range(15_000):
        nested = b"A" + long_string(nested)
    with pytest.raises((AMQPError, RecursionError)):
        BasicProperties().decode(
            struct.pack(">H", BasicProperties.FLAG_HEADERS)
            + long_string(short_string(b"deep") + nested)
        )
    found = of(short_string(b"deep") + nested + entry(b"h", "S", long_string(b"v")))
    assert (found.unreadable, found.headers) == ("", {"h": "v"})


def test_numbers_keep_their_value() -> None:
    """pika makes integers of floats."""
    table = entry(b"d", "d", struct.pack(">d", 1.5)) + entry(b"D", "D", b"\x02\x00\x00\x00\x7b")
    assert of(table).headers == {"d": 1.5, "D": Decimal("1.23")}
    assert dict(message_of(of(table), b"", None, 0.0).headers) == {"d": "1.5", "D": "1.23"}


@pytest.mark.parametrize(
    "name", ["content_type", "content_encoding", "correlation_id", "reply_to", "message_id"]
)
def test_a_property_that_is_not_utf8_is_named(name: str) -> None:
    found = Properties.read(
        struct.pack(">H", getattr(BasicProperties, f"FLAG_{name.upper()}")) + short_string(b"a\xff")
    )
    assert found.unreadable == f"the AMQP property {name} is not UTF-8"
    message = message_of(found, b"", None, 0.0)
    assert all(
        isinstance(value, (str, type(None)))
        for value in (message.id, message.content_type, message.reply_to)
    )


@pytest.mark.parametrize(
    "table", [b"\x05ab", b"\x01aS\x00\x00\x00\x09x", b"\x01aZ", b"\x01a", b"\x01aT\x00"]
)
def test_a_table_that_ends_too_soon_is_named(table: bytes) -> None:
    assert of(table).unreadable.startswith("the AMQP properties are malformed: ")


class Received:
    """A connection that has one channel of ours, and what it reads there."""

    def __init__(self) -> None:
        self.read: list[object] = []
        content = ContentReader()
        content.consumers[b"ours"] = lambda method, found, body: self.read.append(
            ("message", method.delivery_tag, method.redelivered, found.message_id, body)
        )
        content.on_return = lambda method, found, body: self.read.append(
            ("returned", method.routing_key, found.message_id, body)
        )
        content.on_confirm = lambda *confirm: self.read.append(("confirmed", *confirm))
        services = _Services(asyncio.get_running_loop())
        self.connection = _Connection(
            ConnectionParameters(), custom_ioloop=services, internal_connection_workflow=False
        )
        self.connection.channels[7] = SimpleNamespace(content=content, answer=self.answered)  # type: ignore[assignment]  # what it needs of a channel

    def answered(self, method: Any) -> bool:
        self.read.append(("answer", method.NAME))
        return True

    def feed(self, data: bytes, cuts: list[int]) -> None:
        """Give the connection these bytes in pieces that end at these places."""
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if start < end:
                self.connection._on_data_available(data[start:end])


def method_frame(method: Any) -> bytes:
    marshaled: bytes = frame.Method(7, method).marshal()
    return marshaled


def content(name: str, body: bytes, size: int) -> bytes:
    return b"".join(content_frames(7, Properties(message_id=name), body, size))


NAMES = st.text("abcdefgh", min_size=1, max_size=5)
NUMBERS = st.integers(1, 2**63)
SENT = st.one_of(
    st.tuples(NUMBERS, st.booleans(), NAMES, st.binary(max_size=30), st.integers(1, 9)).map(
        lambda it: (
            method_frame(spec.Basic.Deliver("ours", it[0], it[1], "", "q")) + content(*it[2:]),
            ("message", *it[:4]),
        )
    ),
    st.tuples(NAMES, st.binary(max_size=30), st.integers(1, 9)).map(
        lambda it: (
            method_frame(spec.Basic.Return(312, "NO_ROUTE", "", "nowhere")) + content(*it),
            ("returned", "nowhere", *it[:2]),
        )
    ),
    st.tuples(NUMBERS, st.booleans()).map(
        lambda it: (method_frame(spec.Basic.Ack(*it)), ("confirmed", *it, True))
    ),
    st.tuples(NUMBERS, st.booleans()).map(
        lambda it: (method_frame(spec.Basic.Nack(*it)), ("confirmed", *it, False))
    ),
    st.just((method_frame(spec.Queue.DeclareOk("q", 1, 2)), ("answer", "Queue.DeclareOk"))),
    st.just(
        (
            method_frame(spec.Basic.Deliver("ended", 5, exchange="", routing_key="q"))
            + content("x", b"y", 9),
            None,
        )
    ),
)


@given(st.lists(SENT, max_size=6), st.data())
def test_what_a_channel_gets_is_read_in_order_however_it_is_cut(
    sent: list[tuple[bytes, object]], draw: st.DataObject
) -> None:
    """A message for a consumer that has ended is read over."""
    data = b"".join(frames for frames, _ in sent)
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=8).map(sorted))

    async def read() -> list[object]:
        received = Received()
        received.feed(data, cuts)
        return received.read

    assert asyncio.run(read()) == [expected for _, expected in sent if expected is not None]


@pytest.mark.parametrize(
    "cut", [b"", b"\x80", b"\x20\x00", b"\x20\x00\x00\x00\x00", b"\x80\x00\x05ab", b"\x00\x01"]
)
def test_properties_that_end_too_soon_are_named(cut: bytes) -> None:
    assert Properties.read(cut).unreadable.startswith("the AMQP properties are malformed: ")


class Broker:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.got = b""

    def write(self, data: bytes) -> None:
        self.got += data


async def test_a_body_that_is_not_bytes_takes_no_number_and_no_frame_of_others() -> None:
    """A codec of a plugin may return text. Later messages keep their own confirms."""
    broker, connection = Broker(), Received().connection
    connection._transport, connection._body_max_length = broker, 9  # type: ignore[assignment,attr-defined]  # as after the handshake
    raw = SimpleNamespace(
        connection=connection,
        channel_number=7,
        is_closed=False,
        is_closing=False,
        add_on_close_callback=lambda _: None,
        _send_method=lambda method: connection._adapter_emit_data(method_frame(method)),
    )
    confirms = ConfirmChannel(Channel(raw))

    def planned(name: str, body: Any) -> PlannedMessage:
        return PlannedMessage("", "q", Properties(message_id=name), body, "q")

    bad = asyncio.ensure_future(confirms.publish([planned("bad", "text")], 5.0))
    good = asyncio.ensure_future(confirms.publish([planned("good", b"body")], 5.0))
    await asyncio.sleep(0)
    connection._on_data_available(method_frame(spec.Basic.Ack(1)))
    [refused] = await bad
    assert isinstance(refused, Failed)
    assert refused.kind is ErrorKind.PERMANENT
    assert await good == [STORED]
    assert broker.got.startswith(method_frame(spec.Confirm.Select()))
    assert broker.got.endswith(content("good", b"body", 9))


MESSAGE = method_frame(spec.Basic.Deliver("ours", 1, exchange="", routing_key="q"))


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (spec.FRAME_HEARTBEAT, b""),  # on a channel: not allowed
        (spec.FRAME_BODY, b"more"),
        (4, b""),
    ],
)
async def test_a_frame_that_no_message_has_ends_the_connection_and_delivers_nothing_twice(
    kind: int, payload: bytes
) -> None:
    received = Received()
    stray = struct.pack(">BHL", kind, 7, len(payload)) + payload + b"\xce"
    with pytest.raises(InvalidFrameError):
        received.feed(MESSAGE + content("a", b"b", 9) + stray, [])
    assert len(received.read) == 1


async def test_an_empty_body_frame_delivers_nothing_twice() -> None:
    received = Received()
    received.feed(MESSAGE + content("a", b"b", 9) + b"\x03\x00\x07\x00\x00\x00\x00\xce", [])
    assert len(received.read) == 1


@pytest.mark.parametrize(("kind", "payload"), [(spec.FRAME_BODY, b"too long"), (4, b"two")])
async def test_a_body_that_is_not_as_announced_ends_the_connection(
    kind: int, payload: bytes
) -> None:
    received = Received()
    head = content("a", b"one" + b"two", 3)[: -2 * 11]
    stray = struct.pack(">BHL", kind, 7, len(payload)) + payload + b"\xce"
    with pytest.raises(InvalidFrameError):
        received.feed(MESSAGE + head + stray, [])
    assert received.read == []
