"""The options of a URL such as `sqlite:///spool.db?synchronous=normal`, and the file in it."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import Field, SkipValidation

from mqcore.spi import Clock, ConfigurationError, Options, SystemClock, split_url

__all__ = ["TEN_YEARS", "SqlOptions", "SqliteOptions", "file_of"]

TEN_YEARS = 10.0 * 365 * 86_400


class SqlOptions(Options):
    """Options of both databases; times in seconds.

    `prefix`: begins the name of every table. `dedup_window`: how long each queue remembers the ids
    that were published to it. `max_delay`: a longer delay is refused. `migrate`: whether tables are
    created, and upgraded when this version of mqcore needs it, at connect; without it an operator
    runs `mqcore sql upgrade URL`.
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


def file_of(url: str) -> Path:
    """Return the absolute path of the file that a URL names.

    `sqlite:///spool.db` is relative to the working directory, `sqlite:////var/lib/spool.db` is
    absolute. Raises `ConfigurationError` for a URL with a host or without a file.
    """
    parts = split_url(url)
    path = unquote(parts.path).removeprefix("/")

    if parts.netloc:
        raise ConfigurationError(
            "an SQLite URL has no host: write three slashes and a file (sqlite:///spool.db), or "
            "four slashes and an absolute path (sqlite:////var/lib/shop/spool.db)"
        )
    if path in ("", ":memory:"):
        raise ConfigurationError(
            "an SQLite URL names a file, for instance sqlite:///spool.db. For a queue in memory "
            "use memory://"
        )
    return Path(path).absolute()
