"""Bytes and values: what a payload is on the wire, and what may come back from it. Pure.

One message passing through: `Payload.encode` checks the value against the queue's type, a codec
writes it, and the content type goes along. On the other side the content type picks the codec out
of an allow-list, the codec reads the body and the queue's type checks what came out. Whatever a
publish accepts, the same queue's consumer can read: a value that JSON would change silently (NaN
becomes null) or that would not validate again is refused before it is sent.

No codec here or in a plugin may execute anything that a message says: no pickle, no import by name.
"""

import re
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from math import isfinite
from typing import Any, Generic, Protocol, TypeVar, cast

from pydantic import TypeAdapter
from pydantic import ValidationError as Invalid
from pydantic_core import PydanticSerializationError

from mqcore.errors import ConfigurationError, DecodeError, ValidationError
from mqcore.messages.encoding import MOST, charset_of, undone
from mqcore.messages.roundtrip import difference, has_no_float, is_exact, is_plain, keeps_plain

__all__ = ["BytesCodec", "Codec", "Codecs", "JsonCodec", "Payload", "TextCodec", "encode_any"]

T = TypeVar("T")
_SHOWN = 3


class Codec(Protocol):
    """One way to write values as bytes.

    A plugin brings its own with the hook `mqcore_register_codecs`.

    `name` is how a queue and the settings ask for it; `content_types` are those that it reads, the
    first is the one that it writes. Both methods must be pure, must not keep or change their
    arguments, and must never execute or import anything that the body names.
    """

    name: str
    content_types: tuple[str, ...]

    def encode(self, value: object, adapter: TypeAdapter[Any]) -> bytes:
        """Write a value that has passed `adapter`'s strict validation.

        Raises `ValidationError` when it cannot be written.
        """

    def decode(self, body: bytes, adapter: TypeAdapter[Any]) -> object:
        """Read and validate.

        Raises mqcore's `DecodeError` for a body that cannot be read. For a wrong value pydantic's
        own `ValidationError` may pass through: it is turned into mqcore's, without its input.
        """


class JsonCodec:
    """`application/json`, and by `Codecs` every `application/…+json`. Written and read by pydantic.

    Field names go by alias; computed fields are left out, since they could not be read back. NaN
    and Infinity, also as `1e400` or as a string read into a float, are invalid in both directions.
    With duplicate keys the last wins. A body nests at most about 200 levels deep and a whole number
    has at most 4,300 digits (the parser's bounds).
    """

    name = "json"
    content_types: tuple[str, ...] = ("application/json",)

    def encode(self, value: object, adapter: TypeAdapter[Any]) -> bytes:
        """Write JSON; raises `ValidationError` for NaN, Infinity and whatever JSON cannot carry."""
        try:
            body = adapter.serializer.to_json(
                value, by_alias=True, round_trip=True, warnings="error"
            )
        except PydanticSerializationError as error:
            raise ValidationError(_unwritable(str(error))) from None
        if has_no_float(adapter):
            return body
        # pydantic writes NaN as null, and as the key "None", unless the type's own configuration
        # says otherwise
        if (b"null" in body or b"None" in body or _may_overflow(body)) and not _finite(value):
            raise ValidationError(_NOT_FINITE)
        return body

    def encode_plain(self, value: object, adapter: TypeAdapter[Any]) -> bytes:
        """Write JSON of a plain value, which has nothing that pydantic would change."""
        try:
            return adapter.serializer.to_json(value)
        except PydanticSerializationError as error:
            raise ValidationError(_unwritable(str(error))) from None

    def decode(self, body: bytes, adapter: TypeAdapter[Any]) -> object:
        """Read JSON by pydantic's rules: lax unless the type is strict."""
        try:
            value = adapter.validator.validate_json(body)
        except Invalid as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            if first["type"] == "json_invalid" and not first["loc"]:
                raise DecodeError(
                    f"not JSON: {first['msg'].removeprefix('Invalid JSON: ')}"
                ) from None
            raise
        if is_plain(value) or has_no_float(adapter):
            return value
        if _may_overflow(body) and not _finite(value):
            raise ValidationError(_NOT_FINITE)
        return value


class TextCodec:
    """`text/plain`, UTF-8 and nothing else."""

    name = "text"
    content_types: tuple[str, ...] = ("text/plain",)

    def encode(self, value: object, adapter: TypeAdapter[Any]) -> bytes:  # noqa: ARG002 - the protocol's signature
        """Write a `str`."""
        if not isinstance(value, str):
            raise ValidationError(f"the codec 'text' carries str, not {type(value).__name__}")
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise ValidationError(_SURROGATE) from None

    def decode(self, body: bytes, adapter: TypeAdapter[Any]) -> object:
        """Read a `str`, and validate it as the type says."""
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"not UTF-8: byte {error.start} of {len(body):,}") from None
        return adapter.validator.validate_python(text)


class BytesCodec:
    """`application/octet-stream`: the body as it is."""

    name = "bytes"
    content_types: tuple[str, ...] = ("application/octet-stream",)

    def encode(self, value: object, adapter: TypeAdapter[Any]) -> bytes:  # noqa: ARG002 - the protocol's signature
        """Copy `bytes`."""
        if not isinstance(value, bytes):
            raise ValidationError(f"the codec 'bytes' carries bytes, not {type(value).__name__}")
        return bytes(value)

    def decode(self, body: bytes, adapter: TypeAdapter[Any]) -> object:
        """Validate the body as the type says."""
        return adapter.validator.validate_python(body)


class Codecs:
    """The codecs that a broker may use: an allow-list.

    A content type that is not on it is never guessed at.
    """

    def __init__(self, codecs: Iterable[Codec]) -> None:
        """Raises `ConfigurationError` when two codecs claim one name or one content type."""
        self.most = MOST
        """Bytes that a compressed body may have when it is decompressed."""
        self._names: dict[str, Codec] = {}
        self._types: dict[str, Codec] = {}

        for codec in codecs:
            claims = [
                (self._names, codec.name),
                *((self._types, kind.lower()) for kind in codec.content_types),
            ]
            for table, key in claims:
                if table.setdefault(key, codec) is not codec:
                    raise ConfigurationError(
                        f"two codecs claim {key!r}: {table[key].name!r} and {codec.name!r}"
                    )

    @classmethod
    def default(cls) -> "Codecs":
        """JSON, text and bytes."""
        return cls([JsonCodec(), TextCodec(), BytesCodec()])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the allowed codecs."""
        return tuple(self._names)

    def bounded(self, most: int) -> "Codecs":
        """Return the same allow-list with this bound on what a compressed body may become."""
        same = Codecs(self._names.values())
        same.most = most
        return same

    def extended(self, codecs: Iterable[Codec]) -> "Codecs":
        """Return an allow-list with these codecs too.

        Raises `ConfigurationError` for a name or content type that two codecs claim.
        """
        return Codecs([*self._names.values(), *codecs])

    def only(self, names: Iterable[str]) -> "Codecs":
        """Return an allow-list of the named codecs; `ConfigurationError` for an unknown name."""
        return Codecs([self.named(name) for name in names])

    def named(self, name: str) -> Codec:
        """Return the codec of this name; the `ConfigurationError` names those that are allowed."""
        codec = self._names.get(name)
        if codec is None:
            allowed = ", ".join(self.names)
            raise ConfigurationError(
                f"codec {name!r} is not installed or not allowed; allowed are: {allowed}"
            )
        return codec

    def accepting(self, content_type: str) -> Codec:
        """Return the codec for a content type with any charset; `DecodeError` if there is none."""
        codec = self._types.get(content_type)
        if codec is not None:
            return codec
        kind = content_type.partition(";")[0].strip().lower()
        if kind.startswith("application/") and kind.endswith("+json"):
            kind = JsonCodec.content_types[0]  # RFC 6839: it can be read as JSON
        codec = self._types.get(kind)
        if codec is None:
            allowed = ", ".join(self._types)
            raise DecodeError(
                f"content type {content_type!r:.100} is not allowed; allowed are: {allowed}"
            )

        return codec


class Payload(Generic[T]):
    """What a queue carries: a type, checked at publish and on receipt, and its codec.

    Built once for each queue. The codec is `bytes` for bytes, `text` for str and `json` for
    everything else, unless one is named. A payload written with the codec `bytes` gives and takes
    the raw body, whatever its content type says.
    """

    def __init__(self, type_: type[T] | TypeAdapter[T], codec: str | None = None) -> None:
        """Take a type, or a `TypeAdapter` for what is not a class, such as a union.

        Raises `ConfigurationError` when pydantic cannot check the type.
        """
        self.name = (
            type_.__name__ if isinstance(type_, type) else str(type_).removeprefix("TypeAdapter")
        )
        self.kind: object = None if isinstance(type_, TypeAdapter) else type_
        """The type as it was given; None for a `TypeAdapter`."""
        self.adapter = _adapter(type_)
        self._is_configured = isinstance(type_, TypeAdapter)
        by_schema = {"bytes": "bytes", "str": "text"}
        self.codec = codec or by_schema.get(self.adapter.core_schema["type"], "json")

    def __repr__(self) -> str:
        return f"Payload({self.name}, codec={self.codec!r})"

    def encode(self, value: T, codecs: Codecs) -> tuple[bytes, str]:
        """Return body and content type.

        Raises `ValidationError` for a value that is not of the type or cannot be written. The check
        is strict: nothing is converted, "5" is not an int and a dict is not a model. Raises
        `ConfigurationError` when the codec is not among `codecs`.
        """
        return _write(
            value,
            self.adapter,
            codecs.named(self.codec),
            self.name,
            is_configured=self._is_configured,
        )

    def decode(
        self, body: bytes, content_type: str | None, codecs: Codecs, encoding: str | None = None
    ) -> T:
        """Return the value of a body.

        `encoding` is its content encoding, which is undone first, and so is the charset of its
        content type.

        One without content type, as a foreign message may be, is read by the payload's own codec.
        Raises `DecodeError` (undecodable) when the bytes cannot be read as their content type says,
        and `ValidationError` (invalid) when what they say is not of the type. Neither text repeats
        the input.
        """
        raw = not content_type or self.codec == BytesCodec.name
        try:
            codec = (
                codecs.named(self.codec)
                if raw or content_type is None
                else codecs.accepting(content_type)
            )
            charset = charset_of(content_type) if content_type else None
            if (encoding or charset is not None) and self.codec != BytesCodec.name:
                body = undone(body, encoding, charset, codecs.most)
            return cast("T", codec.decode(body, self.adapter))
        except Invalid as error:
            raise ValidationError(
                f"the payload does not match {self.name}: {_problems(error)}"
            ) from None
        except (DecodeError, ValidationError) as error:
            raise type(error)(f"the payload cannot be read as {self.name}: {error}") from None
        except (ConfigurationError, MemoryError):
            raise
        except (
            Exception
        ) as error:  # a user's validator or a plugin's codec, fed with what came over the wire
            raise ValidationError(
                f"the payload does not match {self.name}: its check raised {type(error).__name__}"
            ) from error


def encode_any(value: object, codecs: Codecs) -> tuple[bytes, str]:
    """Return body and content type of a value for a queue known only by name.

    bytes go as bytes, str as text and everything else as JSON. Raises `ValidationError` as
    `Payload.encode` does.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _write(bytes(value), _ANY, codecs.named(BytesCodec.name), "bytes")
    if isinstance(value, str) and not isinstance(value, Enum):
        return _write(value, _ANY, codecs.named(TextCodec.name), "str")
    try:
        adapter = _adapter_of(cast("Hashable", type(value)))
    except ConfigurationError as error:
        raise ValidationError(f"it cannot be sent: {error}") from None
    return _write(value, adapter, codecs.named(JsonCodec.name), type(value).__name__)


_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def _write(
    value: object,
    adapter: TypeAdapter[Any],
    codec: Codec,
    name: str,
    *,
    is_configured: bool = False,
) -> tuple[bytes, str]:
    """Return body and content type.

    `is_configured`: the adapter is the application's, whose own `config` may change what is read
    and is not in its schema. So the schema does not prove that nothing changes.
    """
    known = codec if type(codec) is JsonCodec and not is_configured else None
    try:
        adapter.validator.validate_python(value, strict=True)
        if known and keeps_plain(adapter) and is_plain(value):
            return known.encode_plain(value, adapter), codec.content_types[0]

        body = codec.encode(value, adapter)
        read = _read_back(body, adapter, codec)
        if not (known and is_exact(adapter)):
            _check_same(value, read, adapter)
        return body, codec.content_types[0]
    except Invalid as error:
        _check_not_fields(value, adapter, name)
        why = _problems(error).replace(
            "a valid dictionary or instance of", "an instance of"
        )  # no dict is taken for one
        raise ValidationError(f"the payload does not match {name}: {why}") from None
    except ValidationError as error:
        _check_not_fields(value, adapter, name)
        raise ValidationError(f"the payload cannot be sent as {name}: {error}") from None
    except (ConfigurationError, MemoryError):
        raise
    except Exception as error:  # as in `decode`
        raise ValidationError(
            f"the payload does not match {name}: its check raised {type(error).__name__}"
        ) from error


def _check_not_fields(value: object, adapter: TypeAdapter[Any], name: str) -> None:
    """Raise `ValidationError` if a dict was given for a model, with or without valid fields."""
    if isinstance(value, dict) and adapter.core_schema.get("type") == "model":
        raise ValidationError(
            f"the payload is to be a {name}, not a dict: give {name}(**fields)"
        ) from None


def _read_back(body: bytes, adapter: TypeAdapter[Any], codec: Codec) -> object:
    """Return what a consumer will read; `ValidationError` when it could not read it (G17)."""
    if not isinstance(body, bytes):  # a plugin's codec may do anything
        raise ValidationError(
            f"codec {codec.name!r} must encode to bytes, and returned {type(body).__name__}"
        )
    try:
        return codec.decode(body, adapter)
    except Invalid as error:
        raise ValidationError(
            f"what it is written as cannot be read back: {_problems(error)}"
        ) from None
    except DecodeError as error:
        raise ValidationError(f"what it is written as cannot be read back: {error}") from None


def _check_same(value: object, read: object, adapter: TypeAdapter[Any]) -> None:
    """Raise `ValidationError` unless what is read is the value that was given (G17)."""
    if (change := difference(value, read, adapter)) is not None:
        place = f"{_plain(change.place, 100)}: " if change.place else ""
        raise ValidationError(f"{place}{_plain(change.reason, 300)}")


def _adapter(type_: type[T] | TypeAdapter[T]) -> TypeAdapter[T]:
    try:
        adapter = type_ if isinstance(type_, TypeAdapter) else TypeAdapter(type_)
        # One that waits for a name to be defined fails here, not at the first message.
        adapter.core_schema.get("type")
    except Exception as error:  # noqa: BLE001 - pydantic raises many kinds for what is not a type
        why, _, advice = str(error).partition("\n")[0].partition(". Set `arbitrary_types_allowed")
        if advice:  # pydantic's advice would lose the check, and the way to write the value
            why += ". Make it a pydantic BaseModel, a dataclass or a TypedDict"
        raise ConfigurationError(
            f"the payload type {type_!r:.100} cannot be checked: {why:.200}"
        ) from None
    return adapter


@lru_cache(maxsize=256)
def _adapter_of(type_: Hashable) -> TypeAdapter[Any]:
    return _adapter(cast("type[Any]", type_))


_NOT_FINITE = "it holds NaN or Infinity, which JSON cannot carry"
_SURROGATE = "it holds a lone surrogate, which UTF-8 cannot carry"
_TOO_DEEP = "it is nested too deeply"
_UNWRITABLE = {
    "surrogates not allowed": _SURROGATE,
    "Circular reference": "it contains itself",
    "Maximum serialization depth": _TOO_DEEP,
    "invalid utf-8": (
        "it holds bytes that are not UTF-8; pydantic's ser_json_bytes='base64' writes them as text"
    ),
}
_UNEXPECTED = re.compile(
    r"^  PydanticSerializationUnexpectedValue\((Expected [^\n]{1,80}?) - ", re.MULTILINE
)
_GIVEN = re.compile(r"input_type=(\w{1,80})\]\)?$", re.MULTILINE)
_FIELD = re.compile(r"\[field_name='(\w{1,80})'")
_UNKNOWN_TYPE = re.compile(r"Unable to serialize unknown type: (<class '[^']{1,120}'>)")


def _unwritable(text: str) -> str:
    """Return why pydantic could not write a value.

    Its own text repeats the input, so only known parts of it are used.
    """
    if expected := _UNEXPECTED.findall(text):
        field, given = _FIELD.search(text), _GIVEN.search(text)
        place, other = (
            f"field {field[1]!r}: " if field else "",
            f", not {given[1]}" if given else "",
        )
        return f"{place}{expected[0].replace('Expected', 'expected', 1)}{other}"
    if unknown := _UNKNOWN_TYPE.search(text):
        return f"no way is known to write {unknown[1]} as JSON"
    return next(
        (why for part, why in _UNWRITABLE.items() if part in text), "it cannot be written as JSON"
    )


def _problems(error: Invalid) -> str:
    """Return the first three problems with their places, without the input."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    shown = []
    for item in problems[:_SHOWN]:
        place = ".".join(str(part) for part in item["loc"])
        tag = item["type"] == "union_tag_invalid"  # its text repeats what came
        why = "the tag is none of the expected ones" if tag else item["msg"]
        shown.append(f"{_plain(place, 100)}: {_plain(why, 200)}" if place else _plain(why, 200))
    more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    return "; ".join(shown) + more


def _plain(text: str, length: int) -> str:
    """Cut, and escape what could forge a second line in a log."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:length])


_LEAVES = frozenset({str, int, bool, bytes, type(None)})
_EXPONENT = re.compile(rb"e[0-9+][0-9]{2}")
_STEP = 150


def _may_overflow(body: bytes) -> bool:
    """Whether a number in the text could be read as NaN or Infinity.

    That is by name, by exponent, or by more than 308 digits.

    A quick look that saves the walk through nearly every value; true too often does no harm. Among
    more than 300 digits in a row, one aligned piece of 150 is all digits.
    """
    low = body.lower()
    if b"nan" in low or b"inf" in low or _EXPONENT.search(low):
        return True
    return len(low) > 2 * _STEP and any(
        low[at : at + _STEP].isdigit() for at in range(0, len(low), _STEP)
    )


def _finite(value: object) -> bool:
    """Whether no float or Decimal anywhere in a value is NaN or infinite.

    A loop: the value may be deep.
    """
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        kind = type(item)
        if kind in _LEAVES:
            continue
        if isinstance(item, float):
            if not isfinite(item):
                return False
        elif isinstance(item, (list, tuple, set, frozenset, deque)):
            waiting.extend(item)
        elif isinstance(item, Decimal):
            if not item.is_finite():
                return False
        elif (
            names := getattr(
                kind, "__pydantic_fields__", getattr(kind, "__dataclass_fields__", None)
            )
        ) is not None:
            waiting.extend([getattr(item, name, None) for name in names])
            waiting.append(getattr(item, "__pydantic_extra__", None))
        elif isinstance(item, Mapping):
            waiting.extend(item)
            waiting.extend(item.values())

    return True
