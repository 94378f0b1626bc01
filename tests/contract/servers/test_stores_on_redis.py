"""The contract of task stores on each Redis and Valkey."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import redis as plain_redis

from mqcore.contract.store.cases import StoreCase, store_cases
from mqcore.contract.store.equality import compare_with_memory
from mqcore.contract.store.explorer.crash_points import try_crash_points
from mqcore.contract.store.explorer.explorer import explore
from mqcore.contract.store.harness import MakeStore, store_of
from mqcore.contract.store.run import run_store_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mqcore.contract.brokers import Server

SCHEDULES, COMPARISONS, POINTS = 100, 40, 100

pytestmark = pytest.mark.timeout(300)  # ten seconds on a quiet machine


@contextmanager
def stores_on(server: Server) -> Iterator[MakeStore]:
    """A server that does not write each transaction to its disk: there are thousands."""
    with plain_redis.Redis.from_url(server.url) as client:
        client.config_set("appendfsync", "no")
        yield store_of(server.url)
        client.config_set("appendfsync", "always")


@pytest.fixture(scope="module", params=["local", "redis-8", "redis-7", "valkey-8"])
def make_store(
    request: pytest.FixtureRequest, broker_server: Callable[..., Server]
) -> Iterator[MakeStore]:
    is_local = request.param == "local"
    server = broker_server("redis", provider="local") if is_local else broker_server(request.param)
    with stores_on(server) as found:
        yield found


@pytest.mark.parametrize("case", store_cases(), ids=lambda case: case.__name__)
def test_a_case(make_store: MakeStore, case: StoreCase) -> None:
    asyncio.run(run_store_case(case, make_store))


def test_a_crash_between_any_two_steps_breaks_nothing(
    broker_server: Callable[..., Server],
) -> None:
    with stores_on(broker_server("redis")) as make_store:
        assert try_crash_points(make_store) > POINTS


def test_it_equals_memory_under_random_changes(make_store: MakeStore) -> None:
    assert compare_with_memory(make_store, COMPARISONS) > COMPARISONS


def test_every_workflow_ends_in_every_schedule(make_store: MakeStore) -> None:
    assert explore(make_store, SCHEDULES).schedules == SCHEDULES
