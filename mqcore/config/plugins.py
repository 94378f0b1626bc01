"""Finds the backend that serves a URL among the installed plugins.

A plugin has entry points in the group `mqcore`. The name of an entry point is the URL scheme that
it serves, so `backend_for("redis")` imports one module, and nothing is imported before it is
needed. A plugin that is broken or lacks its client library affects only its own scheme; the error
says what to install.
"""

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.metadata import version as distribution_version
from typing import Any

import pluggy

from mqcore.config import hookspecs
from mqcore.errors import BackendNotFound, ConfigurationError
from mqcore.messages.codec import Codec, Codecs
from mqcore.rules.checks import closest
from mqcore.spi import SPI_VERSION, Backend

__all__ = ["Installed", "Plugins", "default_plugins"]

GROUP = "mqcore"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_BUILT_IN_EXTRAS = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "sqlite": "sql",
    "postgresql": "sql",
}

_OTHER_NAMES = {
    "valkey": "redis",
    "valkeys": "rediss",
    "valkey+sentinel": "redis+sentinel",
    "valkey+cluster": "redis+cluster",
    "keydb": "redis",
    "dragonfly": "redis",
    "redis+socket": "unix",
    "redis+unix": "unix",
    "sentinel": "redis+sentinel",
    "rabbitmq": "amqp",
    "rabbitmqs": "amqps",
    "pyamqp": "amqp",
    "amqp+tls": "amqps",
    "mem": "memory",
    "inmemory": "memory",
}
"""Schemes of other libraries, and the scheme of mqcore for the same broker."""


@dataclass(frozen=True, slots=True)
class Installed:
    """One line of `mqcore backends`.

    A scheme, the distribution that serves it, and its class or the reason why it cannot be used.
    """

    scheme: str
    distribution: str
    version: str
    backend: type[Backend] | None = None
    error: str | None = None


class Plugins:
    """The plugins that this process can use: installed ones, and those registered in code.

    A plugin that is registered in code is preferred to an installed one of the same scheme. May be
    used from several threads at the same time.
    """

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        """Take the entry points to choose from; None means all installed ones, read when needed."""
        self._lock = threading.RLock()
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._given = points
        self._points: list[EntryPoint] | None = None
        self._backends: list[tuple[type[Backend], EntryPoint | None]] = []
        # By id, because equal entry points may belong to two distributions.
        self._tried: dict[int, BackendNotFound | None] = {}

    def register(self, plugin: object) -> None:
        """Add a plugin without an entry point: a module or object with functions marked `hookimpl`.

        Registering it again has no effect. Raises `ConfigurationError` when it implements an
        unknown hook, or registers something that is not a Backend class.
        """
        try:
            self._admit(plugin, None)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"the plugin {plugin!r:.100} is not usable: {_line(error)}"
            ) from error

    def backend_for(self, scheme: str) -> type[Backend]:
        """Return the backend class that serves a URL scheme.

        Imports only the plugin of that name, if there is one. Raises `BackendNotFound` when no
        plugin serves the scheme or its plugin cannot be imported; the text says what to install.
        Raises `ConfigurationError` when two plugins claim the scheme.
        """
        with self._lock:
            return self._backend_for(scheme.lower())

    def _backend_for(self, scheme: str) -> type[Backend]:
        if backend := self._registered(scheme, in_code=True):
            return backend
        named = [point for point in self._entry_points() if point.name.lower() == scheme]
        if len({_distribution(point) for point in named}) > 1:
            raise _claimed_twice(scheme, [_distribution(point) for point in named])
        for point in named or self._entry_points():
            error = self._load(point)
            if named and error is not None:
                raise error

        if backend := self._registered(scheme):
            return backend
        raise BackendNotFound(self._why_missing(scheme, named))

    def is_installed(self, scheme: str) -> bool:
        """Whether a plugin serves a URL scheme, or is named for it and may lack its client library.

        Imports plugins only for a scheme that no plugin is named for.
        """
        with self._lock:
            named = any(point.name.lower() == scheme for point in self._entry_points())
            if named or self._serves(scheme):
                return True
            self._load_all()
            return self._serves(scheme)

    def _serves(self, scheme: str) -> bool:
        return any(scheme == served for served, _ in self._schemes())

    def why_missing(self, scheme: str) -> str:
        """Say what to install, or to write instead, for a scheme that no plugin serves."""
        return self._why_missing(scheme, [])

    def codecs(self, names: Sequence[str] | None = None) -> Codecs:
        """Return the named codecs, or the built-in ones for None. Plugins may have further ones.

        Raises `ConfigurationError` when no plugin has a codec of that name, or two have one.
        """
        allowed = Codecs.default()
        if names is None:
            return allowed
        for name in names:
            if name not in allowed.names:
                with self._lock:
                    allowed = allowed.extended([self._codec(name)])
        return allowed.only(names)

    def commands(self) -> list[object]:
        """Import every plugin and return the CLI applications; broken plugins are left out."""
        self._load_all()
        return self._ask("mqcore_register_cli")

    def installed(self) -> list[Installed]:
        """Import every plugin and return a line for each scheme, sorted by scheme."""
        broken = self._load_all()
        lines = [self._line_of(scheme, point) for scheme, point in self._schemes()]
        lines += [
            Installed(point.name, *_distribution(point), error=str(error))
            for point, error in broken
        ]
        return sorted(lines, key=lambda line: (line.scheme, line.distribution))

    def _line_of(self, scheme: str, point: EntryPoint | None) -> Installed:
        try:
            return Installed(scheme, *_distribution(point), backend=self.backend_for(scheme))
        except ConfigurationError as error:
            return Installed(scheme, *_distribution(point), error=str(error))

    def _entry_points(self) -> list[EntryPoint]:
        if self._points is None:
            given = entry_points(group=GROUP) if self._given is None else self._given
            self._points = list(given)
        return self._points

    def _load(self, point: EntryPoint) -> BackendNotFound | None:
        """Import and register a plugin, once. Return the error if that failed."""
        if id(point) not in self._tried:
            try:
                self._admit(point.load(), point)
            except BackendNotFound as error:
                self._tried[id(point)] = error
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's own code may raise anything
                self._tried[id(point)] = _broken(point, error)
            else:
                self._tried[id(point)] = None
        return self._tried[id(point)]

    def _load_all(self) -> list[tuple[EntryPoint, BackendNotFound]]:
        return [
            (point, error)
            for point in self._entry_points()
            if (error := self._load(point)) is not None
        ]

    def _admit(self, plugin: object, point: EntryPoint | None) -> None:
        """Register a plugin and read its backends now: its hook may import a client library."""
        if self._manager.is_registered(plugin):
            return
        others = self._manager.get_plugins()
        self._manager.register(plugin)

        try:
            self._manager.check_pending()
            caller = self._manager.subset_hook_caller("mqcore_register_backends", others)
            backends = [backend for given in caller() for backend in given]
            for backend in backends:
                _schemes_of(backend)
                _check_version(backend, point)
        except BaseException:
            self._manager.unregister(plugin)
            raise

        self._backends += [(backend, point) for backend in backends]

    def _ask(self, hook: str) -> list[Any]:
        """Call a hook of every imported plugin, and return all answers as one list."""
        try:
            return [item for given in getattr(self._manager.hook, hook)() for item in given]
        except Exception as error:
            raise ConfigurationError(f"a plugin's {hook} failed: {_line(error)}") from error

    def _schemes(self) -> list[tuple[str, EntryPoint | None]]:
        return [
            (scheme, point) for backend, point in self._backends for scheme in _schemes_of(backend)
        ]

    def _registered(self, scheme: str, *, in_code: bool = False) -> type[Backend] | None:
        """Return the backend class that is registered for a scheme; those in code come first."""
        serving = [
            (backend, point) for backend, point in self._backends if scheme in _schemes_of(backend)
        ]
        chosen = [claim for claim in serving if claim[1] is None]
        if not in_code:
            chosen = chosen or serving
        if len({backend for backend, _ in chosen}) > 1:
            raise _claimed_twice(scheme, [_distribution(point) for _, point in chosen])
        return chosen[0][0] if chosen else None

    def _codec(self, name: str) -> Codec:
        points = self._entry_points()
        for point in [point for point in points if point.name == name] or points:
            self._load(point)
        codecs: list[Codec] = [
            codec for codec in self._ask("mqcore_register_codecs") if codec.name == name
        ]
        if len(codecs) > 1:
            raise ConfigurationError(
                f"codec {name!r} is registered by two plugins; uninstall one of them"
            )

        if not codecs:
            own = [codec.name for codec in self._ask("mqcore_register_codecs")]
            names = ", ".join([*Codecs.default().names, *own])
            raise ConfigurationError(
                f"codec {name!r}: no installed plugin has it; there are {names}{self._unusable()}"
            )

        return codecs[0]

    def _why_missing(self, scheme: str, named: Sequence[EntryPoint]) -> str:
        serving = sorted(
            {
                *(point.name for point in self._entry_points()),
                *(served for served, _ in self._schemes()),
            }
        )
        names = ", ".join(serving) or "none"
        text = f"no installed plugin serves {scheme!r:.60}; installed are: {names}"
        if named:
            return (
                f"the plugin {named[0].name!r} of {' '.join(_distribution(named[0]))} does not "
                f"serve {scheme!r}; {text}"
            )

        if extra := _BUILT_IN_EXTRAS.get(scheme):
            return f"{text}. It comes with: pip install 'mqcore[{extra}]'"
        if own_name := _OTHER_NAMES.get(scheme):
            return f"{text}. Write {own_name}:// for this broker"
        if (database := scheme.partition("+")[0]) != scheme and database in serving:
            return f"{text}. Write {database}://, without the name of a client library"
        if close := closest(scheme, {*serving, *_BUILT_IN_EXTRAS}):
            return f"{text}. Did you mean {close!r}?"
        return text + self._unusable()

    def _unusable(self) -> str:
        return "".join(f". {error}" for error in self._tried.values() if error is not None)


@lru_cache(maxsize=1)
def default_plugins() -> Plugins:
    """Return the `Plugins` of this process; they are made when first needed."""
    return Plugins()


def _schemes_of(backend: object) -> tuple[str, ...]:
    """Return the schemes that a backend class serves.

    Raises `ConfigurationError` for something that is not a Backend class.
    """
    if not (isinstance(backend, type) and issubclass(backend, Backend)):
        raise ConfigurationError(
            f"the plugin registers {backend!r:.100}, which is not a Backend class"
        )

    if missing := ", ".join(sorted(backend.__abstractmethods__)):
        raise ConfigurationError(f"the backend {backend.__qualname__} does not implement {missing}")
    schemes = (backend.scheme,) if isinstance(backend.scheme, str) else tuple(backend.scheme)

    for scheme in schemes:
        if not _SCHEME.fullmatch(scheme):
            raise ConfigurationError(
                f"{backend.__qualname__}.scheme {scheme!r:.60} is not a URL scheme in lower case"
            )

    return schemes


def _check_version(backend: type[Backend], point: EntryPoint | None) -> None:
    """Raise `BackendNotFound` for a backend that was written for another version of the seam."""
    version: object = backend.spi_version
    if version == SPI_VERSION:
        return

    name, release = _distribution(point)
    plugin = f"{name} {release}".strip()
    package = "the plugin" if point is None else repr(name)
    if isinstance(version, int) and version > SPI_VERSION:
        cure = "Upgrade mqcore: pip install --upgrade mqcore"
    else:
        cure = (
            f"Upgrade {package}, or install an mqcore with SPI version {version}. If you wrote it: "
            "follow the changelog of mqcore, then set spi_version in the Backend class"
        )
    raise BackendNotFound(
        f"the backend {backend.__qualname__} of {plugin} was written for version {version} of "
        f"mqcore.spi, and mqcore {distribution_version('mqcore')} has version {SPI_VERSION}. {cure}"
    )


def _distribution(point: EntryPoint | None) -> tuple[str, str]:
    """Return name and version of the distribution that an entry point belongs to."""
    if point is None:
        return "(registered in code)", ""
    return (point.dist.name, point.dist.version) if point.dist else (point.value, "")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}".removesuffix(": ")


def _broken(point: EntryPoint, error: BaseException) -> BackendNotFound:
    name, version = _distribution(point)
    needs = f"{name}[{','.join(point.extras)}]" if point.extras else name
    text = (
        f"the plugin {point.name!r} of {name} {version} cannot be used: {_line(error)}. Install "
        f"what it needs: pip install {needs!r}"
    )
    not_usable = BackendNotFound(text)
    not_usable.__cause__ = error
    return not_usable


def _claimed_twice(scheme: str, claims: Sequence[tuple[str, str]]) -> ConfigurationError:
    names = " and ".join(sorted({" ".join(claim).strip() for claim in claims}))
    return ConfigurationError(
        f"the scheme {scheme!r} is claimed twice, by {names}; uninstall one of them"
    )
