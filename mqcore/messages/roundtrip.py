"""Whether a consumer reads the value that was published. Pure.

    value ── codec.encode ──► body ── codec.decode ──► read
      └──────────────── difference ─────────────────────┘

`difference` walks both values and the schema of the queue's payload type. It returns the first
place that differs, and the reason. Most values are equal and have equal types. `_same` finds that
quickly, and the walk along the schema is only for the others. `is_exact` and `is_plain` say where
nothing can differ, so that nothing need be compared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID

from pydantic import (
    PydanticUndefinedAnnotation,
    PydanticUserError,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticSerializationError

from mqcore.messages.schema import (
    ANYTHING,
    NOWHERE,
    Place,
    exact_classes,
    is_open,
    names_float,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

__all__ = ["Difference", "difference", "has_no_float", "is_exact", "is_plain", "keeps_plain"]

_Found = tuple[tuple[object, ...], str]
_TEXTS = (str, bytes, bytearray)
_SCALARS = frozenset(
    {str, int, float, bool, bytes, type(None), datetime, date, time, timedelta, Decimal, UUID}
)
_JSON_LEAVES = (str, int, float, type(None))
_JSON = {dict, list, bool, *_JSON_LEAVES}
_MISSING = object()
_TWO_KEYS = "two keys are written as the same text"


class Difference(NamedTuple):
    """The first place where the consumer reads another value; "" is the value itself."""

    place: str
    reason: str


def is_exact(adapter: TypeAdapter[Any]) -> bool:
    """Whether JSON of this type is always read as the value that was given."""
    classes = _exact_classes(adapter)
    return classes is not None and not any(kind.__subclasses__() for kind in classes)


@lru_cache(maxsize=1024)
def _exact_classes(adapter: TypeAdapter[Any]) -> tuple[type, ...] | None:
    return exact_classes(adapter.core_schema)


def has_no_float(adapter: TypeAdapter[Any]) -> bool:
    """Whether no value of this type can hold a float, and so neither NaN nor Infinity."""
    return is_exact(adapter) and _names_no_float(adapter)


@lru_cache(maxsize=1024)
def _names_no_float(adapter: TypeAdapter[Any]) -> bool:
    return not names_float(adapter.core_schema)


_PLAIN = frozenset({str, int, bool, type(None)})
_TEXT = frozenset({str})
_INT_64 = 2**63
_PLAIN_LEVELS = 100
"""Levels of lists and dicts that every parser reads."""


def is_plain(value: Any, levels: int = _PLAIN_LEVELS) -> bool:
    """Whether a value is text, bool, None, an int of 64 bits, or lists and dicts of these.

    The keys of its dicts are text, and it has at most so many `levels`. Its JSON, which has no
    float, is always read as the same value where `Any` is declared. A subclass of one of these
    types is not plain: it may be written in another way.
    """
    kind = type(value)
    if kind in _PLAIN:
        return kind is not int or -_INT_64 < value < _INT_64

    if kind is dict and _TEXT.issuperset(map(type, value)):
        items = value.values()
    elif kind is list:
        items = value
    else:
        return False

    if not levels:
        return False

    for item in items:  # noqa: SIM110 - a generator would cost more than the rest
        if not is_plain(item, levels - 1):
            return False
    return True


@lru_cache(maxsize=1024)
def keeps_plain(adapter: TypeAdapter[Any]) -> bool:
    """Whether every plain value that this type admits is written and read without a change."""
    return is_open(adapter.core_schema)


def difference(given: object, read: object, adapter: TypeAdapter[Any]) -> Difference | None:
    """Return where and why `read` is another value than `given`; None when it is the same.

    Equal means the same type and the same content, with these exceptions:

    - An int is equal to the float that it is read as.
    - Where one type is declared, a subclass or another container of the same content is equal: a
      StrEnum where `str` is declared, a tuple where `Sequence[int]` is declared. Where a choice is
      declared, as in `Color | str`, the types must be equal.
    - Where `Any` is declared, the JSON form of a value is equal, unless something is lost in it.

    A model or dataclass is always compared with its exact class.

    The texts name fields, keys and types, and never repeat a value.
    """
    if _same(given, read):
        return None

    found = _find(given, read, Place.root(adapter.core_schema))
    if found is None:
        return None

    path, reason = found
    return Difference(".".join(map(str, path)), reason)


def _same(given: Any, read: Any) -> bool:
    """Whether two values are equal with equal types. False means: look closer."""
    kind = type(given)
    if kind is not type(read):
        return kind is int and type(read) is float and given == read

    if kind in _SCALARS:
        return bool(given == read)

    if kind is dict:
        kinds_equal = list(map(type, given)) == list(map(type, read))
        return (
            kinds_equal and list(given) == list(read) and _same_items(given.values(), read.values())
        )

    if issubclass(kind, (list, tuple, deque)):
        return len(given) == len(read) and _same_items(given, read)

    if hasattr(kind, "__pydantic_extra__"):
        fields, read_fields = given.__dict__, read.__dict__
        names_equal = list(fields) == list(read_fields)
        extra, read_extra = given.__pydantic_extra__, read.__pydantic_extra__
        return (
            names_equal
            and _same_items(fields.values(), read_fields.values())
            and _same(extra, read_extra)
        )

    return issubclass(kind, Enum) and given is read


def _same_items(given: Iterable[Any], read: Iterable[Any]) -> bool:
    for item, read_item in zip(given, read, strict=True):
        kind = type(item)
        if kind in _SCALARS and kind is type(read_item):  # no call for the most common case
            if item != read_item:
                return False
        elif not _same(item, read_item):
            return False
    return True


def _find(given: Any, read: Any, place: Place) -> _Found | None:
    """Return the path to the first difference below `place`, and its reason."""
    if _same(given, read):
        return None

    if place.admits_any:
        return _find_in_any(given, read)

    if (fields := _fields(given)) is not None:
        return _find_in_fields(given, read, fields, place)

    if isinstance(given, _TEXTS) or isinstance(read, _TEXTS):
        return _find_in_leaf(given, read, place)

    for kind, find in _CONTAINERS:
        if isinstance(given, kind) and isinstance(read, kind):
            return _other_container(given, read, place) or find(given, read, place)

    return _find_in_leaf(given, read, place)


def _other_container(given: object, read: object, place: Place) -> _Found | None:
    """The class of a container matters in a union, such as `list[int] | tuple[int, ...]`."""
    kind = type(given)
    if kind is type(read) or not (place.has_choice or hasattr(kind, "_fields")):
        return None
    return (), _other_type(given, read)


def _find_in_fields(given: Any, read: Any, fields: Iterable[str], place: Place) -> _Found | None:
    if type(given) is not type(read):
        return (), _other_type(given, read)

    for name in fields:
        item, read_item = getattr(given, name, _MISSING), getattr(read, name, _MISSING)
        if found := _find(item, read_item, place.below(name)):
            path, reason = found
            return (name, *path), reason if path else _why(given, name) or reason

    extra = getattr(given, "__pydantic_extra__", None) or {}
    read_extra = getattr(read, "__pydantic_extra__", None) or {}
    return _find(extra, read_extra, ANYTHING)


def _why(model: object, name: str) -> str | None:
    """Explain a field that was not written, or was written under a name that is not read."""
    field = getattr(type(model), "__pydantic_fields__", {}).get(name)
    written = getattr(field, "serialization_alias", None)

    if getattr(field, "exclude", None):
        return "the field is excluded from what is written (exclude=True)"

    if written and written != getattr(field, "validation_alias", None):
        return f"the field is written as {written!r} (serialization_alias), which is not read"
    return None


def _find_in_mapping(
    given: Mapping[Any, Any], read: Mapping[Any, Any], place: Place
) -> _Found | None:
    pairs: Iterable[tuple[Any, Any, Any]]
    if place.keys.admits_any:
        if len(given) != len(read):
            return (), _TWO_KEYS
        pairs = zip(given, given.values(), read.values(), strict=True)
    else:
        if lost := [key for key in given if key not in read]:
            return (lost[0],), "the consumer does not get this key"
        if added := [key for key in read if key not in given]:
            return (added[0],), "the consumer gets this key, which was not given"
        pairs = ((key, item, read[key]) for key, item in given.items())

    for name, item, read_item in pairs:
        if found := _find(item, read_item, place.below(name)):
            return (name, *found[0]), found[1]
    return None


def _find_in_set(given: AbstractSet[Any], read: AbstractSet[Any], place: Place) -> _Found | None:
    if given != read:
        return (), "the consumer gets a set with other items"

    kinds = {item: type(item) for item in read}
    if place.has_choice_below and any(kinds[item] is not type(item) for item in given):
        return (), "the consumer gets a set with items of other types"
    return None


def _find_in_sequence(given: Any, read: Any, place: Place) -> _Found | None:
    if len(given) != len(read):
        return (), f"the consumer gets {len(read):,} items in place of {len(given):,}"

    names = getattr(given, "_fields", None) or range(len(given))
    for name, item, read_item in zip(names, given, read, strict=True):
        if found := _find(item, read_item, place.below(name)):
            return (name, *found[0]), found[1]
    return None


_CONTAINERS: tuple[tuple[Any, Callable[[Any, Any, Place], _Found | None]], ...] = (
    (Mapping, _find_in_mapping),
    (AbstractSet, _find_in_set),
    ((Sequence, deque), _find_in_sequence),
)


def _find_in_leaf(given: Any, read: Any, place: Place) -> _Found | None:
    if read is _MISSING or isinstance(read, Iterator):
        return (), f"the consumer cannot get the {_name(given)} that was given"

    equal = _equal(given, read)
    if equal and (type(given) is type(read) or not place.has_choice):
        return None

    if isinstance(given, (SecretStr, SecretBytes)) and type(given) is type(read):
        return (), f"a {_name(given)} is written as asterisks; write its value with a serializer"

    if type(given) is not type(read):
        return (), _other_type(given, read)
    return (), f"the consumer gets another {_name(given)}: a validator or serializer changes it"


def _equal(given: Any, read: Any) -> bool:
    """Compare two leaves. What knows no equality but identity is compared by its attributes."""
    try:
        if given == read:
            return True
    except Exception:  # noqa: BLE001 - an array, or a user's __eq__ with a bug: it cannot be compared
        return type(given) is type(read)

    knows_equality = any("__eq__" in vars(base) for base in type(given).__mro__[:-1])
    if knows_equality or type(given) is not type(read):
        return False

    attributes, read_attributes = getattr(given, "__dict__", {}), getattr(read, "__dict__", {})
    return _find(attributes, read_attributes, NOWHERE) is None


def _find_in_any(given: Any, read: Any) -> _Found | None:
    """Compare a value with its JSON form, in which keys are text and a tuple or a set is a list."""
    if type(read) not in _JSON or (isinstance(given, _JSON_LEAVES) and given != read):
        return (), _other_type(given, read)

    pairs: tuple[Iterable[Any], Iterable[Any], Iterable[Any]]
    if isinstance(given, Mapping) and isinstance(read, dict):
        pairs, lost = (given, given.values(), read.values()), _TWO_KEYS
    elif isinstance(given, (Sequence, AbstractSet, deque)) and isinstance(read, list):
        pairs, lost = (
            (range(len(read)), given, read),
            f"the consumer gets {len(read):,} items in place of {len(given):,}",
        )
    else:
        return (
            None
            if isinstance(given, (*_JSON_LEAVES, bytes, bytearray))
            else _find_as_own_type(given)
        )

    if len(given) != len(read):
        return (), lost

    for name, item, read_item in zip(*pairs, strict=True):
        if not _same(item, read_item) and (found := _find_in_any(item, read_item)):
            return (name, *found[0]), found[1]
    return None


def _find_as_own_type(given: object) -> _Found | None:
    """Find what is lost when a value is written as its own type, for instance a secret."""
    try:
        adapter = _adapter_of(cast("Hashable", type(given)))
        body = adapter.serializer.to_json(given, by_alias=True, round_trip=True)
        read = adapter.validator.validate_json(body)
    except (
        PydanticUserError,
        PydanticUndefinedAnnotation,
        PydanticSerializationError,
        ValidationError,
    ):
        return None  # it has a JSON form and no way back: that is what Any says
    return _find(given, read, Place.root(adapter.core_schema))


@lru_cache(maxsize=256)
def _adapter_of(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast("type[Any]", kind))


def _fields(value: object) -> Iterable[str] | None:
    kind = type(value)
    if (fields := getattr(kind, "__pydantic_fields__", None)) is not None:
        return cast("Iterable[str]", fields)
    return cast("Iterable[str]", kind.__dataclass_fields__) if is_dataclass(kind) else None


def _name(value: object) -> str:
    return type(value).__name__


def _other_type(given: object, read: object) -> str:
    return f"the consumer gets {_name(read)} in place of {_name(given)}"
