"""The smoke profile on a private instance of an installed server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mqcore.contract import Harness
from mqcore.contract.brokers import Server, ServerHarness
from mqcore.contract.suite import test_contract

__all__ = ["test_contract"]

pytestmark = pytest.mark.timeout(600)
contract_smoke = True


@pytest.fixture(scope="module")
def harness(broker_server: Callable[..., Server]) -> Harness:
    return ServerHarness(broker_server("rabbitmq", provider="local"))
