"""For the tests of PostgreSQL: a server, a superuser's session, and instances of the backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from mqcore.contract.brokers import Server
from mqcore.messages.message import new_id
from mqcore.spi import Message, Outgoing

psycopg = pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
from mqcore_sql.database import TABLES, TASK_TABLES  # noqa: E402 - after the skip
from mqcore_sql.options import PostgresOptions  # noqa: E402 - they need psycopg
from mqcore_sql.postgres_backend import PostgresBackend  # noqa: E402 - as above

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def server(broker_server: Callable[[str], Server]) -> Server:
    return broker_server("postgresql")


@pytest.fixture
def admin(server: Server) -> Iterator[Any]:
    """A session of the superuser."""
    with closing(psycopg.connect(server.url, autocommit=True)) as session:
        yield session


@pytest.fixture
def prefix() -> str:
    return f"t{new_id()[:8]}"


@pytest.fixture
async def opened(server: Server, prefix: str) -> AsyncIterator[Open]:
    """A function that opens an instance; all are closed at the end, and their tables dropped."""
    backends: list[PostgresBackend] = []

    async def open_one(
        lost: list[Exception] | None = None, url: str = "", **options: Any
    ) -> PostgresBackend:
        backend = PostgresBackend(url or server.url, PostgresOptions(prefix=prefix, **options))
        backends.append(backend)
        await backend.open((lost if lost is not None else []).append)
        return backend

    yield open_one
    for backend in backends:
        await backend.close()
    with closing(psycopg.connect(server.url, autocommit=True)) as admin:
        for name in (*TABLES, *TASK_TABLES):
            admin.execute(f"DROP TABLE IF EXISTS {prefix}_{name}")
        admin.execute(f"DROP SEQUENCE IF EXISTS {prefix}_numbers")


def out(name: str = "a", queue: str = "jobs", **fields: Any) -> Outgoing:
    return Outgoing(queue, Message(id=name, body=b"body"), **fields)


def at(server: Server, user: str = "postgres:postgres", database: str = "postgres") -> str:
    return f"postgresql://{user}@{server.host}:{server.port}/{database}"


def waits_for_a_lock(admin: Any, pid: int) -> Callable[[], bool]:
    statement = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s"
    return lambda: admin.execute(statement, [pid]).fetchone() == ("Lock",)
