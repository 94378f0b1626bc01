"""How a handler can be called: its parameters and annotations, also of partials and wrappers.

    partial(handler, db)        → the function, without its first parameter
    service.handle              → the function of the class, without `self`
    @retrying def handler(…)    → the function that functools.wraps names

All of it is decided when the handler is registered. A handler that could not be called rightly is a
`ConfigurationError` with the reason, and not a failure of each message.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Collection, Iterable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from mqcore.consuming.consumer import Received
from mqcore.consuming.context import BlockingContext, Context, DeliveryInfo
from mqcore.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Signature", "handler_name"]

_LISTS = (list, Sequence, MutableSequence, Collection, Iterable)
_NUMBERS = {int, float, complex}
_UNKNOWN = object()
"""The annotation of a parameter that has none, or one that cannot be read."""


@dataclass(frozen=True)
class Signature:
    """What a handler takes.

    `payload` is the type of the payload by the handler's annotation, for a batch the type of one
    item's; None when it has no annotation. `unreadable` says why the annotations cannot be read.
    """

    is_async: bool
    takes_context: bool
    payload: Any = None
    unreadable: str = ""
    first: str = ""

    @classmethod
    def of(cls, call: Callable[..., Any], where: str, *, batched: bool, process: bool) -> Signature:
        """Look at a handler.

        Raises `ConfigurationError` for one that cannot be called with a payload.
        """
        _check_kind(call, where)
        functions = list(_functions(call))
        is_async = inspect.iscoroutinefunction(functions[0])
        _check_functions(functions, where, process=process)

        hints, unreadable = _hints(functions[-1])
        parameters = _parameters(call, hints, where)
        first, *more = [(each.name, hints.get(each.name, _UNKNOWN)) for each in parameters]
        _check_self(call, parameters[0], where)

        if batched:
            payload = _payload_of_items(*first, where)
        else:
            payload = _payload_of_one(*first, where)
            contexts = (
                [Context, BlockingContext]
                if process
                else [Context if is_async else BlockingContext]
            )
            for name, annotation in more:
                _check_context(name, annotation, contexts, where)

        return cls(
            is_async, bool(more), None if payload is _UNKNOWN else payload, unreadable, first[0]
        )

    def check_payload(self, kind: object, where: str) -> None:
        """Raise `ConfigurationError` when the queue carries values that the annotation excludes."""
        carried, *others = (get_origin(each) or each for each in _choices(kind))
        is_known = isinstance(carried, type) and not others and self.payload is not None
        if not is_known or _admits(self.payload, carried):
            return

        wanted = getattr(self.payload, "__name__", self.payload)
        raise ConfigurationError(
            f"{where}: parameter {self.first!r} is annotated as {wanted}, and the queue carries "
            f"{carried.__name__}. "
            f"Declare Queue(..., {wanted}), or change the annotation"
        )


def handler_name(call: object) -> str:
    """Return a name for logs; never a `repr`, which shows what a partial or an object holds."""
    while isinstance(call, functools.partial):
        call = call.func
    name = getattr(call, "__qualname__", None)
    return name if isinstance(name, str) else type(call).__qualname__


def _check_kind(call: object, where: str) -> None:
    if isinstance(call, classmethod):
        raise ConfigurationError(
            f"{where}: a classmethod has no class while the class body runs. "
            "Register it after the class is defined: app.register(queue, Class.method, {})"
        )

    if inspect.isclass(call) or not callable(call):
        kind = (
            f"the class {call.__qualname__}"
            if inspect.isclass(call)
            else f"{type(call).__name__!r}"
        )
        raise ConfigurationError(
            f"{where}: {kind} is not a handler. Register a function or a method of an instance"
        )


def _functions(call: Any) -> Iterator[Any]:
    """Yield the function that is called, and below it those that it wraps."""
    seen: set[int] = set()  # __wrapped__ may lead into a circle

    while id(call) not in seen:
        seen.add(id(call))
        wrapped = getattr(call, "__wrapped__", None)

        if isinstance(call, functools.partial):
            call = call.func
        elif inspect.ismethod(call) or isinstance(call, staticmethod):
            call = call.__func__
        elif inspect.isroutine(call):
            yield call
            call = wrapped or call
        else:
            yield type(call).__call__
            call = wrapped or call


def _check_functions(functions: Sequence[Any], where: str, *, process: bool) -> None:
    called, *wrapped = functions

    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise ConfigurationError(
            f"{where}: a generator is not a handler. Return when the message is handled"
        )

    if process or inspect.iscoroutinefunction(
        called
    ):  # what a child's handler returns is awaited there
        return

    kinds = {
        "an async function": inspect.iscoroutinefunction,
        "a generator": inspect.isgeneratorfunction,
        "an async generator": inspect.isasyncgenfunction,
    }
    for kind, is_kind in kinds.items():
        if any(map(is_kind, wrapped)):
            raise ConfigurationError(
                f"{where}: a plain function wraps {kind}, and whether it runs it to its end "
                "cannot be known. "
                "Write the wrapper as `async def` and await the function in it"
            )


def _hints(function: Any) -> tuple[dict[str, Any], str]:
    """Return the annotations of a function, and why they cannot be read."""
    try:
        return get_type_hints(function, include_extras=True), ""
    except Exception as error:  # noqa: BLE001 - annotations are code of the user's
        return {}, f"{type(error).__name__}: {error}"


def _parameters(call: Any, hints: dict[str, Any], where: str) -> list[inspect.Parameter]:
    """Return the parameters that a message fills: the payload, and the context if there is one."""
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # whose text shows what a partial holds
        raise ConfigurationError(
            f"{where}: its parameters cannot be read. It is a partial whose arguments do not "
            "fit, or a builtin"
        ) from None

    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    everything = list(signature.parameters.values())
    plain = [each for each in everything if each.kind in positional]
    required = [each for each in plain if each.default is each.empty]
    keywords = [
        each for each in everything if each.kind is each.KEYWORD_ONLY and each.default is each.empty
    ]

    if keywords or not 1 <= len(required) <= len(("payload", "context")):
        raise ConfigurationError(
            f"{where}: a handler takes the payload, or the payload and a context; "
            f"{_shown(everything)}"
            + (". Give keyword arguments by functools.partial" if keywords else "")
        )

    filled = required
    if len(required) == 1 and len(plain) > 1 and _names_context(hints.get(plain[1].name, _UNKNOWN)):
        filled = plain[:2]  # ctx: Context | None = None

    for each in everything:
        if each not in filled and _names_context(hints.get(each.name, _UNKNOWN)):
            raise ConfigurationError(
                f"{where}: parameter {each.name!r} is annotated as a context and would never "
                "get one. "
                "The context is the second parameter, after the payload"
            )
    return filled


def _shown(parameters: Sequence[inspect.Parameter]) -> str:
    """Name the parameters without their defaults, which may be secrets that a partial holds."""
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
    names = [stars.get(each.kind.name, "") + each.name for each in parameters]
    hint = (
        ". A wrapper needs functools.wraps"
        if any(each.kind.name in stars for each in parameters)
        else ""
    )
    return f"this one takes ({', '.join(names)}){hint}"


def _check_self(call: Any, first: inspect.Parameter, where: str) -> None:
    """A function of a class body would get the payload as `self`."""
    while isinstance(call, functools.partial):
        call = call.func
    if inspect.isfunction(call) and first.name in {"self", "cls"}:
        raise ConfigurationError(
            f"{where}: it is a method without its object, and its {first.name!r} would be the "
            "payload. "
            "Register the method of an instance: app.register(queue, instance.method, {})"
        )


def _payload_of_one(name: str, annotation: Any, where: str) -> Any:
    if _names_context(annotation):
        raise ConfigurationError(
            f"{where}: parameter {name!r} is annotated as a context and would get the payload. "
            "The payload comes first, then the context"
        )

    items = [annotation, *(item for each in _choices(annotation) for item in get_args(each))]
    if any((get_origin(item) or item) is Received for item in items):
        raise ConfigurationError(
            f"{where}: parameter {name!r} is annotated with Received, which a handler with "
            "batch= gets"
        )
    return annotation


def _payload_of_items(name: str, annotation: Any, where: str) -> Any:
    lists = [each for each in _choices(annotation) if (get_origin(each) or each) in _LISTS]
    if not lists:
        if _admits(annotation, list):
            return _UNKNOWN
        raise ConfigurationError(
            f"{where}: a handler with batch= gets a list, and parameter {name!r} is annotated as "
            f"{getattr(annotation, '__name__', annotation)}. Annotate it as list[Received[...]]"
        )

    [item] = get_args(lists[0]) or [Any]
    if (get_origin(item) or item) is Received:
        return (get_args(item) or (_UNKNOWN,))[0]
    if _admits(item, Received):
        return _UNKNOWN
    raise ConfigurationError(
        f"{where}: the items of a batch are received messages, and their payload is item.value. "
        f"Annotate {name!r} as list[Received[{getattr(item, '__name__', item)}]]"
    )


def _check_context(name: str, annotation: Any, contexts: Sequence[type], where: str) -> None:
    if any(_admits(annotation, context) for context in contexts):
        return

    if _names_context(annotation):
        raise ConfigurationError(
            f"{where}: parameter {name!r} gets a {contexts[0].__name__}, and is annotated as "
            f"{getattr(annotation, '__name__', annotation)}. An async handler gets a Context, a "
            "blocking one a BlockingContext"
        )
    raise ConfigurationError(
        f"{where}: parameter {name!r} would get the context, and is annotated as "
        f"{getattr(annotation, '__name__', annotation)}. Give other arguments by "
        "functools.partial or from ctx.state"
    )


def _choices(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself; without `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _choices(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return [choice for each in get_args(annotation) for choice in _choices(each)]
    return [annotation]


def _names_context(annotation: Any) -> bool:
    return any(
        isinstance(each, type) and issubclass(each, DeliveryInfo) for each in _choices(annotation)
    )


def _admits(annotation: Any, kind: type) -> bool:
    """Whether an annotation may describe a value of `kind`; only a plain class can exclude it."""
    for each in _choices(annotation):
        declared = get_origin(each) or each
        if (
            declared is Any
            or not isinstance(declared, type)
            or getattr(declared, "_is_protocol", False)
        ):
            return True
        if issubclass(kind, declared) or {kind, declared} <= _NUMBERS:
            return True
    return False
