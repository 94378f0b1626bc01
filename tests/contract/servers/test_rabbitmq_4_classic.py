"""The contract on RabbitMQ 4 with classic queues, the default of an application."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mqcore.contract import Harness
from mqcore.contract.brokers import Server, ServerHarness
from mqcore.contract.suite import test_contract, test_model

__all__ = ["test_contract", "test_model"]

pytestmark = pytest.mark.timeout(600)  # the model takes a minute of real time


@pytest.fixture(scope="module")
def harness(broker_server: Callable[[str], Server]) -> Harness:
    return ServerHarness(broker_server("rabbitmq-4"))
