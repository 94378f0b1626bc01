"""Content header frames of AMQP, read so that no message can break the connection.

    bytes from the broker ─► read_frame ─► Properties ─► message_format ─► Message
                                              │
                                              └─ `unreadable`: what cannot be read, for the dead letter

pika decodes properties inside the connection, and what it raises there closes it. The broker then
delivers the same message again. RabbitMQ forwards much that pika cannot decode: a timestamp after
the year 9999, a float that is infinite, tables nested ten thousand levels deep. So the properties
of messages are read here. A header that has no value in Python is left out of `headers`. The bytes
of all headers that are not text are in `others`, and a copy of the message has them unchanged.
"""

import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pika import BasicProperties, data, frame, spec

__all__ = ["Field", "Properties", "read_frame"]

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
"""All basic properties, in the order in which a frame has them."""

_MEANT_FOR_US = {"content_type", "content_encoding", "correlation_id", "reply_to", "message_id"}
"""The short strings without which a message cannot be handled rightly."""


class Field(bytes):
    """The value of a header as it is in a frame: the octet of its type, and its bytes."""

    __slots__ = ()


class _Broken(Exception):
    """The bytes end before the value does, or have a type that AMQP does not know."""


class Properties(BasicProperties):
    """The basic properties of one message. A short string that is not UTF-8 is `bytes`.

    `headers` has the values that Python can represent. `others` has every header that is not text,
    by its name in bytes. `unreadable` is what cannot be read, in words, else empty.
    """

    others: dict[bytes, Field]
    unreadable: str

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.others = {}
        self.unreadable = ""

    @classmethod
    def read(cls, encoded: bytes) -> "Properties":
        """Return the properties in the payload of a content header frame. Never raises."""
        found = cls()
        try:
            found._read(encoded)
        except _Broken as error:
            found.unreadable = f"the AMQP properties are malformed: {error}"

        return found

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
                    if name in _MEANT_FOR_US:
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
            # A time or a number that Python cannot represent, or a name that is not UTF-8.
            with suppress(ValueError, OverflowError, OSError, ArithmeticError):
                if (read := _VALUES.get(kind)) is not None:
                    headers[raw_name.decode()] = read(field[1:])

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
    """Return the length of the frame at this place of a buffer and the frame, or 0 and None if it is not whole.

    As pika's `decode_frame`, which raises for what the properties of a message may hold.
    """
    if len(buffer) - at < _FRAME.size:
        return 0, None

    _, channel, size = _FRAME.unpack_from(buffer, at)
    start = at + _FRAME.size
    end = start + size

    if size >= _CONTENT.size and buffer[at] == spec.FRAME_HEADER and buffer[end : end + 1] == _END:
        class_id, _, length = _CONTENT.unpack_from(buffer, start)
        if class_id == BasicProperties.INDEX:
            properties = Properties.read(buffer[start + _CONTENT.size : end])
            return end + 1 - at, frame.Header(channel, length, properties)

    return frame.decode_frame(buffer[at : end + 1])


def _read_flags(encoded: bytes) -> tuple[int, int]:
    """Return the flags, and where they end; what a further word of flags says is not known."""
    flags = _FLAGS.unpack(_slice(encoded, 0, 2))[0]
    word, at = flags, 2

    while word & 1:
        (word,) = _FLAGS.unpack(_slice(encoded, at, 2))
        at += 2

    return flags, at


def _slice(encoded: bytes, at: int, length: int) -> bytes:
    found = encoded[at : at + length]
    if len(found) < length:
        raise _Broken(f"{length - len(found):,} bytes are missing at the end")
    return found


def _short_string(encoded: bytes, at: int) -> tuple[bytes, int]:
    length = _slice(encoded, at, 1)[0]
    return _slice(encoded, at + 1, length), at + 1 + length


def _long_string(encoded: bytes, at: int) -> tuple[bytes, int]:
    (length,) = _LENGTH.unpack(_slice(encoded, at, 4))
    return _slice(encoded, at + 4, length), at + 4 + length


_SIZES = {
    b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"U": 2, b"u": 2, b"I": 4, b"i": 4,
    b"l": 8, b"L": 8, b"f": 4, b"d": 8, b"D": 5, b"T": 8, b"V": 0,
}  # fmt: skip
"""The bytes that a value of each type takes. All others begin with their length."""
_SIZED_BY_LENGTH = {b"S", b"x", b"A", b"F"}


def _end_of_value(table: bytes, at: int) -> int:
    """Return where a value ends.

    Nested tables and arrays are skipped by their length, however deep.
    """
    kind = table[at : at + 1]

    if kind in _SIZED_BY_LENGTH:
        return _long_string(table, at + 1)[1]
    if kind in _SIZES:
        size = _SIZES[kind]
        return at + 1 + len(_slice(table, at + 1, size))
    raise _Broken(f"a header has the unknown type {kind!r}")


def _number(form: str) -> Callable[[bytes], Any]:
    return lambda raw: struct.unpack(form, raw)[0]


def _time(raw: bytes) -> datetime:
    return datetime.fromtimestamp(_TIMESTAMP.unpack(raw)[0], UTC)


def _decimal(raw: bytes) -> Decimal:
    places, number = struct.unpack(">Bi", raw)
    return Decimal(f"{number}E-{places}")


_VALUES: dict[bytes, Callable[[bytes], Any]] = {
    b"t": lambda raw: raw != b"\x00",
    b"b": _number(">b"),
    b"B": _number(">B"),
    b"s": _number(">h"),
    b"U": _number(">h"),
    b"u": _number(">H"),
    b"I": _number(">i"),
    b"i": _number(">I"),
    b"l": _number(">q"),
    b"L": _number(">q"),
    b"f": _number(">f"),
    b"d": _number(">d"),
    b"D": _decimal,
    b"T": _time,
    b"S": lambda raw: raw[4:],
    b"x": lambda raw: raw[4:],
}
"""How the value of each type is read; a table, an array and a void have none that a header of text could show.
"""


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
