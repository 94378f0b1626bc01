"""Groups of options that several commands share.

Typer makes an option of each parameter of a function. Here a parameter may also be a dataclass of
options, for instance those that name the broker. `expanded` shows the fields of the dataclass to
Typer, and builds the dataclass from the given options.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

import typer
from typer.core import TyperGroup

__all__ = ["DefaultToList", "command", "expanded"]


def expanded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function for Typer: a parameter of a dataclass type becomes its fields."""
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
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it
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
    """Add a function as a command. Its parameters may be groups of options."""
    app.command(name)(expanded(function))


class DefaultToList(TyperGroup):
    """A group whose default command is `list`: `mqcore queues` runs `mqcore queues list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `list`, unless the first word is a command or asks for help."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)
