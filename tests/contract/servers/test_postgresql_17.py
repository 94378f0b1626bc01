"""The contract on PostgreSQL 17."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.postgresql import harness_for

from mqcore.contract import Harness
from mqcore.contract.brokers import Server
from mqcore.contract.suite import test_contract, test_model

__all__ = ["test_contract", "test_model"]

pytestmark = pytest.mark.timeout(600)  # the model takes a minute of real time


@pytest.fixture(scope="module")
def harness(broker_server: Callable[[str], Server]) -> Harness:
    return harness_for(broker_server("postgresql-17"))
