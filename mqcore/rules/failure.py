"""An exception as data: what a record, a reply and the retry policy need to know of it. Pure."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass

from mqcore.rules.redact import mask_text

__all__ = ["Failure", "exceptions_in", "qualified"]

_TEXT, _TRACE = 2_000, 4_000
_NAMED = 20
"""Exceptions of a group whose texts are recorded."""
_PROGRAM = ("__main__", "__mp_main__")


def qualified(cls: type) -> str:
    """Return the name by which a class is compared across processes; never resolved back to code.

    The program has one name in the worker (`__main__`) and another in the process of a handler:
    `__mp_main__` for a script, and for `python -m` the module's own. A class has one name in both.
    """
    module = cls.__module__
    if module in _PROGRAM:
        spec = getattr(sys.modules.get(module), "__spec__", None)
        module = _PROGRAM[0] if spec is None else spec.name
    return f"{module}.{cls.__qualname__}"


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as data, of bounded size.

    `types` are the qualified names of its class and bases.
    """

    types: tuple[str, ...]
    text: str
    traceback: str = ""
    members: tuple[tuple[str, ...], ...] = ()
    """Of an exception group, the `types` of each kind of exception in it."""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception, whatever its class does when it is turned into text."""
        text = _text_of(error)
        members: dict[tuple[str, ...], None] = {}
        if isinstance(error, BaseExceptionGroup):
            with suppress(Exception):  # a group class of the user's may break what is asked of it
                inner = [(_names(type(each)), _text_of(each)) for each in exceptions_in(error)]
                members = dict.fromkeys(names for names, _ in inner)
                each_text = (
                    f"{names[0].removeprefix('builtins.')}: {each}"
                    for names, each in inner[:_NAMED]
                )
                text = f"{text}: {'; '.join(each_text)}"

        try:
            trace = "".join(traceback.format_exception(error))
        except BaseException:  # noqa: BLE001 - a user's __str__ may raise anything, and must not cost the record
            trace = ""
        return cls(
            _names(type(error)), _clean(text)[:_TEXT], _clean(trace)[-_TRACE:], tuple(members)
        )

    @property
    def type(self) -> str:
        """The class's own name, without `builtins.`."""
        return self.types[0].removeprefix("builtins.") if self.types else ""


def exceptions_in(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return what a group holds, and the groups in it, in order."""
    exceptions: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(reversed(error.exceptions))
        else:
            exceptions.append(error)
    return exceptions


def _names(cls: type[BaseException]) -> tuple[str, ...]:
    return tuple(qualified(base) for base in cls.__mro__ if base is not object)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:  # noqa: BLE001 - a user's __str__ may raise anything, and must not cost the record
        return f"<its text is not available: {type(broken).__name__}>"


def _clean(text: str) -> str:
    """Remove what UTF-8 cannot carry, and mask the secrets of URLs."""
    return mask_text(text.encode("utf-8", "replace").decode())
