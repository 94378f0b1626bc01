"""How commands take their options: in groups, each described once.

Typer makes an option of each parameter of a function. Here a parameter may also be a dataclass of
options, such as where the broker is: `expanded` shows its fields to Typer, and puts what was given
together again for the function.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

import typer
from typer.core import TyperGroup

__all__ = ["DefaultToList", "command", "expanded"]


def expanded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as Typer shall see it: a parameter whose type is a dataclass stands for that dataclass's fields."""
    hints = get_type_hints(function, include_extras=True)
    groups = {
        name: hints[name]
        for name in inspect.signature(function).parameters
        if is_dataclass(hints[name])
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            parameters += _fields_of(groups[name])
        else:
            parameters.append(
                parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            )

    def call(**given: Any) -> Any:
        grouped = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        return function(**given, **grouped)

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # how a function is told to show another one
    return call


def _fields_of(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


def command(app: typer.Typer, name: str, function: Callable[..., Any]) -> None:
    """Make a function, whose parameters may be groups of options, a command of a Typer application."""
    app.command(name)(expanded(function))


class DefaultToList(TyperGroup):
    """A group that means its command `list` when no other is named: `mqcore queues` is `mqcore queues list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` in front, unless a command or a question for help stands there."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)
