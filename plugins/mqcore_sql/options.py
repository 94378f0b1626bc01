"""The options of a URL such as `sqlite:///spool.db?synchronous=normal`, and the file in it."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import parse_qsl, unquote

from pydantic import BaseModel, Field, SkipValidation, ValidationError

from mqcore.spi import Clock, ConfigurationError, Options, SystemClock, split_url

__all__ = ["TEN_YEARS", "PostgresOptions", "SqlOptions", "SqliteOptions", "file_of", "read_options"]

M = TypeVar("M", bound=BaseModel)
TEN_YEARS = 10.0 * 365 * 86_400


class SqlOptions(Options):
    """Options of both databases; times in seconds.

    `prefix`: begins the name of every table. `dedup_window`: how many seconds each queue remembers
    the ids that were published to it. `max_delay`: the longest delay that is accepted, in seconds;
    the default is ten years. `migrate`: whether tables are created, and upgraded when this version
    of mqcore needs it, at connect; without it an operator runs `mqcore sql upgrade URL`.
    """

    prefix: str = Field(default="mq", pattern=r"^[a-z][a-z0-9_]{0,19}$")
    dedup_window: float = Field(default=600.0, gt=0)
    max_delay: float = Field(default=TEN_YEARS, gt=0, le=TEN_YEARS)
    migrate: bool = True


class SqliteOptions(SqlOptions):
    """Options of `sqlite://`.

    `synchronous`: with `full` a confirmed message survives a power cut, with `normal` and `off` a
    kill of the process. `reserve`: the number of bytes that must be free on the disk, or publishing
    is refused; acknowledgements need the space. `clock`: core sets it to the clock of the Broker.
    """

    clock: Annotated[Clock, SkipValidation] = Field(default_factory=SystemClock, repr=False)
    synchronous: Literal["full", "normal", "off"] = "full"
    reserve: int = Field(default=16 * 1024 * 1024, ge=0)


class PostgresOptions(SqlOptions):
    """Options of `postgresql://`.

    `schema_name`: the schema of the tables; without it they are in the role's current one.
    `connect_timeout`: seconds, for each server. `sslmode`, `sslrootcert`, `sslcert`, `sslkey`: as
    in libpq.
    """

    schema_name: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]{0,39}$")
    connect_timeout: int = Field(default=4, ge=2, le=60)
    sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    sslrootcert: Path | None = None
    sslcert: Path | None = None
    sslkey: Path | None = None

    def conninfo(self, url: str) -> str:
        """Return what libpq connects with: the URL's hosts, account and database, and options."""
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - psycopg is an extra

        parts = split_url(url)
        given = self.model_dump(include={"connect_timeout", "sslmode"})
        files = self.model_dump(include={"sslrootcert", "sslcert", "sslkey"}, exclude_none=True)
        return make_conninfo(
            f"postgresql://{parts.netloc}{parts.path}",
            **given,
            **{name: str(path) for name, path in files.items()},
            client_encoding="utf8",
            target_session_attrs="read-write",  # a standby confirms nothing: try the next host
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
        )


def file_of(url: str) -> Path:
    """Return the absolute path of the file that a URL names.

    `sqlite:///spool.db` is relative to the working directory, `sqlite:////var/lib/spool.db` is
    absolute. Raises `ConfigurationError` for a URL with a host or without a file.
    """
    parts = split_url(url)
    path = unquote(parts.path).removeprefix("/")

    if parts.netloc:
        raise ConfigurationError(
            "an SQLite URL has no host: write three slashes and a file (sqlite:///queue.db), or "
            "four slashes and an absolute path (sqlite:////var/lib/shop/queue.db)"
        )
    if path in ("", ":memory:"):
        raise ConfigurationError(
            "an SQLite URL names a file, for instance sqlite:///queue.db. For a queue in memory "
            "use memory://"
        )
    return Path(path).absolute()


def read_options(kind: type[M], url: str) -> M:
    """Return the options in a URL. Raises `ConfigurationError`, without secrets."""
    try:
        return kind.model_validate(dict(parse_qsl(split_url(url).query)))
    except ValidationError as error:
        wrong = ", ".join(str(found["loc"][0]) for found in error.errors())
        raise ConfigurationError(
            f"the database's URL has options that are not valid: {wrong}"
        ) from None
