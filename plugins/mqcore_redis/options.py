"""The options of a URL such as `redis://user:password@host:6379/0?prefix=mq`.

The driver reads the URL itself: redis-py would accept any of its own arguments from the query,
retries among them.
"""

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from pydantic import Field, SecretStr

from mqcore.spi import ConfigurationError, Options, split_hosts, split_url, tls_context

__all__ = ["Place", "RedisOptions", "read"]

TEN_YEARS = 10.0 * 365 * 86_400
_PORT, _SENTINEL_PORT = 6379, 26379
_Kind = Literal["tcp", "unix", "sentinel", "cluster"]
_KINDS: dict[str, _Kind] = {
    "unix": "unix",
    "redis+sentinel": "sentinel",
    "redis+cluster": "cluster",
}


class RedisOptions(Options):
    """Options of the Redis backend; times in seconds.

    `db`: number of the database, as the path of a URL is. With a local socket, whose path is the
    socket, it is the only way. `prefix`: begins every key. `tag`: puts all queues into one slot of
    a cluster, so that a Move between any two of them is one step; then they are all on one node.
    `dedup_window` and `dedup_size`: how long, and for how many messages, each queue remembers the
    ids that were published to it; whichever limit is reached first. `max_delay`: a longer delay is
    refused. `assume_durability`: what the operator states about a server that does not let us ask.
    `master` and `sentinel_password`: for `redis+sentinel`. `cafile`, `certfile`, `keyfile`,
    `server_name`: for TLS, which `rediss` has, and which `tls=true` gives to Sentinel and Cluster.
    """

    db: int | None = Field(default=None, ge=0, le=9999)
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
    """The address of the server, the credentials, and the options.

    `shown` names it in errors.
    """

    kind: _Kind
    shown: str
    options: RedisOptions
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)


def read(url: str, options: RedisOptions) -> Place:
    """Read a URL.

    Raises `ConfigurationError`, without secrets, when it is not valid.
    """
    parts = split_url(url)
    kind = _KINDS.get(parts.scheme, "tcp")
    login, _, places = parts.netloc.rpartition("@")
    username, _, password = (unquote(part) or None for part in login.partition(":"))
    path = unquote(parts.path)
    if kind == "unix":
        return Place(
            kind, path, options, path=path, db=options.db or 0, username=username, password=password
        )
    if kind == "sentinel" and not options.master:
        raise ConfigurationError("redis+sentinel:// needs the name of the master: ?master=NAME")
    hosts = split_hosts(places, _SENTINEL_PORT if kind == "sentinel" else _PORT)
    if kind == "tcp" and len(hosts) > 1:
        raise ConfigurationError(
            "redis:// has one host; several are for redis+sentinel:// or redis+cluster://"
        )
    number = path.strip("/")
    if not re.fullmatch("[0-9]{0,4}", number):
        raise ConfigurationError(
            f"the path of a Redis URL is the number of a database, not {number!r:.40}"
        )
    if number and options.db not in (None, int(number)):
        raise ConfigurationError(
            f"the Redis URL names two databases: {number} in its path and db={options.db}"
        )
    db = int(number or options.db or 0)
    if kind == "cluster" and db:
        raise ConfigurationError(
            "a Redis cluster has the database 0 alone; leave the path out of the URL"
        )
    shown = ", ".join(f"{host}:{port}" for host, port in hosts)
    files = options.cafile, options.certfile, options.keyfile
    tls = tls_context(*files) if parts.scheme == "rediss" or options.tls else None
    return Place(kind, shown, options, hosts, db=db, username=username, password=password, tls=tls)
