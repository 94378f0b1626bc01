"""Checks of options: unknown names and meaningless numbers are rejected.

Most calls take theirs as a TypedDict by `Unpack`, which mypy checks and Python does not; and
nothing is silently ignored. No message passes through here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING

from mqcore.clock import seconds
from mqcore.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "check_count",
    "check_duration",
    "check_flag",
    "check_kind",
    "check_kinds",
    "check_options",
    "check_path",
    "check_seconds",
    "check_text",
    "closest",
    "described",
    "no_such_option",
    "seconds_or_nan",
    "takes_nothing",
]


def check_options(given: Iterable[str], kind: type, where: str) -> None:
    """Raise `ConfigurationError` for the first name that `kind`, a TypedDict, does not have.

    `where` begins the error's text.
    """
    known = kind.__annotations__
    for name in given:
        if name not in known:
            raise ConfigurationError(f"{where}: {name:.60}: {no_such_option(name, sorted(known))}")


def closest(name: str, names: Iterable[str], *, alike: float = 0.6) -> str | None:
    """Return the name that was probably meant; None when none is `alike` (1.0: equal)."""
    from difflib import get_close_matches  # noqa: PLC0415 - only after a mistake is it needed

    return next(iter(get_close_matches(name, sorted(names), n=1, cutoff=alike)), None)


def no_such_option(name: str, options: Sequence[str]) -> str:
    """Return a text about an unknown option: what was probably meant, and which exist."""
    close = closest(name, options)
    hint = f"; did you mean {close!r}?" if close else "."
    return f"no such option{hint} There are: {', '.join(options) or 'none'}"


def described(value: object) -> str:
    """Name the kind of a value for an error's text, without the value: it may hold a secret."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', '')}".rstrip()
    return f"a value of type {type(value).__name__}"


def takes_nothing(function: object) -> bool:
    """Whether something can be called without arguments, as far as it shows them."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # a builtin does not show its parameters
        return True
    return True


def check_kind(name: str, value: object, kind: type, where: str, give: str) -> None:
    """Raise `ConfigurationError` unless a value is an instance. `give` says what to write."""
    if not isinstance(value, kind) or isinstance(value, type):
        raise ConfigurationError(f"{where}: {name}= takes {give}, not {described(value)}")


def check_kinds(name: str, values: object, kind: type, where: str) -> None:
    """Raise `ConfigurationError` unless it is a list whose values are instances of the class."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise ConfigurationError(
            f"{where}: {name}= takes a list of {kind.__name__} instances, not {described(values)}"
        )
    for value in values:
        if not isinstance(value, kind):
            raise ConfigurationError(
                f"{where}: {name}= takes a list of {kind.__name__} instances, and {value!r:.60} "
                "is not one"
            )


def check_count(name: str, value: object, where: str) -> int:
    """Return a whole number from 1, or raise `ConfigurationError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(
            f"{where}: {name}={value!r:.60} is not usable; give a whole number from 1"
        )
    return value


def check_flag(name: str, value: object, where: str) -> bool:
    """Return True or False, or raise `ConfigurationError`: "no" would otherwise mean yes."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{where}: {name}={value!r:.60} is not usable; give True or False")
    return value


def check_path(name: str, value: object, where: str) -> None:
    """Raise `ConfigurationError` for something that is neither a path nor None."""
    if value is not None and not (value and isinstance(value, (str, Path))):
        raise ConfigurationError(f"{where}: {name}={value!r:.60} is not usable; give a path")


def check_text(name: str, value: object, where: str) -> str:
    """Return a text that is not empty, or raise `ConfigurationError`."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{where}: {name}={value!r:.60} is not usable; give a text")
    return value


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([smhd])")


def check_duration(name: str, value: object, where: str) -> float:
    """Return a duration in seconds: a number, a `timedelta`, or a text such as "24h" or "7d".

    Raises `ConfigurationError` for anything else, 0 included.
    """
    number = seconds_or_nan(value)
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        number = float(match[1]) * _UNITS[match[2]]
    if not 0 < number < inf:
        raise ConfigurationError(
            f'{where}: {name}={value!r:.60} is not usable; give a duration above 0: "24h" '
            "(s, m, h or d), seconds, or a timedelta"
        )
    return number


def seconds_or_nan(value: object) -> float:
    """Return a number or a `timedelta` as seconds, and NaN for any other value."""
    try:
        return nan if isinstance(value, (bool, str, bytes)) else seconds(value)  # type: ignore[arg-type]  # checked here
    except (TypeError, ValueError, OverflowError):
        return nan


def check_seconds(name: str, value: object, where: str, *, zero: bool = False) -> float:
    """Return a duration in seconds: above 0, or from 0 with `zero`.

    Raises `ConfigurationError` for a value that is not a duration, NaN and infinity included.
    """
    number = seconds_or_nan(value)
    if not 0 < number < inf and not (zero and number == 0):
        bound = "from 0" if zero else "above 0"
        raise ConfigurationError(
            f"{where}: {name}={value!r:.60} is not usable; give seconds {bound}, or leave it out"
        )
    return number
