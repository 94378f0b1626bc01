"""Content header frames of AMQP, decoded so that no message can break the connection.

    bytes from the broker ─► read_frame ─► Properties ─► message_format ─► Message
                                              │
                                              └─ `unreadable`: the reason, for the dead letter

pika decodes properties inside the connection, and an error there closes it. The broker then
delivers the same message again. RabbitMQ forwards much that pika cannot decode: a timestamp after
the year 9999, an infinite float, tables nested ten thousand levels deep. So this module decodes the
properties of messages. A header without a value in Python is not in `headers`. `others` has the
bytes of all headers that are not text, and a copy of the message keeps them unchanged.
"""

import struct
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pika import BasicProperties, data, frame, spec

__all__ = ["Field", "Properties", "read_frame", "write_frame"]

_FRAME = struct.Struct(">BHL")
_CONTENT = struct.Struct(">HHQ")
_LENGTH = struct.Struct(">I")
_TIMESTAMP = struct.Struct(">Q")
_FLAGS = struct.Struct(">H")
_END = bytes((spec.FRAME_END,))

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


class _Malformed(Exception):
    """The bytes end inside a value, or have a type that AMQP does not know."""


class Properties(BasicProperties):
    """The basic properties of one message. A short string that is not UTF-8 is `bytes`.

    `headers` has the values that Python can represent. `others` has every header that is not text,
    by its name in bytes. `unreadable` says what cannot be decoded, and is empty if all can.
    """

    others: dict[bytes, Field]
    unreadable: str

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.others = {}
        self.unreadable = ""

    @classmethod
    def read(cls, encoded: bytes) -> "Properties":
        """Return the properties in the payload of a content header frame. Never raises."""
        properties = cls()
        try:
            properties._read(encoded)
        except _Malformed as error:
            properties.unreadable = f"the AMQP properties are malformed: {error}"

        return properties

    def _read(self, encoded: bytes) -> None:
        flags, at = _read_flags(encoded)

        for name, flag, kind in _PROPERTIES:
            if not flags & flag:
                continue

            if kind is _SHORT:
                raw, at = _short_string(encoded, at)
                try:
                    setattr(self, name, raw.decode())
                except UnicodeDecodeError:
                    setattr(self, name, raw)
                    if name in _REQUIRED_UTF8:
                        self.unreadable = f"the AMQP property {name} is not UTF-8"
            elif kind is _TABLE:
                table, at = _long_string(encoded, at)
                self._read_table(table)
            elif kind is _OCTET:
                setattr(self, name, _slice(encoded, at, 1)[0])
                at += 1
            else:
                (self.timestamp,) = _TIMESTAMP.unpack(_slice(encoded, at, 8))
                at += 8

    def _read_table(self, table: bytes) -> None:
        self.headers = headers = {}
        at, end = 0, len(table)

        while at < end:
            raw_name, at = _short_string(table, at)
            start, kind = at, table[at : at + 1]
            at = _end_of_value(table, at)

            try:
                name = raw_name.decode()
                if kind == b"S":
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
            value = getattr(self, name)
            if value is None:
                continue

            flags |= flag
            if kind is _SHORT:
                data.encode_short_string(pieces, value)
            elif kind is _TABLE:
                _write_table(pieces, value)
            elif kind is _OCTET:
                pieces.append(bytes((value,)))
            else:
                pieces.append(_TIMESTAMP.pack(value))

        pieces[0] = _FLAGS.pack(flags)
        return pieces


def read_frame(buffer: bytes, at: int = 0) -> tuple[int, Any]:
    """Return the length of the frame at this place and the frame; 0 and None if it is incomplete.

    It replaces pika's `decode_frame`, which raises for some properties of messages.
    """
    if len(buffer) - at < _FRAME.size:
        return 0, None

    _, channel, size = _FRAME.unpack_from(buffer, at)
    start = at + _FRAME.size
    end = start + size

    if buffer[end : end + 1] == _END:
        if buffer[at] == spec.FRAME_BODY:
            return end + 1 - at, frame.Body(channel, buffer[start:end])
        if buffer[at] == spec.FRAME_HEADER and size >= _CONTENT.size:
            class_id, _, length = _CONTENT.unpack_from(buffer, start)
            if class_id == BasicProperties.INDEX:
                properties = Properties.read(buffer[start + _CONTENT.size : end])
                return end + 1 - at, frame.Header(channel, length, properties)

    return frame.decode_frame(buffer[at : end + 1])


def write_frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return a frame of this type."""
    return b"".join((_FRAME.pack(kind, channel, len(payload)), payload, _END))


def _read_flags(encoded: bytes) -> tuple[int, int]:
    """Return the flags and the place after them. AMQP defines nothing in further words of flags."""
    flags = _FLAGS.unpack(_slice(encoded, 0, 2))[0]
    word, at = flags, 2

    while word & 1:
        (word,) = _FLAGS.unpack(_slice(encoded, at, 2))
        at += 2

    return flags, at


def _slice(encoded: bytes, at: int, length: int) -> bytes:
    part = encoded[at : at + length]
    if len(part) < length:
        raise _Malformed(f"{length - len(part):,} bytes are missing at the end")
    return part


def _short_string(encoded: bytes, at: int) -> tuple[bytes, int]:
    length = _slice(encoded, at, 1)[0]
    return _slice(encoded, at + 1, length), at + 1 + length


def _long_string(encoded: bytes, at: int) -> tuple[bytes, int]:
    (length,) = _LENGTH.unpack(_slice(encoded, at, 4))
    return _slice(encoded, at + 4, length), at + 4 + length


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
        return _long_string(table, at + 1)[1]
    if kind in _FIXED:
        return at + 1 + len(_slice(table, at + 1, _FIXED[kind].size))
    raise _Malformed(f"a header has the unknown type {kind!r}")


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
        data.encode_short_string(pieces, name)
        if isinstance(value, Field):
            pieces.append(value)
        else:
            data.encode_value(pieces, value)

    pieces[start] = _LENGTH.pack(sum(map(len, pieces[start + 1 :])))
