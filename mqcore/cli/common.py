"""What all commands share: the broker to use, the user's app, the confirmation of a question.

`At` has the options `--url` and `--json`. `At.run` reads the settings, connects, and runs one piece
of work with a time limit. It refuses an empty `memory://`, which no other process can fill.
"""

import asyncio
import importlib
import logging
import re
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from mqcore.app import App
from mqcore.broker import Broker, session_of
from mqcore.config.settings import Settings
from mqcore.config.url import BrokerUrl
from mqcore.errors import BrokerError, ConfigurationError
from mqcore.spi import SupportsExists

__all__ = ["LONELY", "At", "Json", "confirm", "is_local", "load_app", "place_of", "quiet"]

R = TypeVar("R")
_PATIENCE = 30.0
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
LONELY = (
    "memory:// lives in one process, and this command runs in another: whatever the application "
    "has put there cannot be seen from here. Use a broker that processes share (`mqcore "
    "backends`), or mqcore's API inside the application"
)
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]


@dataclass(frozen=True)
class At:
    """The broker to use, and the output format."""

    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The broker. Without it: MQCORE_URL, mqcore.toml, \\[tool.mqcore] in "
            "pyproject.toml, memory://.",
        ),
    ] = field(default=None, repr=False)
    json: Json = False

    def settings(self) -> Settings:
        """Read the settings; this URL overrides theirs. Raises `ConfigurationError`."""
        return Settings.load(url=None if self.url is None else BrokerUrl(self.url))

    def run(
        self,
        work: Callable[[Broker], Awaitable[R]],
        *,
        patience: float | None = _PATIENCE,
        demanding: bool = True,
    ) -> R:
        """Connect, do the work and return its result.

        `patience` is the limit in seconds for everything, None for no limit. With `demanding=False`
        any broker will do: one with less durability than the settings ask for, and an empty one in
        this process. Storage that is missing, such as a file, is not created. Raises the errors of
        the work, `ConfigurationError`, and `BrokerError` when the time is over.
        """
        # A command asks the broker itself, also where the application runs without it.
        settings = self.settings().model_copy(update={"fallback": None, "enabled": True})
        durability = settings.durability if demanding else None

        async def connected() -> R:
            with _ended_by_sigterm():
                broker = Broker.connect(settings=settings, durability=durability, outbox=None)
                _check_exists(broker)
                async with asyncio.timeout(patience), broker:
                    if demanding and is_local(broker) and not await broker.counts():
                        raise ConfigurationError(LONELY)
                    return await work(broker)

        with quiet():
            try:
                return asyncio.run(connected())
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None
            except TimeoutError as error:
                raise BrokerError(
                    f"no answer from {settings.url} within {patience or 0:g} s"
                ) from error


def _check_exists(broker: Broker) -> None:
    """Raise `BrokerError` where connecting would create the storage."""
    backend = session_of(broker).connection.backend
    if isinstance(backend, SupportsExists) and not backend.exists():
        raise BrokerError(
            f"there is nothing at {backend.url} yet. It is created by the first application that "
            "connects. Check the URL if one has connected"
        )


def is_local(broker: Broker) -> bool:
    """Whether the broker is in this process."""
    return broker.is_local


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress mqcore's warnings on standard error if logging is not configured.

    A command reports an error in one line of its own.
    """
    logger, silent = logging.getLogger("mqcore"), logging.NullHandler()
    logger.addHandler(silent)
    try:
        yield
    finally:
        logger.removeHandler(silent)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Make SIGTERM end a command as Ctrl-C does, so that leased messages are released."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    task, loop = asyncio.current_task(), asyncio.get_running_loop()

    def end(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.raise_signal(signal.SIGINT)
        elif task is not None:  # a shell without job control lets `command &` ignore SIGINT
            loop.call_soon_threadsafe(task.cancel)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def confirm(question: str, *, yes: bool) -> None:
    """Return when the user agrees.

    Raises `ConfigurationError` without a terminal to ask at, `typer.Abort` for a no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{question} There is no terminal to ask at: add --yes")
    if not typer.confirm(question, err=True):
        raise typer.Abort


def load_app(target: str) -> App:
    """Import `MODULE:APP` from the working directory or the installed packages.

    Raises `ConfigurationError` when the target has another form, is not an `App`, or cannot be
    imported; the text names the line of the user's code that failed.
    """
    if not _TARGET.fullmatch(target):
        raise ConfigurationError(
            f"{target!r:.200} is not of the form MODULE:APP, for instance shop:app"
        )

    name, _, attribute = target.partition(":")
    target_object: object = _import(name)

    for part in attribute.split("."):
        if not hasattr(target_object, part):
            apps = [key for key, value in vars(sys.modules[name]).items() if isinstance(value, App)]
            raise ConfigurationError(
                f"module {name!r} has no {attribute!r}; its apps are: {', '.join(apps) or 'none'}"
            )
        target_object = getattr(target_object, part)

    if not isinstance(target_object, App):
        raise ConfigurationError(f"{target} is a {type(target_object).__name__}, not an mqcore App")
    return target_object


def _import(name: str) -> object:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name
            and f"{name}.".startswith(f"{error.name}.")
        ):
            hint = f"; write {name.removesuffix('.py')}:APP" if name.endswith(".py") else ""
            text = (
                f"there is no module {error.name!r} in the working directory or among the "
                f"installed packages{hint}"
            )
        else:
            text = (
                f"module {name!r} cannot be imported: {type(error).__name__}: "
                f"{error}{place_of(error)}"
            )

        raise ConfigurationError(text) from error


def place_of(error: BaseException) -> str:
    """Return where the user's code failed, as ` (file, line N)`.

    This is the innermost place outside libraries and mqcore.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})" if "line" not in str(error) else ""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parents[1])
    libraries = (
        "site-packages",
        "dist-packages",
        str(Path(asyncio.__file__).parents[1]),
        "<frozen",
        ours,
    )
    own = [frame for frame in frames if not any(part in frame.filename for part in libraries)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
