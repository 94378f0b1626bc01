"""Which backend serves a URL, found among the installed plugins.

Nothing is imported before it is asked for.

Plugins announce themselves by entry points in the group `mqcore`. By convention an entry point's
name is the URL scheme that it serves, so `backend_for("redis")` imports one module. A plugin that
is broken or lacks its client library breaks nothing but its own scheme, and the error says what to
install. No message passes through here.
"""

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from mqcore.config import hookspecs
from mqcore.errors import BackendNotFound, ConfigurationError
from mqcore.messages.codec import Codec, Codecs
from mqcore.spi import Backend

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

_SAID_ELSEWHERE = {
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
"""Schemes of other clients and libraries, and ours for the same broker."""


@dataclass(frozen=True, slots=True)
class Installed:
    """One line of `mqcore backends`: a scheme, who brings it, and its class, or why it cannot be used."""

    scheme: str
    distribution: str
    version: str
    backend: type[Backend] | None = None
    error: str | None = None


class Plugins:
    """The plugins that this process can use: those of installed distributions, and those registered in code.

    A plugin registered in code wins over an installed one of the same scheme. Several threads may
    ask at once, as brokers and those who renew their leases do.
    """

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        """Take the entry points to choose from; None: all installed ones, which are looked up when first needed."""
        self._lock = threading.RLock()
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._given = points
        self._points: list[EntryPoint] | None = None
        self._backends: list[tuple[type[Backend], EntryPoint | None]] = []
        self._tried: dict[
            int, BackendNotFound | None
        ] = {}  # by id: equal entry points may be of two distributions

    def register(self, plugin: object) -> None:
        """Add a plugin that has no entry point: a module or any object whose functions are marked with `hookimpl`.

        Registering it again changes nothing. Raises `ConfigurationError` when it implements a hook
        that there is not, or what it registers is no Backend class.
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
        """Return the backend class that serves a URL scheme, importing just the plugin of that name if there is one.

        Raises `BackendNotFound` when none serves it or when its plugin cannot be imported, saying
        what to install, and `ConfigurationError` when two claim it.
        """
        with self._lock:
            return self._backend_for(scheme.lower())

    def _backend_for(self, scheme: str) -> type[Backend]:
        if found := self._registered(scheme, in_code=True):
            return found
        named = [point for point in self._entry_points() if point.name.lower() == scheme]
        if len({_who(point) for point in named}) > 1:
            raise _claimed_twice(scheme, [_who(point) for point in named])
        for point in named or self._entry_points():
            error = self._load(point)
            if named and error is not None:
                raise error
        if found := self._registered(scheme):
            return found
        raise BackendNotFound(self._nobody(scheme, named))

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
        return self._nobody(scheme, [])

    def codecs(self, names: Sequence[str] | None = None) -> Codecs:
        """Return the allow-list of the named codecs (None: the built-in ones); others are looked for among the plugins.

        Raises `ConfigurationError` when no plugin brings a codec of that name, or two claim it.
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
        """Import every plugin and return its CLI applications; a plugin that cannot be imported is left out."""
        self._load_all()
        return self._ask("mqcore_register_cli")

    def installed(self) -> list[Installed]:
        """Import every plugin and return a line for each scheme, sorted, with the reason where it cannot be used."""
        broken = self._load_all()
        lines = [self._line_of(scheme, point) for scheme, point in self._schemes()]
        lines += [Installed(point.name, *_who(point), error=str(error)) for point, error in broken]
        return sorted(lines, key=lambda line: (line.scheme, line.distribution))

    def _line_of(self, scheme: str, point: EntryPoint | None) -> Installed:
        try:
            return Installed(scheme, *_who(point), backend=self.backend_for(scheme))
        except ConfigurationError as error:
            return Installed(scheme, *_who(point), error=str(error))

    def _entry_points(self) -> list[EntryPoint]:
        if self._points is None:
            given = entry_points(group=GROUP) if self._given is None else self._given
            self._points = list(given)
        return self._points

    def _load(self, point: EntryPoint) -> BackendNotFound | None:
        """Import one plugin, once, and register it; return the error when that failed, for whoever asks for its scheme."""
        if id(point) not in self._tried:
            try:
                self._admit(point.load(), point)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code runs here, and may fail in any way
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
        """Register a plugin and ask at once for its backends: its hook may be what imports a client library."""
        if self._manager.is_registered(plugin):
            return
        others = self._manager.get_plugins()
        self._manager.register(plugin)
        try:
            self._manager.check_pending()
            caller = self._manager.subset_hook_caller("mqcore_register_backends", others)
            found = [backend for given in caller() for backend in given]
            for backend in found:
                _schemes_of(backend)
        except BaseException:
            self._manager.unregister(plugin)
            raise
        self._backends += [(backend, point) for backend in found]

    def _ask(self, hook: str) -> list[Any]:
        """Call a hook of every plugin imported so far, and return what they answered as one list."""
        try:
            return [item for given in getattr(self._manager.hook, hook)() for item in given]
        except Exception as error:
            raise ConfigurationError(f"a plugin's {hook} failed: {_line(error)}") from error

    def _schemes(self) -> list[tuple[str, EntryPoint | None]]:
        return [
            (scheme, point) for backend, point in self._backends for scheme in _schemes_of(backend)
        ]

    def _registered(self, scheme: str, *, in_code: bool = False) -> type[Backend] | None:
        """Return the one backend class that is registered for a scheme; those registered in code come first."""
        serving = [
            (backend, point) for backend, point in self._backends if scheme in _schemes_of(backend)
        ]
        chosen = [claim for claim in serving if claim[1] is None]
        if not in_code:
            chosen = chosen or serving
        if len({backend for backend, _ in chosen}) > 1:
            raise _claimed_twice(scheme, [_who(point) for _, point in chosen])
        return chosen[0][0] if chosen else None

    def _codec(self, name: str) -> Codec:
        points = self._entry_points()
        for point in [point for point in points if point.name == name] or points:
            self._load(point)
        found: list[Codec] = [
            codec for codec in self._ask("mqcore_register_codecs") if codec.name == name
        ]
        if len(found) > 1:
            raise ConfigurationError(
                f"codec {name!r} is brought by two plugins; uninstall one of them"
            )
        if not found:
            raise ConfigurationError(
                f"codec {name!r}: no installed plugin brings it{self._unusable()}"
            )
        return found[0]

    def _nobody(self, scheme: str, named: Sequence[EntryPoint]) -> str:
        serving = sorted(
            {
                *(point.name for point in self._entry_points()),
                *(served for served, _ in self._schemes()),
            }
        )
        text = (
            f"no installed plugin serves {scheme!r:.60}; installed are: "
            f"{', '.join(serving) or 'none'}"
        )
        if named:
            return (
                f"the plugin {named[0].name!r} of {' '.join(_who(named[0]))} serves no "
                f"{scheme!r}; {text}"
            )
        if extra := _BUILT_IN_EXTRAS.get(scheme):
            return f"{text}. It comes with: pip install 'mqcore[{extra}]'"
        if ours := _SAID_ELSEWHERE.get(scheme):
            return f"{text}. Write {ours}:// for this broker"
        if close := get_close_matches(scheme, {*serving, *_BUILT_IN_EXTRAS}, n=1):
            return f"{text}. Did you mean {close[0]!r}?"
        return text + self._unusable()

    def _unusable(self) -> str:
        return "".join(f". {error}" for error in self._tried.values() if error is not None)


@lru_cache(maxsize=1)
def default_plugins() -> Plugins:
    """Return the process's own `Plugins`, made when first asked for."""
    return Plugins()


def _schemes_of(backend: object) -> tuple[str, ...]:
    """Return the schemes that a backend class serves; raises `ConfigurationError` for what is no such class."""
    if not (isinstance(backend, type) and issubclass(backend, Backend)):
        raise ConfigurationError(
            f"the plugin registers {backend!r:.100}, which is no Backend class"
        )
    if missing := ", ".join(sorted(backend.__abstractmethods__)):
        raise ConfigurationError(
            f"the backend {backend.__qualname__} is not complete: it lacks {missing}"
        )
    schemes = (backend.scheme,) if isinstance(backend.scheme, str) else tuple(backend.scheme)
    for scheme in schemes:
        if not _SCHEME.fullmatch(scheme):
            raise ConfigurationError(
                f"{backend.__qualname__}.scheme {scheme!r:.60} is no URL scheme in lower case"
            )
    return schemes


def _who(point: EntryPoint | None) -> tuple[str, str]:
    """Return name and version of the distribution that an entry point belongs to."""
    if point is None:
        return "(registered in code)", ""
    return (point.dist.name, point.dist.version) if point.dist else (point.value, "")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}".removesuffix(": ")


def _broken(point: EntryPoint, error: BaseException) -> BackendNotFound:
    name, version = _who(point)
    needs = f"{name}[{','.join(point.extras)}]" if point.extras else name
    text = (
        f"the plugin {point.name!r} of {name} {version} cannot be used: {_line(error)}. "
        f"Install what it needs: pip install {needs!r}"
    )
    found = BackendNotFound(text)
    found.__cause__ = error
    return found


def _claimed_twice(scheme: str, claims: Sequence[tuple[str, str]]) -> ConfigurationError:
    names = " and ".join(sorted({" ".join(claim).strip() for claim in claims}))
    return ConfigurationError(
        f"the scheme {scheme!r} is claimed twice, by {names}; uninstall one of them"
    )
