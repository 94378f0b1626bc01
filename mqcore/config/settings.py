"""The settings: what an operator may set without changing code.

    arguments ► environment ► mqcore.toml ► [tool.mqcore] in pyproject.toml ► defaults

The environment has MQCORE_URL, MQCORE_DURABILITY, MQCORE_PUBLISH_TIMEOUT, MQCORE_OUTBOX,
MQCORE_FALLBACK and MQCORE_ENABLED.

The first source that has a value wins, value by value. A wrong option raises an error at start, in
one line that names the file and the option and never repeats a value.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
)

from mqcore.clock import Clock
from mqcore.config.fallback import FallbackOption
from mqcore.config.plugins import Plugins
from mqcore.config.url import BrokerUrl, parse_url
from mqcore.defaults import PUBLISH_TIMEOUT
from mqcore.errors import ConfigurationError
from mqcore.queue import QueueOptions
from mqcore.rules.capabilities import Durability
from mqcore.rules.checks import closest, described, no_such_option
from mqcore.rules.redact import is_secret, mask_url
from mqcore.rules.retry import Backoff, RetryPolicy, exponential, fixed, linear
from mqcore.rules.routing import Binding, Kind, check_binding
from mqcore.spi import Backend

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = [
    "BindingSettings",
    "BrokerUrl",
    "QueueSettings",
    "RetrySettings",
    "RouterSettings",
    "Settings",
    "mask_url",
    "open_backend",
    "options_for",
    "parse_url",
]

_FROM_ENVIRONMENT = (
    *("url", "durability", "publish_timeout", "outbox", "inbox"),
    *("fallback", "enabled"),
)
_WORDS = {"true": True, "1": True, "false": False, "0": False}
_PREFIX = "MQCORE_"
_SHOWN = 3

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


def _durability(value: object) -> object:
    if isinstance(value, str):
        words = [member.word for member in Durability]
        if value.lower() not in words:
            raise ValueError(f"it is one of {', '.join(words)}")
        return Durability[value.upper()]
    return value


def _dead_letter(value: object) -> str | Literal[False] | None:
    if value is None or value is False or (isinstance(value, str) and value):
        return value
    raise ValueError("give the name of a queue, or false for none")


def _masked(backends: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mask the backends' options that may be secret, for a dump of the settings."""
    return {
        scheme: {name: "***" if is_secret(name) else value for name, value in options.items()}
        for scheme, options in backends.items()
    }


class _Section(BaseModel):
    """A part of the settings: unknown options are refused, and errors do not repeat values."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class RetrySettings(_Section):
    """Overrides for a queue's retry policy. None keeps the code's value.

    `max_attempts`: how often a message is handled, the first run included (G10). `max_age`: seconds
    since the first publish after which a message is not retried. `backoff`: the kind of wait;
    naming one replaces the code's backoff as a whole. `base`: seconds; the wait of `fixed`, and the
    first wait of the others. `factor`: what `exponential` multiplies by. `step`: seconds that
    `linear` adds each time. `cap`: seconds; the longest wait. `jitter`: whether each wait is drawn
    at random between 0 and its length.
    """

    max_attempts: Annotated[int, Field(ge=1, strict=True)] | None = None
    backoff: Literal["exponential", "linear", "fixed"] | None = None
    base: NotNegative | None = None
    step: NotNegative | None = None
    cap: NotNegative | None = None
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False, strict=True)] | None = None
    jitter: Annotated[bool, Field(strict=True)] | None = None
    max_age: Seconds | None = None

    def policy(self, code: RetryPolicy) -> RetryPolicy:
        """Return the code's policy with these overrides.

        Only the code says which exceptions are retried. Naming a kind of backoff replaces the
        code's whole backoff. Raises `ConfigurationError` for an option that the backoff does not
        have.
        """
        changes: dict[str, Any] = {"backoff": self._backoff(code.backoff)}
        for name in ("max_attempts", "max_age"):
            if (value := getattr(self, name)) is not None:
                changes[name] = value
        return replace(code, **changes)

    def _backoff(self, code: Backoff) -> Backoff:
        unused = {
            "fixed": ("step", "factor", "cap"),
            "linear": ("factor",),
            "exponential": ("step",),
        }
        if self.backoff is not None:
            for name in unused[self.backoff]:
                if getattr(self, name) is not None:
                    raise ConfigurationError(
                        f"{name} has no effect on a {self.backoff} backoff; leave it out"
                    )
            first = 1.0 if self.base is None else self.base
            step = first if self.step is None else self.step
            code = {
                "fixed": fixed(first),
                "linear": replace(linear(step), base=first),
                "exponential": exponential(first),
            }[self.backoff]

        given = {name: getattr(self, name) for name in ("base", "step", "cap", "factor", "jitter")}
        return replace(code, **{name: value for name, value in given.items() if value is not None})


class QueueSettings(_Section):
    """Overrides for one queue. None keeps the code's value.

    `ttl`: seconds that a message lives after its publish (G6). `max_length`: how many ready
    messages the queue holds (G12). `overflow`: what happens to further messages (G12).
    `dead_letter`: the name of the dead-letter queue, or false for none (G11). `retention`: seconds
    that the dead-letter queue keeps a message; no limit by default. `retry`: the retry policy.
    """

    ttl: Seconds | None = None
    max_length: Annotated[int, Field(ge=1, strict=True)] | None = None
    overflow: Literal["reject", "dead_letter"] | None = None
    dead_letter: Annotated[str | Literal[False] | None, PlainValidator(_dead_letter)] = None
    retention: Seconds | None = None
    retry: RetrySettings = RetrySettings()


class BindingSettings(_Section):
    """One binding of a router: `key` (direct, topic), or `headers` and `match` (headers).

    `queue`: the name of the queue, which must exist. `key`: the routing key, or the pattern of a
    topic router. `headers`: the headers that a message must have. `match`: whether all or any of
    the headers must be equal.
    """

    queue: Annotated[str, Field(min_length=1)]
    key: str = ""
    headers: dict[str, str] = {}
    match: Literal["all", "any"] = "all"


class RouterSettings(_Section):
    """A router and its bindings.

    `kind`: the kind of the router, as in the code (G15). `bindings`: a list of bindings.
    """

    kind: Kind
    bindings: tuple[BindingSettings, ...] = ()

    def to_bindings(self, router: str) -> list[Binding]:
        """Return the bindings. Raises `ConfigurationError` for one that could never match."""
        return [
            check_binding(
                Binding(
                    router=router,
                    kind=self.kind,
                    queue=binding.queue,
                    pattern=binding.key,
                    headers=tuple(sorted(binding.headers.items())),
                    match=binding.match,
                )
            )
            for binding in self.bindings
        ]


class _WrongSettings(ConfigurationError, ValueError):
    """Raised by `Settings(...)`; a `ValueError`, as what pydantic raises for a model."""


class _Explaining(ModelMetaclass):
    """Explains what is wrong when settings are made in code, as `Settings.load` does."""

    if not TYPE_CHECKING:  # a type checker reads the fields

        def __call__(self, **values: Any) -> BaseModel:
            try:
                return super().__call__(**values)
            except ValidationError as error:
                layers = [("Settings(...)", values)]
                raise _WrongSettings(_explain(error, self, layers)) from None


class Settings(_Section, metaclass=_Explaining):
    """All settings; `Settings.load` reads them from the environment and files. Frozen.

    `url`: the broker; write special characters in a password as `%XX`. `durability`: what confirmed
    messages must survive, `memory`, `process`, `machine` or `replicated`; nothing is demanded by
    default. `publish_timeout`: seconds until a publish ends (G1). `outbox`: the database in whose
    transactions the application publishes, when that is not the broker itself. `inbox`: where
    consumers with `once=` record what they have handled, when the application names no inbox and it
    is not the broker. `fallback`: where messages are stored while the broker is away, the URL of a
    spool or a table of options. `enabled`: false leaves the application running on the fallback,
    without the broker. `codecs`: the codecs that are allowed; plugins may bring more. `queues`: a
    table of options for each queue. `routers`: a table of bindings for each router. `backends`: a
    table of options for each URL scheme; the query of the URL overrides them.
    """

    url: BrokerUrl = BrokerUrl("memory://")
    durability: Annotated[Durability | None, BeforeValidator(_durability)] = None
    publish_timeout: Seconds = PUBLISH_TIMEOUT
    outbox: BrokerUrl | None = None
    inbox: BrokerUrl | None = None
    fallback: FallbackOption = None
    enabled: Annotated[bool, Field(strict=True)] = True
    codecs: tuple[str, ...] = ("json", "text", "bytes")
    queues: dict[str, QueueSettings] = {}
    routers: dict[str, RouterSettings] = {}
    backends: Annotated[dict[str, dict[str, Any]], PlainSerializer(_masked), Field(repr=False)] = {}
    _sources: dict[tuple[str, ...], str] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        """Remember where each value was written; `load` passes the layers as the context."""
        if not context:
            return
        places: list[tuple[str, ...]] = [(name,) for name in self.model_fields_set]
        for table in ("queues", "routers", "backends"):
            places += [(table, name) for name in getattr(self, table)]
        for scheme, options in self.backends.items():
            places += [("backends", scheme, option) for option in options]
        self._sources.update((place, _source(place, context)) for place in places)

    def source_of(self, *place: str) -> str:
        """Return where a value was written, for an error's text.

        For instance `source_of("durability")`, or `source_of("queues", name)` for a section.
        """
        return self._sources.get(place, "the settings")

    def queue_options(self, queue: str) -> QueueOptions:
        """Return the options of a queue that the settings override, without its retry policy."""
        section = self.queues.get(queue)
        if section is None:
            return {}

        given = {
            name: value
            for name in section.model_fields_set
            if (value := getattr(section, name)) is not None
        }
        given.pop("retry", None)
        if given.get("dead_letter") is False:
            given["dead_letter"] = None
        return cast("QueueOptions", given)

    def retry_policy(self, queue: str, code: RetryPolicy) -> RetryPolicy:
        """Return the retry policy of a queue: the code's with the overrides of the settings."""
        section = self.queues.get(queue)
        return code if section is None else section.retry.policy(code)

    def router_bindings(self, router: str, kind: Kind) -> list[Binding]:
        """Return the bindings that the settings add to a router.

        Raises `ConfigurationError` when the settings name another kind of router than the code.
        """
        section = self.routers.get(router)
        if section is None:
            return []

        if section.kind != kind:
            raise ConfigurationError(
                f"router {router!r} has kind={kind!r} in the code and kind={section.kind!r} in "
                f"{self.source_of('routers', router)}. Use the same kind in both"
            )
        return section.to_bindings(router)

    @classmethod
    def load(cls, *, directory: Path | str | None = None, **overrides: object) -> Self:
        """Read the settings from their sources. An override of None counts as not given.

        `directory` is where `mqcore.toml` and `pyproject.toml` are looked up, by default the
        working directory. It may also be the path of one settings file, which must exist and is
        then the only one. Raises `ConfigurationError`, in one line, for an unknown option or a
        wrong value.
        """
        if directory is not None and not isinstance(directory, (Path, str)):
            raise ConfigurationError(
                "Settings.load: directory= takes the path of a directory or of a settings file, "
                f"not {described(directory)}"
            )

        given = {name: value for name, value in overrides.items() if value is not None}
        directory = None if directory is None else Path(directory)
        layers = [("argument", given), ("environment", _environment(cls)), *_files(directory)]
        try:
            settings = cls.model_validate(_merged([data for _, data in layers]), context=layers)
        except ValidationError as error:
            raise ConfigurationError(_explain(error, cls, layers)) from None

        for name, router in settings.routers.items():
            try:
                router.to_bindings(name)
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"{_source(('routers', name), layers)}: routers.{name}: {error}"
                ) from None

        for name, queue in settings.queues.items():
            try:
                queue.retry.policy(RetryPolicy())
            except ConfigurationError as error:
                source = _source(("queues", name, "retry"), layers)
                raise ConfigurationError(f"{source}: queues.{name}.retry: {error}") from None

        return settings


def open_backend(
    url: str | BrokerUrl,
    settings: Settings,
    plugins: Plugins,
    clock: Clock,
    durability: Durability | None = None,
) -> Backend:
    """Return an instance of the backend that serves a URL. It is not connected yet.

    `durability` is what the application asks for; None takes it from the settings. Raises
    `ConfigurationError` for a malformed URL or a wrong option, and `BackendNotFound` when no plugin
    serves the scheme.
    """
    url = BrokerUrl(url)
    backend = plugins.backend_for(url.scheme)
    _check_backends(settings, plugins)
    return backend(url.reveal(), options_for(backend, url, settings, clock, durability))


def _check_backends(settings: Settings, plugins: Plugins) -> None:
    """Refuse options for a backend that is not installed: they would be ignored."""
    for scheme in settings.backends:
        where = f"{settings.source_of('backends', scheme)}: [backends.{scheme:.60}]"
        if scheme != scheme.lower():
            raise ConfigurationError(
                f"{where} has no effect: schemes are in lower case. Did you mean "
                f"[backends.{scheme.lower():.60}]?"
            )
        if not plugins.is_installed(scheme):
            why = plugins.why_missing(scheme)
            raise ConfigurationError(f"{where} has no effect: {why}")


def options_for(
    backend: type[Backend],
    url: str | BrokerUrl,
    settings: Settings,
    clock: Clock,
    durability: Durability | None = None,
) -> BaseModel:
    """Return a backend's typed options.

    They come from the URL's query, then from `[backends.SCHEME]` in the settings for each of its
    schemes. A backend that declares a field `clock` or `durability` gets the broker's; a clock
    cannot be given as an option, and a durability among the options wins. Raises
    `ConfigurationError`, in one line that names the option and its source, for an unknown option or
    a wrong value.
    """
    scheme, query = parse_url(url)
    schemes = [backend.scheme] if isinstance(backend.scheme, str) else list(backend.scheme)
    layers: list[tuple[str, Mapping[str, Any]]] = [("the broker URL", query)]
    for name in [scheme, *(other for other in schemes if other != scheme)]:
        layers += [
            (f"{settings.source_of('backends', name, option)}: [backends.{name}]", {option: value})
            for option, value in settings.backends.get(name, {}).items()
        ]
    given = _merged([data for _, data in layers])
    known = backend.Options.model_fields
    if "clock" in given:
        raise ConfigurationError(
            f"{_source(('clock',), layers)}: clock is not an option; give it to Broker.connect"
        )

    if "clock" in known:
        given["clock"] = clock
    demanded = settings.durability if durability is None else durability
    if "durability" in known and demanded is not None:
        given.setdefault("durability", demanded.word)
    try:
        return backend.Options.model_validate(given)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, backend.Options, layers)) from None


def _environment(model: type[BaseModel]) -> dict[str, Any]:
    """Read the variables. Refuse another variable that looks like a setting."""
    names = {f"{_PREFIX}{name.upper()}": name for name in _FROM_ENVIRONMENT}
    others = tuple(
        f"{_PREFIX}{name.upper()}" for name in model.model_fields if name not in _FROM_ENVIRONMENT
    )
    values: dict[str, Any] = {}

    for variable, value in os.environ.items():
        if variable in names:
            values[names[variable]] = value
        elif variable.startswith(others):
            raise ConfigurationError(
                f"{variable}: this setting is not read from the environment; put it into "
                "mqcore.toml"
            )
        elif variable.startswith(_PREFIX) and (close := closest(variable, names, alike=0.85)):
            raise ConfigurationError(f"{variable}: no such setting; did you mean {close}?")

    if (timeout := values.get("publish_timeout")) is not None:
        try:
            values["publish_timeout"] = float(timeout)
        except ValueError:
            raise ConfigurationError(
                f"{_PREFIX}PUBLISH_TIMEOUT: give a number of seconds"
            ) from None
    if (enabled := values.get("enabled")) is not None:
        if enabled.lower() not in _WORDS:
            raise ConfigurationError(f"{_PREFIX}ENABLED: give true or false")
        values["enabled"] = _WORDS[enabled.lower()]
    if "fallback" in values:
        values["fallback"] = {"url": values["fallback"]}  # options may stand in a file

    return values


def _files(directory: Path | None) -> list[tuple[str, Mapping[str, Any]]]:
    if directory is not None and not directory.is_dir():
        return [(directory.name, _toml(directory))]
    folder = directory or Path.cwd()
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if (own := folder / "mqcore.toml").exists():
        layers.append((own.name, _toml(own)))
    if (project := folder / "pyproject.toml").exists():
        tool = _toml(project).get("tool", {})
        table = tool.get("mqcore", {}) if isinstance(tool, dict) else {}
        if not isinstance(table, dict):
            raise ConfigurationError("pyproject.toml: tool.mqcore is not a table")
        layers.append(("[tool.mqcore] in pyproject.toml", table))

    return layers


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise ConfigurationError(f"{path.name} cannot be read: {why:.200}") from None


def _merged(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge tables; the first one wins."""
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        for name, value in layer.items():
            below = merged.get(name)
            merged[name] = (
                _merged([value, below])
                if isinstance(value, dict) and isinstance(below, dict)
                else value
            )
    return merged


def _explain(
    error: ValidationError, model: type[BaseModel], layers: Sequence[tuple[str, Mapping[str, Any]]]
) -> str:
    """Return in one line what is wrong, where it is written, and what was probably meant."""
    texts = []

    for item in error.errors(include_url=False, include_context=False, include_input=False)[
        :_SHOWN
    ]:
        place = item["loc"]
        option = ".".join(str(part) for part in place)
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = no_such_option(str(place[-1]), _options_at(model, place[:-1]))
        shown = f"{_source(place, layers)}: {option:.100}: {text}"
        texts.append("".join(char if char.isprintable() else " " for char in shown))

    return "; ".join(texts)


def _options_at(model: Any, place: Sequence[str | int]) -> list[str]:
    """Return the names of the options at a place, found through the models' annotations."""
    here = model

    for part in place:
        if isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            here = here.model_fields[str(part)].annotation
        else:
            here = next((kind for kind in reversed(get_args(here)) if kind is not Ellipsis), None)
        if get_origin(here) in (Union, UnionType):
            here = next((kind for kind in get_args(here) if kind is not NoneType), None)

    if not (isinstance(here, type) and issubclass(here, BaseModel)):
        return []
    return sorted(
        field.alias or name for name, field in here.model_fields.items() if name != "clock"
    )


def _source(place: Sequence[str | int], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the name of the first layer with a value at a place.

    If no layer has one, look for the longest beginning of the place.
    """
    for length in range(len(place), 0, -1):
        for name, data in layers:
            here: Any = data
            for part in place[:length]:
                inside = isinstance(here, dict) and part in here
                inside = inside or (
                    isinstance(here, list) and isinstance(part, int) and part < len(here)
                )
                here = here[part] if inside else _ABSENT
            if here is not _ABSENT:
                return f"{_PREFIX}{str(place[0]).upper()}" if name == "environment" else name

    return "the settings"


_ABSENT = object()
