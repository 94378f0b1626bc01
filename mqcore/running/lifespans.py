"""What the lifespan of an app must be: a function that returns an async context manager."""

from __future__ import annotations

import inspect
from contextlib import AbstractAsyncContextManager
from typing import Any

from mqcore.errors import ConfigurationError
from mqcore.rules.checks import described

__all__ = ["check_lifespan", "check_lifespan_result"]

_HOW = (
    "Write `@contextlib.asynccontextmanager`, and below it `async def lifespan(broker):` with one "
    "yield"
)


def check_lifespan(lifespan: object, where: str) -> None:
    """Raise `ConfigurationError` for a lifespan that could not be entered."""
    if lifespan is None:
        return
    if isinstance(lifespan, AbstractAsyncContextManager):
        raise ConfigurationError(
            f"{where}: lifespan= takes the function itself, not what it returns. Write "
            "lifespan=lifespan, without calling it"
        )
    if not callable(lifespan):
        raise ConfigurationError(
            f"{where}: lifespan= takes an async context manager function, not "
            f"{described(lifespan)}. {_HOW}"
        )
    if inspect.iscoroutinefunction(lifespan) or inspect.isasyncgenfunction(lifespan):
        raise ConfigurationError(
            f"{where}: lifespan {described(lifespan)} is not a context manager. {_HOW}"
        )

    try:
        inspect.signature(lifespan).bind("broker")
    except TypeError as error:
        raise ConfigurationError(
            f"{where}: lifespan is called with the broker, and {described(lifespan)} cannot be: "
            f"{error}. {_HOW}"
        ) from None
    except ValueError:  # a builtin does not show its parameters
        return


def check_lifespan_result(entered: Any, where: str) -> None:
    """Raise `ConfigurationError` unless the lifespan has returned an async context manager."""
    if not isinstance(entered, AbstractAsyncContextManager):
        raise ConfigurationError(
            f"{where}: lifespan returned {described(entered)}, which is not an async context "
            f"manager. {_HOW}"
        )
