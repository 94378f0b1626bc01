"""The contract of task stores on PostgreSQL, in short form."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.task_stores import of_class

from mqcore.contract.store.cases import StoreCase, store_cases
from mqcore.contract.store.equality import compare_with_memory
from mqcore.contract.store.explorer.crash_points import try_crash_points
from mqcore.contract.store.explorer.explorer import explore
from mqcore.contract.store.run import run_store_case
from mqcore.messages.message import new_id

from .conftest import at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqcore.contract.brokers import Server
    from mqcore.contract.store.harness import MakeStore

psycopg = pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
from mqcore_sql.tasks.postgres import PostgresTaskStore  # noqa: E402 - it needs psycopg

pytestmark = pytest.mark.timeout(600)  # it commits thousands of times


@pytest.fixture(scope="module")
def url(server: Server) -> Iterator[str]:
    """A database of its own, whose commits do not wait for the disk: no power is cut here."""
    name = f"tasks_{new_id()[:8]}"
    with closing(psycopg.connect(server.url, autocommit=True)) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        admin.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        yield at(server, database=name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def make(url: str) -> MakeStore:
    return of_class(PostgresTaskStore, url)


@pytest.mark.parametrize("case", store_cases(), ids=lambda case: case.__name__)
async def test_case(case: StoreCase, make: MakeStore) -> None:
    await run_store_case(case, make)


def test_a_crash_between_every_two_steps(make: MakeStore) -> None:
    assert try_crash_points(make) > 200


def test_equality_with_memory(make: MakeStore) -> None:
    assert compare_with_memory(make, 30, seed=20_000) > 1_800


def test_schedules(make: MakeStore) -> None:
    assert explore(make, 100, seed=800_000).schedules == 100
