"""The parameters and the result of a task: how they are checked, and what they are in the store.

Arguments are one JSON object by the names of the parameters. They are bound to the function's
signature and checked strictly when the task is sent, and read by the same types when it runs.
"""

from __future__ import annotations

import inspect
import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from mqcore.errors import ConfigurationError, MqcoreError, ValidationError
from mqcore.messages.codec import Codecs, Payload
from mqcore.tasks.context import TaskContext

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["JSON", "Parameters", "json_payload"]

JSON = Codecs.default()
_TYPE = "application/json"
_PLAIN = inspect.Parameter.POSITIONAL_OR_KEYWORD
_NAMED = frozenset({_PLAIN, inspect.Parameter.KEYWORD_ONLY})
_STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Parameters:
    """What a task takes and returns. Raises `ConfigurationError` for what could not be checked."""

    def __init__(self, function: Callable[..., Any], where: str) -> None:
        """Read the signature. `where` begins the texts of errors."""
        self._where = where
        try:
            hints = get_type_hints(function, include_extras=True)
        except Exception as error:
            raise ConfigurationError(
                f"{where}: its annotations cannot be read ({type(error).__name__}: {error}). "
                "Import their types at the top of the module, outside of TYPE_CHECKING"
            ) from error

        own = list(inspect.signature(function).parameters.values())
        self.takes_context = bool(own) and hints.get(own[0].name) is TaskContext
        own = own[self.takes_context :]
        if any(hints.get(each.name) is TaskContext for each in own):
            raise ConfigurationError(f"{where}: the TaskContext is the first parameter")

        self.signature = inspect.Signature(own)
        self.first = own[0].name if own and own[0].kind not in _STARS else ""
        """The parameter that takes the result of the step before; empty without one."""
        self._names = frozenset(each.name for each in own)
        self._kinds = frozenset(each.kind for each in own)
        fields = {each.name: _annotation(each, hints) for each in own}
        self._arguments = json_payload(_typed(function, fields), f"{where}: its parameters")
        self._result = json_payload(hints.get("return", Any), f"{where}: its result")

    def encode(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, is_step: bool = False
    ) -> str:
        """Return the arguments as JSON. Those of a step are without the first one.

        Raises `ValidationError` when they do not fit.
        """
        if is_step and not self.first:
            raise ValidationError(
                f"{self._where}: it has no parameter for the result of the step before"
            )
        arguments = self._bound((None, *args) if is_step else args, kwargs)
        if is_step:
            del arguments[self.first]
        return self._checked(self._arguments, arguments).decode()

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, as a call of the function binds them."""
        if self._kinds <= {_PLAIN} and len(args) + len(kwargs) == len(self._names):
            by_name = {**dict(zip(self.signature.parameters, args, strict=False)), **kwargs}
            if by_name.keys() == self._names:  # each once: a fifth of the time of `bind`
                return by_name
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ValidationError(f"{self._where}: {error}") from None
        return {
            name: list(value) if isinstance(value, tuple) and self._is_star(name) else value
            for name, value in bound.arguments.items()
        }

    def _is_star(self, name: str) -> bool:
        return self.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL

    def completed(self, arguments: str, argument: object) -> str:
        """Return the arguments of a step with the first one. Raises `ValidationError`."""
        first = self._checked(self._arguments, {self.first: argument}).decode()
        return first if arguments == "{}" else f"{first[:-1]},{arguments[1:]}"

    def decode(
        self, arguments: str, given: str | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what to call the function with; `given` is the first argument of a step, as JSON.

        Raises `ValidationError` when it does not fit the types any more.
        """
        if given is not None:
            rest = arguments[1:] if arguments == "{}" else f",{arguments[1:]}"
            arguments = f'{{"{self.first}":{given}{rest}'
        try:
            values: dict[str, Any] = self._arguments.decode(arguments.encode(), _TYPE, JSON)
        except MqcoreError as error:
            raise ValidationError(f"{self._where}: {error}") from None

        if self._kinds <= _NAMED:
            return (), values
        bound = inspect.BoundArguments(self.signature, OrderedDict())
        bound.arguments.update(
            (name, values[name]) for name in self.signature.parameters if name in values
        )
        return bound.args, bound.kwargs

    def encode_result(self, value: object) -> bytes:
        """Return a result as JSON. Raises `ValidationError`."""
        return self._checked(self._result, value)

    def decode_result(self, result: str) -> Any:
        """Return the value of a result."""
        return self._result.decode(result.encode(), _TYPE, JSON)

    def decode_results(self, results: str) -> list[Any]:
        """Return the values of a list of results."""
        return [self.decode_result(json.dumps(each)) for each in json.loads(results)]

    def _checked(self, payload: Payload[Any], value: object) -> bytes:
        try:
            return payload.encode(value, JSON)[0]
        except ValidationError as error:
            raise ValidationError(f"{self._where}: {error}") from None


def json_payload(kind: Any, where: str) -> Payload[Any]:
    """Return a payload of any type that pydantic can check, written as JSON."""
    try:
        return Payload(kind if isinstance(kind, type) else TypeAdapter(kind), "json")
    except Exception as error:
        raise ConfigurationError(f"{where} cannot be checked: {error}") from error


def _annotation(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    kind: Any = hints.get(parameter.name, Any)
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return list.__class_getitem__(kind)
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return dict.__class_getitem__((str, kind))
    return kind


def _typed(function: Callable[..., Any], fields: dict[str, Any]) -> Any:
    """Return the type of the arguments by name. None has to be there: a step lacks the first."""
    make: Any = TypedDict
    kind = make(getattr(function, "__name__", "task"), fields, total=False)
    kind.__pydantic_config__ = ConfigDict(extra="forbid")
    return kind
