"""The application of all commands, and their exit codes.

`run` builds the Typer application, which finds and calls the command. Every error becomes an exit
code and at most one line on standard error. Plugins may add commands; they are imported only when
the first word is not a command of mqcore.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Protocol, runtime_checkable

import typer

from mqcore.cli import (
    backends,
    background,
    contract,
    dlq,
    doctor,
    messages,
    new_backend,
    queues,
    relay,
    routes,
    schedule,
    tasks,
    worker,
)
from mqcore.cli.common import place_of
from mqcore.cli.options import command
from mqcore.cli.output import one_line
from mqcore.config.plugins import default_plugins
from mqcore.errors import (
    ConfigurationError,
    MessageError,
    MessageTooLarge,
    MqcoreError,
    QueueNotFound,
)
from mqcore.rules.redact import mask_text
from mqcore.tasks.errors import UnknownTask
from mqcore.tasks.schedules.errors import UnknownSchedule

__all__ = ["application", "run"]

_BAD_INPUT = (
    ConfigurationError,
    MessageError,
    QueueNotFound,
    MessageTooLarge,
    UnknownSchedule,
    UnknownTask,
)
_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130
_TRACEBACK = "MQCORE_TRACEBACK"


@runtime_checkable
class _Usage(Protocol):
    """The exception of any version of Typer for wrong arguments."""

    exit_code: int

    def format_message(self) -> str: ...


def application(*, plugins: bool) -> typer.Typer:
    """Return the application with all commands; with `plugins`, also with those of plugins."""
    app = typer.Typer(
        name="mqcore",
        help="Message queues with one meaning on every broker: run workers, inspect queues, "
        "redrive dead letters.",
        epilog=f"Exit codes: 0 done, 1 failed or found problems, 2 wrong usage. {_TRACEBACK}=1 in "
        "the environment shows the traceback of an error.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback(invoke_without_command=True)(_root)
    command(app, "worker", worker.worker)
    command(app, "scheduler", schedule.scheduler)
    command(app, "relay", relay.relay)
    command(app, "publish", messages.publish)
    command(app, "peek", messages.peek)
    app.add_typer(queues.app)
    app.add_typer(dlq.app)
    app.add_typer(routes.app)
    app.add_typer(schedule.app)
    app.add_typer(tasks.app)
    app.add_typer(background.app)
    command(app, "backends", backends.backends)
    command(app, "doctor", doctor.doctor)
    app.add_typer(contract.app)
    command(app, "new-backend", new_backend.new_backend)
    if plugins:
        _add_plugins(app)
    return app


def _root(
    context: typer.Context,
    *,
    version_: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version_:
        print(f"mqcore {version('mqcore')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _names(app: typer.Typer) -> set[str]:
    """Return the names of all commands and groups."""
    groups = [
        each.typer_instance.info.name
        for each in app.registered_groups
        if each.typer_instance is not None
    ]
    return {
        name
        for name in [*(each.name for each in app.registered_commands), *groups]
        if isinstance(name, str)
    }


def _add_plugins(app: typer.Typer) -> None:
    """Add the commands of plugins. A broken plugin loses only its own commands."""
    try:
        additions = default_plugins().commands()
    except MqcoreError as error:
        _say(str(error))
        return

    for added in additions:
        name = added.info.name if isinstance(added, typer.Typer) else None
        if isinstance(added, typer.Typer) and isinstance(name, str) and name not in _names(app):
            app.add_typer(added)
        else:
            named = f" {name!r:.60}" if isinstance(name, str) else ""
            _say(
                f"a plugin's command{named} is left out: it is not a Typer application with an "
                "unused name"
            )


def run(argv: Sequence[str]) -> int:
    """Run the command that the arguments name, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A character that the terminal cannot show must not fail the command.
            stream.reconfigure(errors="backslashreplace")

    ours = application(plugins=False)
    app = ours if argv and argv[0] in _names(ours) else application(plugins=True)

    try:
        code = typer.main.get_command(app).main(
            args=list(argv), prog_name="mqcore", standalone_mode=False
        )
        sys.stdout.flush()
    except MqcoreError as error:
        return _end(str(error), error, _MISUSED if isinstance(error, _BAD_INPUT) else _FAILED)
    except (typer.Abort, KeyboardInterrupt) as error:
        return _end("interrupted, or answered with no: nothing more was done", error, _INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        if isinstance(error, _Usage):
            return _end(_usage(error), error, error.exit_code)
        what = f"{type(error).__name__}: {error}{place_of(error)}"
        return _end(
            f"{what}. {_TRACEBACK}=1 in the environment shows the traceback", error, _FAILED
        )

    return code if isinstance(code, int) else 0


def _usage(error: _Usage) -> str:
    context = getattr(error, "ctx", None)
    where = f" (see `{context.command_path} --help`)" if context is not None else ""
    return f"{error.format_message().replace('Value error, ', '').rstrip('.')}{where}"


def _end(text: str, error: BaseException, code: int) -> int:
    if os.environ.get(_TRACEBACK):
        for line in "".join(traceback.format_exception(error)).splitlines():
            print(mask_text(line), file=sys.stderr)
    _say(text)
    return code


def _say(text: str) -> None:
    print(f"mqcore: {one_line(text)}", file=sys.stderr)
