"""What an URL such as `redis://user:password@host:6379/0?prefix=mq` and its options say.

We read the URL ourselves: redis-py takes any argument of its own from an URL's query, retries among them, and never gets ours.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr

from mqcore.spi import ConfigurationError, Options

__all__ = ["Place", "RedisOptions", "read"]

TEN_YEARS = 10.0 * 365 * 86_400
_PORT, _SENTINEL_PORT = 6379, 26379
_DATABASES = 10_000


class RedisOptions(Options):
    """Options of the Redis backend; times in seconds.

    `prefix` begins every key. `tag` puts all queues into one slot of a cluster: a Move between any two of them is one step, and
    they all live on one node. `dedup_window` and `dedup_size`: how long, and how many of the last ids, each queue remembers what
    was published to it, whichever ends first. `max_delay`: a longer delay is refused. `assume_durability`: what the operator
    states of a server that does not let us look. `master` and `sentinel_password`: for `redis+sentinel`. `cafile`, `certfile`,
    `keyfile`, `server_name`: for TLS, which `rediss` has, and `tls=true` gives to Sentinel and Cluster.
    """

    prefix: str = Field(default="mq", pattern=r"^[^{}:\s]+$")
    tag: str | None = Field(default=None, pattern=r"^[^{}\s]+$")
    dedup_window: float = Field(default=600.0, gt=0)
    dedup_size: int = Field(default=1_000_000, gt=0)
    max_delay: float = Field(default=TEN_YEARS, gt=0, le=TEN_YEARS)
    assume_durability: Literal["process", "machine"] | None = None
    connect_timeout: float = Field(default=4.0, gt=0, le=60)
    master: str | None = None
    sentinel_password: SecretStr | None = None
    tls: bool = False
    cafile: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    server_name: str | None = None


@dataclass(frozen=True)
class Place:
    """Where the server is, and who we are there. `shown` names it in errors."""

    kind: Literal["tcp", "unix", "sentinel", "cluster"]
    hosts: tuple[tuple[str, int], ...]
    shown: str
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)


def read(url: str, options: RedisOptions) -> Place:
    """Return what an URL says. Raises `ConfigurationError`, without secrets, when it says nothing that could be meant."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    login, _, places = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    tls = _context(options) if scheme == "rediss" or options.tls else None
    kind: Literal["tcp", "unix", "sentinel", "cluster"] = "tcp"
    if scheme == "unix":
        kind = "unix"
    elif "+" in scheme:
        kind = "sentinel" if scheme.endswith("sentinel") else "cluster"
    if kind == "sentinel" and not options.master:
        raise ConfigurationError("redis+sentinel:// needs the name of the master: ?master=NAME")
    hosts = () if kind == "unix" else tuple(_hosts(places, _SENTINEL_PORT if kind == "sentinel" else _PORT))
    if kind == "tcp" and len(hosts) > 1:
        raise ConfigurationError("redis:// has one host; several are for redis+sentinel:// or redis+cluster://")
    db = 0 if kind == "unix" else _database(unquote(parts.path.strip("/")))
    if kind == "cluster" and db:
        raise ConfigurationError("a Redis cluster has the database 0 alone; leave the path out of the URL")
    return Place(
        kind=kind,
        hosts=hosts,
        shown=unquote(parts.path) if kind == "unix" else ", ".join(f"{host}:{port}" for host, port in hosts),
        path=unquote(parts.path),
        db=db,
        username=unquote(username) or None,
        password=unquote(password) or None,
        tls=tls,
    )


def _hosts(text: str, port: int) -> list[tuple[str, int]]:
    found = []
    for place in (text or "localhost").split(","):
        try:
            parts = urlsplit(f"//{place}")
            found.append((parts.hostname or "localhost", parts.port or port))
        except ValueError:
            raise ConfigurationError("the Redis URL names a host or port that cannot be read") from None
    return found


def _database(text: str) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or int(text[:9]) >= _DATABASES:
        raise ConfigurationError(f"the path of a Redis URL is the number of a database, not {text!r:.40}")
    return int(text)


def _context(options: RedisOptions) -> ssl.SSLContext:
    """Make the TLS context: names and certificates are always checked. Raises `ConfigurationError` for unreadable files."""
    try:
        context = ssl.create_default_context(cafile=options.cafile)
        if options.certfile is not None:
            context.load_cert_chain(options.certfile, options.keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"TLS: cafile, certfile or keyfile cannot be used: {error}") from None
    return context
