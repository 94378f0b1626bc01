"""How a failure prints values: short, by name, and with the first difference of long lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

__all__ = ["described", "difference"]

_ITEMS = 12
"""Items of a list or mapping that are printed."""
_LONGEST = 400


def described(value: object) -> str:
    """Return a value as a failure prints it: classes by name, empty containers as `none`."""
    match value:
        case type():
            return value.__name__
        case Mapping() | list() | set() | frozenset() if not value:
            return "none"
        case Mapping():
            return f"{{{_joined([f'{key!r}: {described(value[key])}' for key in value])}}}"
        case list():
            return f"[{_joined([described(item) for item in value])}]"
        case tuple() if not hasattr(value, "_fields"):
            return f"({_joined([described(item) for item in value])})"
        case _:
            return _short(repr(value))


def difference(actual: object, expected: object) -> tuple[str, str]:
    """Return both values as a failure prints them; of long lists the first items that differ."""
    if _is_long_list(actual) and _is_long_list(expected):
        pairs = enumerate(zip(actual, expected, strict=False))
        number = next((number for number, (one, other) in pairs if one != other), None)
        if number is not None:
            at = f"item {number} "
            return (
                f"{at}{described(actual[number])} of {len(actual)}",
                f"{at}{described(expected[number])} of {len(expected)}",
            )
    return described(actual), described(expected)


def _is_long_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) > _ITEMS


def _joined(items: Sequence[str]) -> str:
    text = ", ".join(items[:_ITEMS])
    return text if len(items) <= _ITEMS else f"{text}, … ({len(items)} in all)"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
