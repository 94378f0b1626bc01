"""The frames of messages, written and read so that no message can break the connection.

    bytes from the broker ─► ContentReader ─► Properties ─► message_format ─► Message
                                                 │
                                                 └─ `unreadable`: the reason, for the dead letter

pika decodes properties inside the connection, and an error there closes it. The broker then
delivers the same message again. RabbitMQ forwards much that pika cannot decode: a timestamp after
the year 9999, an infinite float, tables nested ten thousand levels deep. So this module decodes the
properties of messages. A header without a value in Python is not in `headers`. `others` has the
bytes of all headers that are not text, and a copy of the message keeps them unchanged.
"""

import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pika import BasicProperties, data, frame, spec
from pika.exceptions import InvalidFrameError, ShortStringTooLong

__all__ = ["ContentReader", "Field", "Properties", "content_frames", "frame_at", "read_frame"]

_FRAME = struct.Struct(">BHL")
_CONTENT = struct.Struct(">HHQ")
_LENGTH = struct.Struct(">I")
_TIMESTAMP = struct.Struct(">Q")
_FLAGS = struct.Struct(">H")
_END = bytes((spec.FRAME_END,))
_HEAD = struct.Struct(">BHLHHQ")
"""A content header frame up to its properties."""
_NUMBER = struct.Struct(">QB")
"""The number of a delivery or confirm, and a flag."""
_DELIVER, _RETURN, _ACK, _NACK = (
    method.INDEX
    for method in (spec.Basic.Deliver, spec.Basic.Return, spec.Basic.Ack, spec.Basic.Nack)
)
_CONFIRMS = {_ACK, _NACK}
_LONGEST_SHORT = 255
_TEXT = ord("S")

_SHORT, _TABLE, _OCTET, _TIME = "short string", "table", "octet", "timestamp"
_PROPERTIES: tuple[tuple[str, int, str], ...] = (
    ("content_type", BasicProperties.FLAG_CONTENT_TYPE, _SHORT),
    ("content_encoding", BasicProperties.FLAG_CONTENT_ENCODING, _SHORT),
    ("headers", BasicProperties.FLAG_HEADERS, _TABLE),
    ("delivery_mode", BasicProperties.FLAG_DELIVERY_MODE, _OCTET),
    ("priority", BasicProperties.FLAG_PRIORITY, _OCTET),
    ("correlation_id", BasicProperties.FLAG_CORRELATION_ID, _SHORT),
    ("reply_to", BasicProperties.FLAG_REPLY_TO, _SHORT),
    ("expiration", BasicProperties.FLAG_EXPIRATION, _SHORT),
    ("message_id", BasicProperties.FLAG_MESSAGE_ID, _SHORT),
    ("timestamp", BasicProperties.FLAG_TIMESTAMP, _TIME),
    ("type", BasicProperties.FLAG_TYPE, _SHORT),
    ("user_id", BasicProperties.FLAG_USER_ID, _SHORT),
    ("app_id", BasicProperties.FLAG_APP_ID, _SHORT),
    ("cluster_id", BasicProperties.FLAG_CLUSTER_ID, _SHORT),
)
"""All basic properties, in the order of a frame."""

_REQUIRED_UTF8 = {"content_type", "content_encoding", "correlation_id", "reply_to", "message_id"}
"""The short strings without which a message cannot be handled correctly."""


class Field(bytes):
    """The value of a header as in a frame: the octet of its type, then its bytes."""

    __slots__ = ()


class Properties(BasicProperties):
    """The basic properties of one message. A short string that is not UTF-8 is `bytes`.

    `headers` has the values that Python can represent. `others` has every header that is not text,
    by its name in bytes. `unreadable` says what cannot be decoded, and is empty if all can.
    """

    unreadable = ""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)  # the others are None: pika sets all fourteen
        self.others: dict[bytes, Field] = {}

    @classmethod
    def read(cls, encoded: bytes) -> "Properties":
        """Return the properties in the payload of a content header frame. Never raises."""
        properties = cls()
        try:
            properties._read(encoded)
        except (IndexError, ValueError, struct.error) as error:
            properties.unreadable = f"the AMQP properties are malformed: {error}"

        return properties

    def _read(self, encoded: bytes) -> None:
        flags, at = _read_flags(encoded)
        found = self.__dict__

        for name, flag, kind in _PROPERTIES:
            if not flags & flag:
                continue

            if kind is _SHORT:
                raw, at = _short_string(encoded, at)
                try:
                    found[name] = raw.decode()
                except UnicodeDecodeError:
                    found[name] = raw
                    if name in _REQUIRED_UTF8:
                        self.unreadable = f"the AMQP property {name} is not UTF-8"
            elif kind is _TABLE:
                table, at = _long_string(encoded, at)
                self._read_table(table)
            elif kind is _OCTET:
                found[name] = encoded[at]
                at += 1
            else:
                (found[name],) = _TIMESTAMP.unpack_from(encoded, at)
                at += 8

    def _read_table(self, table: bytes) -> None:
        headers: dict[str, Any] = {}
        self.headers = headers
        at, end = 0, len(table)

        while at < end:
            raw_name, start = _short_string(table, at)
            at = _end_of_value(table, start)

            try:
                name = raw_name.decode()
                if table[start] == _TEXT:
                    headers[name] = table[start + 5 : at].decode()
                    self.others.pop(raw_name, None)  # of two headers with one name the last counts
                    continue
                headers.pop(name, None)
            except UnicodeDecodeError:
                pass

            field = Field(table[start:at])
            self.others[raw_name] = field
            # Python cannot represent each time or number, and a name may not be UTF-8.
            with suppress(ValueError, OverflowError, OSError, ArithmeticError):
                if (value := _value(field)) is not None:
                    headers[raw_name.decode()] = value

    def encode(self) -> list[bytes]:
        """Return the payload of a content header frame, in pieces."""
        flags, pieces = 0, [b""]

        for name, flag, kind in _PROPERTIES:
            value = self.__dict__.get(name)
            if value is None:
                continue

            flags |= flag
            if kind is _SHORT:
                pieces.append(_short(value))
            elif kind is _TABLE:
                _write_table(pieces, value)
            elif kind is _OCTET:
                pieces.append(bytes((value,)))
            else:
                pieces.append(_TIMESTAMP.pack(value))

        pieces[0] = _FLAGS.pack(flags)
        return pieces


for _name, *_ in _PROPERTIES:
    setattr(Properties, _name, None)


class ContentReader:
    """Reads the messages and confirms of one channel."""

    def __init__(self) -> None:
        self.consumers: dict[bytes, Callable[[Any, Properties, bytes], None]] = {}
        """What takes the messages for a consumer, by its tag."""
        self.on_return: Callable[[Any, Properties, bytes], None] | None = None
        self.on_confirm: Callable[[int, bool, bool], None] | None = None
        self._method: Any = None
        self._consumer: bytes | None = None
        """The tag of the consumer of the message that is read; None: the message comes back."""
        self._properties = Properties()
        self._missing = 0
        self._chunks: list[bytes] = []

    def read(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        """Read a frame with this payload; False if it is another method, for pika."""
        if kind == spec.FRAME_METHOD:
            return self._read_method(buffer, start, end)

        if kind == spec.FRAME_HEADER:
            _, _, self._missing = _CONTENT.unpack_from(buffer, start)
            self._properties = Properties.read(buffer[start + _CONTENT.size : end])
            self._chunks = []
        else:
            if kind != spec.FRAME_BODY or end - start > self._missing:
                raise InvalidFrameError(f"a frame of type {kind} that no message has")
            if start == end:  # it may follow a message that is complete
                return True
            self._missing -= end - start
            self._chunks.append(buffer[start:end])
        if not self._missing:
            tag = self._consumer
            take = self.on_return if tag is None else self.consumers.get(tag)
            if take is not None:
                take(self._method, self._properties, b"".join(self._chunks))
        return True

    def _read_method(self, buffer: bytes, start: int, end: int) -> bool:
        (method,) = _LENGTH.unpack_from(buffer, start)
        start += _LENGTH.size

        if method == _DELIVER:
            middle = start + 1 + buffer[start]
            number, is_redelivered = _NUMBER.unpack_from(buffer, middle)
            self._method = spec.Basic.Deliver(None, number, bool(is_redelivered & 1))
            self._consumer = buffer[start + 1 : middle]
        elif method == _RETURN:
            self._method = spec.Basic.Return().decode(buffer[start:end])
            self._consumer = None
        elif method in _CONFIRMS and self.on_confirm is not None:
            number, is_multiple = _NUMBER.unpack_from(buffer, start)
            self.on_confirm(number, bool(is_multiple & 1), method == _ACK)
        else:
            return False
        return True


def frame_at(buffer: bytes, at: int) -> tuple[int, int, int, int] | None:
    """Return type, channel, and start and end of the payload of the frame at this place.

    None if it is incomplete. Raises `InvalidFrameError` if it does not end as a frame does.
    """
    if len(buffer) - at < _FRAME.size:
        return None

    kind, channel, size = _FRAME.unpack_from(buffer, at)
    start = at + _FRAME.size
    end: int = start + size
    if end >= len(buffer):
        return None
    if buffer[end] != spec.FRAME_END:
        raise InvalidFrameError("a frame of RabbitMQ has no end")
    return kind, channel, start, end


def read_frame(buffer: bytes, at: int = 0) -> tuple[int, Any]:
    """Return the length of the frame at this place and the frame; 0 and None if it is incomplete.

    It replaces pika's `decode_frame`, which raises for some properties of messages.
    """
    if (span := frame_at(buffer, at)) is None:
        return 0, None

    kind, channel, start, end = span
    if kind == spec.FRAME_HEADER:
        class_id, _, length = _CONTENT.unpack_from(buffer, start)
        if class_id == BasicProperties.INDEX:
            properties = Properties.read(buffer[start + _CONTENT.size : end])
            return end + 1 - at, frame.Header(channel, length, properties)

    return frame.decode_frame(buffer[at : end + 1])


def content_frames(channel: int, properties: Properties, body: bytes, size: int) -> list[bytes]:
    """Return the frames that follow a `basic.publish`, in pieces: properties, and body chunks.

    Raises an error of pika or `ValueError` for properties that AMQP cannot carry, and `TypeError`
    for a body that is not bytes: it would be found when the frames of others are written with it.
    """
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise TypeError(f"a body of AMQP is bytes, not {type(body).__name__}")
    encoded = b"".join(properties.encode())
    head = _HEAD.pack(
        spec.FRAME_HEADER, channel, _CONTENT.size + len(encoded), properties.INDEX, 0, len(body)
    )
    frames = [head, encoded, _END]
    for start in range(0, len(body), size):
        chunk = body[start : start + size]
        frames += (_FRAME.pack(spec.FRAME_BODY, channel, len(chunk)), chunk, _END)
    return frames


def _read_flags(encoded: bytes) -> tuple[int, int]:
    """Return the flags and the place after them. AMQP defines nothing in further words of flags."""
    (flags,) = _FLAGS.unpack_from(encoded)
    word, at = flags, _FLAGS.size

    while word & 1:
        (word,) = _FLAGS.unpack_from(encoded, at)
        at += _FLAGS.size

    return flags, at


def _short_string(encoded: bytes, at: int) -> tuple[bytes, int]:
    end = _inside(encoded, at + 1 + encoded[at])
    return encoded[at + 1 : end], end


def _long_string(encoded: bytes, at: int) -> tuple[bytes, int]:
    (length,) = _LENGTH.unpack_from(encoded, at)
    start = at + _LENGTH.size
    end = _inside(encoded, start + length)
    return encoded[start:end], end


def _inside(encoded: bytes, end: int) -> int:
    """Return the place after a value. Raises `ValueError` if it is not there."""
    if end > len(encoded):
        raise ValueError("bytes are missing at the end")
    return end


_FIXED = {
    kind.encode(): struct.Struct(f">{form}")
    for kind, form in [
        ("t", "?"), ("b", "b"), ("B", "B"), ("s", "h"), ("U", "h"), ("u", "H"), ("I", "i"),
        ("i", "I"), ("l", "q"), ("L", "q"), ("f", "f"), ("d", "d"), ("D", "Bi"), ("T", "Q"),
        ("V", ""),
    ]
}  # fmt: skip
"""The types whose values have a fixed size."""
_STRINGS = {b"S", b"x"}
_WITH_LENGTH = {*_STRINGS, b"A", b"F"}
"""The types whose values begin with their length."""


def _end_of_value(table: bytes, at: int) -> int:
    """Return the place after a value. Nested tables and arrays are skipped by their length."""
    kind = table[at : at + 1]

    if kind in _WITH_LENGTH:
        (length,) = _LENGTH.unpack_from(table, at + 1)
        return _inside(table, at + 1 + _LENGTH.size + length)
    if kind in _FIXED:
        return _inside(table, at + 1 + _FIXED[kind].size)
    raise ValueError(f"a header has the unknown type {kind!r}")


def _value(field: Field) -> Any:
    """Return the value of a field; None for a table, an array and a void."""
    kind, raw = field[:1], field[1:]

    if kind in _STRINGS:
        return raw[4:]
    if kind not in _FIXED or kind == b"V":
        return None

    number, *more = _FIXED[kind].unpack(raw)
    if kind == b"D":
        return Decimal(f"{more[0]}E-{number}")
    return datetime.fromtimestamp(number, UTC) if kind == b"T" else number


def _write_table(pieces: list[bytes], headers: dict[str | bytes, Any]) -> None:
    start = len(pieces)
    pieces.append(b"")

    for name, value in headers.items():
        pieces.append(_header_name(name))
        if type(value) is str:
            raw = value.encode()
            pieces += (b"S", _LENGTH.pack(len(raw)), raw)
        elif isinstance(value, Field):
            pieces.append(value)
        else:
            data.encode_value(pieces, value)

    pieces[start] = _LENGTH.pack(sum(map(len, pieces[start + 1 :])))


def _short(value: str | bytes) -> bytes:
    """Return a short string. Raises `ShortStringTooLong`."""
    raw = value if isinstance(value, bytes) else value.encode()
    if len(raw) > _LONGEST_SHORT:
        raise ShortStringTooLong(raw)
    return bytes((len(raw),)) + raw


_header_name = lru_cache(maxsize=256)(_short)
