"""The broker's URL out of what kombu makes of it, and without its secrets. Pure."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from mqcore import ConfigurationError

__all__ = ["Address", "address_of"]

_PREFIX = "mqcore+"


@dataclass(frozen=True)
class Address:
    """Where the broker is: a URL without user and password, and these two."""

    url: str
    user: str | None
    password: str | None

    @property
    def whole(self) -> str:
        """The URL with its secrets, for the broker. Never log it."""
        return self._with(None if self.password is None else quote(self.password, safe=""))

    @property
    def written(self) -> str:
        """The URL as a user has written it, with its secrets."""
        return _PREFIX + self.whole

    def masked(self, mask: str) -> str:
        """Return the URL as a user has written it, with `mask` in the place of the password."""
        return _PREFIX + self._with(None if self.password is None else mask)

    def _with(self, password: str | None) -> str:
        if self.user is None and password is None:
            return self.url
        parts = urlsplit(self.url)
        secret = "" if password is None else f":{password}"
        netloc = f"{quote(self.user or '', safe='')}{secret}@{parts.netloc}"
        return urlunsplit(parts._replace(netloc=netloc))


def address_of(client: Any) -> Address:
    """Return the address of a `kombu.Connection`.

    Its `hostname` is a whole URL, or after a failover a bare host: then kombu has read the URL, and
    the parts are put together again. Raises `ConfigurationError` for a URL without inner scheme.
    """
    place = str(client.hostname or "").removeprefix(_PREFIX)
    if "://" not in place:
        place = _joined(client, place)
    if urlsplit(place).scheme in ("mqcore", ""):
        raise ConfigurationError(
            "broker_url: mqcore:// does not say which broker. Write mqcore+redis://, "
            "mqcore+amqp://, mqcore+sqlite://, mqcore+postgresql:// or mqcore+memory://"
        )

    parts = urlsplit(place)
    user, _, host = parts.netloc.rpartition("@")
    if not user:
        return Address(place, client.userid or None, client.password or None)
    name, colon, password = user.partition(":")
    plain = urlunsplit(parts._replace(netloc=host))
    return Address(plain, unquote(name) or None, unquote(password) if colon else None)


def _joined(client: Any, host: str) -> str:
    scheme = str(client.transport_cls).removeprefix(_PREFIX)
    port = f":{client.port}" if client.port else ""
    # kombu says "/" where the URL has no path; a file's path may begin with a "/" of its own
    path = "" if client.virtual_host == "/" else quote(client.virtual_host or "", safe="/")
    return f"{scheme}://{host}{port}/{path}"
