"""From a name to a running server: which provider, which version, started once for all tests.

`auto` tries in this order: a URL that was given for the name, Docker, a locally installed server. A
name with a version takes that version only. A name without one takes the newest version that a
provider has.
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
    "postgresql": "postgresql",
    "postgres": "postgresql",
}


class Brokers:
    """The servers of one test run; a context manager that stops them at its end."""

    def __init__(self, provider: Provider = "auto", urls: Sequence[str] = ()) -> None:
        """Start no server yet.

        `urls` are for the provider `url`: `redis://…`, whose scheme says which product it is, or
        `NAME=URL` with a name of the catalogue (`valkey=redis://…`, `redis-7=redis://…`). Raises
        `LookupError` for an unknown name, and `ConfigurationError` for text that is not a URL.
        """
        if provider not in PROVIDERS:
            raise LookupError(f"unknown provider {provider!r:.60} (known: {', '.join(PROVIDERS)})")
        self.provider = provider
        self.urls = dict(map(_named, urls))
        self.servers: list[Server] = []
        """All servers that were started, in that order."""
        self.missing: dict[str, str] = {}
        """Servers that are not available, by name, with the reason."""
        self._by_name: dict[tuple[str, Provider], Server] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def server(self, name: str, *, provider: Provider | None = None) -> Server:
        """Return the server of this name; it is started on first use.

        `name` is from the catalogue: `redis-8`, or `redis` for any version. `provider` overrides
        that of the run. Raises `BrokerUnavailable` with the reason of each provider that was tried;
        later calls raise it at once.
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
        """Return the key in `missing` for this name and provider."""
        return name if provider in (None, self.provider) else f"{name} ({provider})"

    def url_of(self, name: str) -> str:
        """Return the URL for a name, its own or its product's. Raises `BrokerUnavailable`."""
        for one in (
            name,
            *(other for kind in find(name) for other in (kind.product.slug, kind.name)),
        ):
            if one in self.urls:
                return self.urls[one]
        raise BrokerUnavailable(f"no URL was given for {name}")

    def close(self) -> None:
        """Stop all servers, the last first. Those that were given by URL keep running."""
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
        raise BrokerUnavailable(mask_text(f"{name} is not available: " + "; ".join(reasons)))

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
        """Start the server, unless a suitable one is running; refuse a wrong version."""
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
            raise BrokerUnavailable(f"it is {server.title}, not {server.name}")
        self.servers.append(server)

        return server


def _fits(server: Server, kinds: Sequence[Kind]) -> bool:
    """Whether the version is one that the name means.

    A name without a number also means versions beyond the catalogue.
    """
    if not server.version or kinds == find(kinds[0].product.slug):
        return True
    return int(server.version.partition(".")[0]) in {kind.major for kind in kinds}


def _named(url: str) -> tuple[str, str]:
    """Return name and URL of `NAME=URL` or of a URL."""
    name, equals, rest = url.partition("=")
    if equals and "://" not in name:
        find(name)
        parse_url(rest)
        return name, rest

    scheme, _ = parse_url(url)
    if scheme not in _SCHEMES:
        raise LookupError(
            f"cannot tell which broker serves a {scheme}:// URL. Give it as NAME=URL, for example "
            f"redis={scheme}://…"
        )

    return _SCHEMES[scheme], url
