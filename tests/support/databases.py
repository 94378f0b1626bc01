"""A database of an application, with mqcore's tables in it, for tests of transactions."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mqcore.messages.message import new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mqcore.contract.brokers import Server

__all__ = ["AppDatabase", "app_database"]


class AppDatabase:
    """Where it is, for mqcore (`url`) and for SQLAlchemy (`sync_url`, `async_urls`)."""

    def __init__(self, product: str, place: str, tables: str = "mq") -> None:
        self.product, self.place, self.tables = product, place, tables
        if product == "sqlite":
            self.url = f"sqlite:///{place}"
            self.sync_url = self.url
            self.async_urls = [f"sqlite+aiosqlite:///{place}"]
        else:
            self.url = f"postgresql://{place}?prefix={tables}"
            self.sync_url = f"postgresql+psycopg://{place}"
            self.async_urls = [f"postgresql+{name}://{place}" for name in ("psycopg", "asyncpg")]

    @contextmanager
    def engine(self, **options: Any) -> Iterator[Any]:
        from sqlalchemy import create_engine  # noqa: PLC0415 - an extra

        engine = create_engine(self.sync_url, **options)
        try:
            yield engine
        finally:
            engine.dispose()

    def table(self, name: str) -> str:
        return f"{self.tables}_{name}"


def app_database(product: str, folder: Path, broker_server: Callable[[str], Server]) -> AppDatabase:
    """Return a database with no tables in it; the test is skipped where a library is missing."""
    pytest.importorskip("sqlalchemy", reason="pip install 'mqcore[sqlalchemy]'")
    if product == "sqlite":
        return AppDatabase("sqlite", str(folder / "app.db"))
    pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
    place = broker_server("postgresql").url.partition("://")[2].partition("?")[0]
    return AppDatabase("postgresql", place, f"t{new_id()[:8]}")
