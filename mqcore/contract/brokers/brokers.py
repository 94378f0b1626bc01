"""From a name to a server that runs: which provider, which version, started once for all who ask.

`auto` tries in this order: a URL that was given for the name, Docker, what is installed here. A
name with a version takes that version or nothing; a name without takes the newest that a provider
has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self, get_args

from mqcore.config.url import parse_url
from mqcore.contract.brokers.catalogue import Kind, find
from mqcore.contract.brokers.docker import DockerServer
from mqcore.contract.brokers.external import ExternalServer
from mqcore.contract.brokers.local import LocalServer
from mqcore.contract.brokers.server import BrokerUnavailable, Server
from mqcore.rules.redact import mask_text

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PROVIDERS", "Brokers", "Provider"]

Provider = Literal["docker", "local", "url", "auto"]
PROVIDERS: tuple[Provider, ...] = get_args(Provider)
_SCHEMES = {
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
}


class Brokers:
    """The servers of one test run; a context manager that stops them all at its end."""

    def __init__(self, provider: Provider = "auto", urls: Sequence[str] = ()) -> None:
        """Start none yet.

        `urls` are for the provider `url`: `redis://…`, whose scheme says which product it is, or
        `NAME=URL`, with a name of the catalogue (`valkey=redis://…`, `redis-7=redis://…`). Raises
        `LookupError` for a name that there is not, and `ConfigurationError` for what is no URL.
        """
        if provider not in PROVIDERS:
            raise LookupError(
                f"no provider is called {provider!r:.60}; there are: {', '.join(PROVIDERS)}"
            )
        self.provider = provider
        self.urls = dict(map(_named, urls))
        self.servers: list[Server] = []
        """All that were started, in that order."""
        self.missing: dict[str, str] = {}
        """What could not be had, by name, and why."""
        self._by_name: dict[tuple[str, Provider], Server] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def server(self, name: str, *, provider: Provider | None = None) -> Server:
        """Return the server of this name, started when it is first asked for.

        `name` is of the catalogue: `redis-8`, or `redis` for any. `provider` overrides that of the
        run. Raises `BrokerUnavailable` with the reason of each provider that was tried, at once
        when it has been asked for in vain before.
        """
        kinds = find(name)
        provider = provider or self.provider
        asked = (name, provider)
        if asked not in self._by_name:
            label = self.label(name, provider)
            if label in self.missing:
                raise BrokerUnavailable(self.missing[label])
            try:
                self._by_name[asked] = self._started(name, kinds, provider)
            except BrokerUnavailable as error:
                self.missing[label] = str(error)
                raise
        return self._by_name[asked]

    def label(self, name: str, provider: Provider | None = None) -> str:
        """Return the key in `missing` of a name that was asked for so."""
        return name if provider in (None, self.provider) else f"{name} ({provider})"

    def url_of(self, name: str) -> str:
        """Return the URL that was given for a name, its own or its product's; raises `BrokerUnavailable` where there is none."""
        for one in (
            name,
            *(other for kind in find(name) for other in (kind.product.slug, kind.name)),
        ):
            if one in self.urls:
                return self.urls[one]
        raise BrokerUnavailable(f"no URL was given for {name}")

    def close(self) -> None:
        """Stop them all, the last first. Those that were given by URL run on."""
        for server in reversed(self.servers):
            server.stop()
        self._by_name.clear()

    def _started(self, name: str, kinds: Sequence[Kind], provider: Provider) -> Server:
        reasons = []
        for one in ("url", "docker", "local") if provider == "auto" else (provider,):
            try:
                return self._by(one, name, kinds)
            except BrokerUnavailable as error:
                reasons.append(f"{one}: {error}")
        raise BrokerUnavailable(mask_text(f"there is no {name}: " + "; ".join(reasons)))

    def _by(self, provider: str, name: str, kinds: Sequence[Kind]) -> Server:
        if provider == "url":
            return self._run(ExternalServer(name, kinds[0].product, self.url_of(name)), kinds)
        if provider == "local":
            return self._run(LocalServer(name, kinds[0].product), kinds)
        refused: BrokerUnavailable | None = None
        for kind in kinds:
            try:
                return self._run(DockerServer(kind), (kind,))
            except BrokerUnavailable as error:
                refused = refused or error
        raise refused or BrokerUnavailable(f"the catalogue has no {name}")

    def _run(self, server: Server, kinds: Sequence[Kind]) -> Server:
        """Start it, unless one that does is there already; refuse a version that was not asked for."""
        for running in self.servers:
            if (
                type(running) is type(server)
                and running.product is server.product
                and _fits(running, kinds)
            ):
                return running
        server.open()
        if not _fits(server, kinds):
            server.stop()
            raise BrokerUnavailable(f"it is {server.title}, {server.name} is wanted")
        self.servers.append(server)
        return server


def _fits(server: Server, kinds: Sequence[Kind]) -> bool:
    """Whether its version is one that the name means; a name without a number takes those beyond the catalogue too."""
    if not server.version or kinds == find(kinds[0].product.slug):
        return True
    return int(server.version.partition(".")[0]) in {kind.major for kind in kinds}


def _named(url: str) -> tuple[str, str]:
    """Return name and URL of what was given as `NAME=URL` or as a URL."""
    name, equals, rest = url.partition("=")
    if equals and "://" not in name:
        find(name)
        parse_url(rest)
        return name, rest
    scheme, _ = parse_url(url)
    if scheme not in _SCHEMES:
        raise LookupError(
            f"which broker is at a {scheme}:// URL cannot be told: give it as NAME=URL, for "
            "instance redis=…"
        )
    return _SCHEMES[scheme], url
