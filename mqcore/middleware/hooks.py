"""What a middleware's hooks must be, checked when it is given, and what they must return."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from mqcore.errors import ConfigurationError
from mqcore.messages.message import Message
from mqcore.middleware.base import Middleware
from mqcore.rules.checks import check_kinds, closest, described

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["check_middleware", "transforms_of"]

_ARGUMENTS = {
    "handle": ("ctx", "call_next"),
    "outgoing": ("message",),
    "incoming": ("message",),
    "on_event": ("event",),
}
"""The hooks, with the arguments that each is called with."""
_SIMILAR = 0.8


def check_middleware(middleware: Sequence[Middleware], where: str) -> None:
    """Raise `ConfigurationError` for a middleware whose hooks could not work.

    `where` begins the error's text.
    """
    check_kinds("middleware", middleware, Middleware, where)
    for each in middleware:
        own = f"{where}: middleware {type(each).__name__}"
        _check_names(each, own)
        for hook in _ARGUMENTS:
            if _is_overridden(each, hook):
                _check_hook(getattr(each, hook), hook, own)


def transforms_of(
    middleware: Sequence[Middleware], name: str
) -> list[Callable[[Message], Message]]:
    """Return `outgoing` or `incoming` of the middlewares that override it, in order.

    Each raises `ConfigurationError` when it returns something that is not a message.
    """
    return [
        _returning_message(getattr(each, name), name)
        for each in middleware
        if _is_overridden(each, name)
    ]


def _is_overridden(middleware: Middleware, name: str) -> bool:
    return getattr(type(middleware), name) is not getattr(Middleware, name)


def _check_names(middleware: Middleware, where: str) -> None:
    """Refuse a hook that would never be called: on the instance, or with a misspelt name."""
    for name in _ARGUMENTS:
        if name in getattr(middleware, "__dict__", {}):
            raise ConfigurationError(
                f"{where}: {name} is set on the instance, where it is never called. Define it in "
                "the class"
            )

    missing = [name for name in _ARGUMENTS if not _is_overridden(middleware, name)]
    for name in _methods(type(middleware)):
        if close := closest(name.lower(), missing, alike=_SIMILAR):
            raise ConfigurationError(
                f"{where}: its method {name} is never called; did you mean {close!r}? The hooks "
                f"are {', '.join(_ARGUMENTS)}. A method of its own needs another name"
            )


def _methods(kind: type) -> list[str]:
    """Return the names of the methods that a class and its bases add to `Middleware`."""
    return [
        name
        for each in kind.__mro__
        if each is not Middleware and issubclass(each, Middleware)
        for name, value in vars(each).items()
        if inspect.isfunction(value) and name not in _ARGUMENTS and not name.startswith("__")
    ]


def _check_hook(hook: Any, name: str, where: str) -> None:
    arguments = _ARGUMENTS[name]
    shown = f"{name}(self, {', '.join(arguments)})"
    if not callable(hook):
        raise ConfigurationError(f"{where}: {name} is {described(hook)}, not a method {shown}")

    inner = inspect.unwrap(hook)
    if inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner):
        raise ConfigurationError(f"{where}: {name} is a generator. Return, and do not yield")
    is_async = inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(inner)
    if name == "handle" and not is_async:
        raise ConfigurationError(
            f"{where}: handle is a plain function. Write `async def {shown}` and "
            "`return await call_next(ctx)`; a decorator around it needs functools.wraps"
        )
    if name != "handle" and is_async:
        raise ConfigurationError(
            f"{where}: {name} is async, and it would never be awaited. Write a plain "
            f"`def {shown}`, which must be quick"
        )

    try:
        inspect.signature(hook).bind(*arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{where}: {name} cannot be called as {shown}: {error}") from None


def _returning_message(
    hook: Callable[[Message], Message], name: str
) -> Callable[[Message], Message]:
    @wraps(hook)
    def checked(message: Message) -> Message:
        changed = hook(message)
        if changed is not message:
            _check_message(changed, message, f"{type_of(hook)}.{name}")
        return changed

    return checked


def type_of(hook: object) -> str:
    """Return the name of the middleware that a hook belongs to."""
    return type(getattr(hook, "__self__", hook)).__name__


def _check_message(changed: object, message: Message, hook: str) -> None:
    """Raise `ConfigurationError` unless a hook has returned a message that can be used."""
    if inspect.iscoroutine(changed):
        changed.close()  # it is reported here, and not as a coroutine that was never awaited
    if not isinstance(changed, Message):
        hint = ", and it returned without a value" if changed is None else ""
        raise ConfigurationError(
            f"the middleware's {hook} must return a Message, not {described(changed)}{hint}: "
            f"return the message, or dataclasses.replace(message, ...), for message {message.id}"
        )
    if not isinstance(changed.body, bytes):
        raise ConfigurationError(
            f"the middleware's {hook} returned message {message.id} with a body that is not bytes "
            f"but {described(changed.body)}"
        )
    if not isinstance(changed.headers, Mapping) or not all(
        isinstance(text, str) for pair in changed.headers.items() for text in pair
    ):
        raise ConfigurationError(
            f"the middleware's {hook} returned message {message.id} with headers that are not a "
            "mapping of text to text"
        )
