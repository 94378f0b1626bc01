"""What an `amqp://` URL and its options say.

`amqp://user:password@host:5672/vhost?durability=machine`, several hosts with commas for failover,
the vhost percent-encoded, no path for the vhost `/`. We read the URL ourselves: pika evaluates
parts of a URL's query as Python literals, and never gets ours.
"""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

import pika
from pydantic import BeforeValidator, Field, SkipValidation

from mqcore.spi import (
    Clock,
    ConfigurationError,
    Durability,
    Options,
    SystemClock,
    split_hosts,
    split_url,
    tls_context,
)

__all__ = ["RabbitOptions", "parameters"]

HEARTBEAT = 8
PORT, TLS_PORT = 5672, 5671


def _durability(value: object) -> object:
    return Durability.parse(value) if isinstance(value, str) else value


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class RabbitOptions(Options):
    """Options of the RabbitMQ backend; times in seconds.

    `durability`: `process` takes classic durable queues, `machine` and `replicated` quorum queues.
    `cluster`: the operator says that this is a cluster of three nodes or more, so that quorum
    queues are replicated. `bands`: with quorum queues, how many levels of priority there are, 11 or
    3. `connect_timeout`: for each host. `cafile`, `certfile`, `keyfile`, `server_name`: for
    `amqps`. `heartbeat`: the interval asked for; a silent broker is noticed 2 s after it. `clock`
    is filled in by core.
    """

    clock: Annotated[Clock, SkipValidation] = Field(default_factory=SystemClock, repr=False)
    durability: Annotated[Durability | None, BeforeValidator(_durability)] = None
    cluster: bool = False
    bands: Annotated[Literal[3, 11], BeforeValidator(_number)] = 11
    connect_timeout: float = Field(default=4.0, gt=0, le=60)
    heartbeat: int = Field(default=HEARTBEAT, ge=2, le=60)
    cafile: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    server_name: str | None = None

    @property
    def quorum(self) -> bool:
        """Whether a queue that asks for nothing is a quorum queue."""
        return self.durability is not None and self.durability >= Durability.MACHINE


def parameters(url: str, options: RabbitOptions) -> list[pika.ConnectionParameters]:
    """Return what pika needs for each host of the URL, in its order.

    Raises `ConfigurationError`, without secrets.
    """
    parts = split_url(url)
    login, _, places = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    tls = parts.scheme.lower() == "amqps"
    vhost = unquote(parts.path[1:]) if len(parts.path) > 1 else "/"
    if "/" in parts.path[1:]:
        raise ConfigurationError(
            "the vhost of an AMQP URL is one part: a '/' inside its name is written as %2F"
        )
    files = options.cafile, options.certfile, options.keyfile
    context = tls_context(*files) if tls else None
    return [
        pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=vhost,
            credentials=pika.PlainCredentials(
                unquote(user) or "guest", unquote(password) if login else "guest"
            ),
            heartbeat=options.heartbeat,
            connection_attempts=1,
            socket_timeout=options.connect_timeout,
            stack_timeout=options.connect_timeout * 1.5,
            ssl_options=pika.SSLOptions(context, options.server_name or host) if context else None,
            client_properties={"product": "mqcore"},
            tcp_options={"TCP_KEEPIDLE": 20, "TCP_USER_TIMEOUT": 10_000},
        )
        for host, port in split_hosts(places, TLS_PORT if tls else PORT)
    ]
