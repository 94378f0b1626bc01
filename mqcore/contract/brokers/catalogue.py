"""The servers that the contract is run on: names, configuration, and container images.

A name without a number (`redis`) means any version, the newest first. Every server is configured to
keep what it has confirmed when it is killed. RabbitMQ retries what a kill left in its delay queues
after 2 s instead of 3 minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from mqcore.contract.brokers.probe import Identity, ask_postgresql, ask_rabbitmq, ask_redis
from mqcore.contract.brokers.storage import (
    Searchable,
    count_in_postgresql,
    count_in_rabbitmq,
    count_in_redis,
)

__all__ = [
    "KINDS",
    "POSTGRESQL_SETTINGS",
    "RABBITMQ_SETTINGS",
    "REDIS_SETTINGS",
    "Kind",
    "Product",
    "find",
]

REDIS_SETTINGS = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
"""Durability *machine*: the highest that it offers."""
RABBITMQ_SETTINGS = (
    # How long at-least-once dead-lettering waits for a confirm that a kill lost (default 180 s).
    "-rabbit dead_letter_worker_publisher_confirm_timeout 2000 "
    # A gigabyte, whatever the machine has: several servers run side by side.
    "-rabbit vm_memory_high_watermark {absolute,1073741824}"
)
"""The same in a container and on the host: arguments to Erlang need no file."""
POSTGRESQL_SETTINGS = ("-c", "max_connections=300", "-c", "shared_buffers=64MB")
"""Of a local server: many sessions, little memory. What is confirmed is on the disk by default."""


@dataclass(frozen=True)
class Product:
    """What the versions of one product have in common.

    `ask` returns which server answers at a host and port. `stored` counts what a server's storage
    holds, where that is possible without its driver: hook 10 of the kit's `Harness`. `command` and
    `environment` are those of its container.
    """

    name: str
    slug: str
    scheme: str
    port: int
    path: str
    program: str
    ask: Callable[[str, int, float], Identity]
    user: str = ""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    stored: Callable[[Searchable, bytes], Mapping[str, int]] | None = None

    def url(self, host: str, port: int) -> str:
        """Return the URL of a server that was started here, with its default account."""
        return f"{self.scheme}://{self.user}{host}:{port}{self.path}"


@dataclass(frozen=True)
class Kind:
    """One server of the catalogue: a product in one major version."""

    product: Product
    major: int
    image: str

    @property
    def name(self) -> str:
        """The name that tests use, for instance `redis-8`."""
        return f"{self.product.slug}-{self.major}"


_REDIS_ANYWHERE = ("--bind", "0.0.0.0", "--protected-mode", "no")  # noqa: S104 - inside its container; the host's port is bound to 127.0.0.1
REDIS = Product(
    "Redis",
    "redis",
    "redis",
    6379,
    "/0",
    "redis-server",
    ask_redis,
    stored=count_in_redis,
    command=("redis-server", *_REDIS_ANYWHERE, *REDIS_SETTINGS),
)
VALKEY = replace(
    REDIS,
    name="Valkey",
    slug="valkey",
    program="valkey-server",
    command=("valkey-server", *REDIS.command[1:]),
)
RABBITMQ = Product(
    "RabbitMQ",
    "rabbitmq",
    "amqp",
    5672,
    "/",
    "rabbitmq-server",
    ask_rabbitmq,
    stored=count_in_rabbitmq,
    user="guest:guest@",
    environment={
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": RABBITMQ_SETTINGS,
        # the management plugin is not needed, and slows the start
        "RABBITMQ_ENABLED_PLUGINS_FILE": "/nonexistent",
    },
)
POSTGRESQL = Product(
    "PostgreSQL",
    "postgresql",
    "postgresql",
    5432,
    "/postgres",
    "postgres",
    ask_postgresql,
    stored=count_in_postgresql,
    user="postgres:postgres@",
    # The last three are for psql inside the container.
    environment={
        "POSTGRES_PASSWORD": "postgres",
        "PGPASSWORD": "postgres",
        "PGUSER": "postgres",
        "PGHOST": "127.0.0.1",
    },
)

KINDS = (
    Kind(RABBITMQ, 4, "rabbitmq:4-management"),
    Kind(RABBITMQ, 3, "rabbitmq:3-management"),
    Kind(REDIS, 8, "redis:8"),
    Kind(REDIS, 7, "redis:7"),
    Kind(VALKEY, 8, "valkey/valkey:8"),
    Kind(POSTGRESQL, 17, "postgres:17"),
    Kind(POSTGRESQL, 15, "postgres:15"),
)
"""The catalogue, of each product the newest first."""


def find(name: str) -> tuple[Kind, ...]:
    """Return the kinds that a name means: one for `redis-8`, all of a product for `redis`.

    The newest is first. Raises `LookupError` with all names for any other name.
    """
    found = tuple(kind for kind in KINDS if name in (kind.name, kind.product.slug))
    if not found:
        names = ", ".join(
            dict.fromkeys(name for kind in KINDS for name in (kind.product.slug, kind.name))
        )
        raise LookupError(f"unknown broker {name!r:.60} (known: {names})")
    return found
